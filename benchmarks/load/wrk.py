"""Full load from wrk, the C load generator: writes its Lua script and reads its summary."""

import json
from pathlib import Path

from benchmarks.load.workload import ID_LOW, UNIQUE_RANGE, Workload

__all__ = ["command", "script", "summary"]

_COMPOSED = """
request = function()
  counter = counter + 1
  local high = math.floor(counter / unique_range)
  local unique = (id_low + seed) .. separator .. (id_low + high) .. separator
      .. (id_low + counter % unique_range) .. separator
  return opening .. stems[counter % #stems + 1] .. unique .. tails[counter % #tails + 1]
      .. string.format(closing, counter % 10000000)
end
"""

_READY = """
request = function()
  counter = counter + 1
  return ready[counter % #ready + 1]
end
"""

_DONE = """
done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '{"requests":%d,"bytes":%d,"microseconds":%d,"failed":%d}\\n',
    summary.requests, summary.bytes, summary.duration,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"""


def script(workload: Workload, host: str, seed: int) -> str:
    """Return a Lua script that sends `workload`; each wrk thread counts in a range of its own."""
    lines = [
        f"seed, unique_range, id_low = {seed % 8_000 * 10}, {UNIQUE_RANGE}, {ID_LOW}",
        f"separator = {_quoted(workload.separator)}",
        "local threads = 0",
        "setup = function(thread) thread:set('number', threads); threads = threads + 1 end",
        "init = function() counter = 0; seed = seed + number end",
    ]
    if workload.ready:
        requests = [workload.request(number, 0, host).decode() for number in range(len(workload.ready))]
        lines += [f"ready = {_table(requests)}", _READY]
    else:
        head = workload.head(host, len(workload.body(0, 0))).decode()
        lines += [
            f"opening = {_quoted(head + workload.opening)}",
            f"stems, tails = {_table(workload.stems)}, {_table(workload.tails)}",
            f"closing = {_quoted(workload.closing)}",
            _COMPOSED,
        ]
    return "\n".join([*lines, _DONE])


def command(wrk: Path, script_path: Path, url: str, *, threads: int, connections: int, seconds: float) -> list[str]:
    """Return the command line of one run."""
    return [
        str(wrk),
        f"--threads={threads}",
        f"--connections={connections}",
        f"--duration={max(1, round(seconds))}s",
        "--timeout=10s",
        f"--script={script_path}",
        url,
    ]


def summary(output: str) -> dict[str, int]:
    """Return the counts of one run from what wrk wrote."""
    line = next(line for line in reversed(output.splitlines()) if line.startswith('{"requests"'))
    return {name: int(value) for name, value in json.loads(line).items()}


def _quoted(text: str) -> str:
    """Quote as a Lua string; JSON's escapes for quotes, backslashes and line ends are Lua's too."""
    return json.dumps(text)


def _table(texts: tuple[str, ...] | list[str]) -> str:
    return "{" + ",".join(_quoted(text) for text in texts) + "}"
