"""CPU time per selection over HTTP, beside Dynamo's selection service: `python -m benchmarks.selection`.

Both services know the same eight workers and the same cache events, and answer the same requests: prompts of 2 k and
16 k token ids, and hashes of 2 k tokens. Requests continue conversations that a worker has cached; the rows named
`distinct` share nothing. Each service is alone on one core while it works. See docs/benchmarks.md.
"""

import argparse
import contextlib
import json
import random
import statistics
import sys
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.fleet.cache_events import BLOCK_SIZE, CacheEvents
from benchmarks.load.run import LoadError, Runner
from benchmarks.load.workload import Workload, ready_bodies, token_selections
from benchmarks.peers import PeerEnvironment, add_peers_option
from benchmarks.processes import Child, Children, Cores, NotReadyError, free_port, wait_until
from benchmarks.report import Report, argument_parser
from kvrouter.blocks import sequence_hashes

__all__ = ["main"]

_WORKERS = 8
_CONNECTIONS = 16
_PEER = "dynamo.select_service"
_HASHED_PROMPTS = 256
_ID_LOW, _ID_HIGH = 10_000, 99_999


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A running selection service."""

    name: str
    child: Child
    port: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argument_parser("selection", (__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=None, help="length of one measurement (default: 3; quick: 1)")
    parser.add_argument("--rounds", type=int, default=None, help="measurements of each figure (default: 5; quick: 2)")
    add_peers_option(parser)
    options = parser.parse_args(arguments)
    report = Report("selection", packages=("uvloop", "httptools", "msgspec"))
    _run(options, report)
    report.emit(options.json)
    return 0


def _run(options: argparse.Namespace, report: Report) -> None:
    peers, cores = PeerEnvironment.find(options.peers_python), Cores.divide()
    seconds = options.seconds or (1.0 if options.quick else 3.0)
    rounds = options.rounds or (2 if options.quick else 5)
    workloads = _workloads()
    report.versions |= peers.versions
    with Children() as children, CacheEvents(_WORKERS) as events:
        runner = Runner(children, cores.load)
        report.conditions |= {"seconds": seconds, "rounds": rounds, "load": runner.software, "workers": _WORKERS}
        services, reasons = _start(children, cores, peers)
        _register(services, events)
        blocks = events.publish_fill()
        for workload in (workloads["2k"], workloads["16k"]):
            events.publish_prompts(workload.stem_ids())
        report.conditions |= {"other_cached_blocks": blocks, "matched_tokens": _matched(services, workloads)}
        samples = _measure(runner, services, workloads, rounds, seconds)
    for name in workloads:
        _add_rows(report, name, samples, reasons)


def _workloads() -> dict[str, Workload]:
    talk = token_selections("select-2k", 2048, conversations=True)
    return {
        "2k": talk,
        "2k-distinct": token_selections("select-2k-distinct", 2048, conversations=False),
        "16k": token_selections("select-16k", 16_384, conversations=True),
        "16k-distinct": token_selections("select-16k-distinct", 16_384, conversations=False),
        "hashes": ready_bodies(
            "select-hashes", "/select", [_hashed(talk, number) for number in range(_HASHED_PROMPTS)]
        ),
    }


def _hashed(talk: Workload, number: int) -> str:
    """Return a selection by hashes for a prompt of 2 k tokens that continues a conversation."""
    stems, choice = talk.stem_ids(), random.Random(number)
    stem = stems[number % len(stems)]
    tokens = stem + choice.choices(range(_ID_LOW, _ID_HIGH), k=2048 - len(stem))
    blocks = [tokens[start : start + BLOCK_SIZE] for start in range(0, len(tokens), BLOCK_SIZE)]
    # The first hash of a sequence is the hash of its block alone.
    block_hashes = [int(sequence_hashes(block, BLOCK_SIZE).view("int64")[0]) for block in blocks]
    chained = [int(each) for each in sequence_hashes(tokens, BLOCK_SIZE).view("int64")]
    body = {"model_name": "bench", "block_hashes": block_hashes, "sequence_hashes": chained, "isl_tokens": len(tokens)}
    return json.dumps(body, separators=(",", ":"))


def _start(children: Children, cores: Cores, peers: PeerEnvironment) -> tuple[list[Service], dict[str, str]]:
    """Start both services on the router's core; whichever cannot be started is excused."""
    services: list[Service] = []
    reasons: dict[str, str] = {}
    starters: dict[str, Callable[[int], list[str]]] = {
        "kvrouter": lambda port: [
            sys.executable,
            *("-m", "kvrouter", "serve", "--port", str(port)),
            *("--log-level", "warning", "--block-size", str(BLOCK_SIZE)),
        ],
        # Its default threads and no log line per selection: the least CPU time of the settings tried.
        _PEER: lambda port: [str(peers.python), "-m", "dynamo.select_service", "--port", str(port)],
    }
    for name, command in starters.items():
        if name == _PEER and "ai-dynamo-runtime" not in peers.versions:
            reasons[name] = peers.missing("ai-dynamo-runtime")
            continue
        port = free_port()
        try:
            child = children.start(name, command(port), cores=cores.router, environment={"DYN_LOG": "error"})
            child.wait_for_port(port)
        except NotReadyError as error:
            reasons[name] = str(error)
        else:
            services.append(Service(name=name, child=child, port=port))
    return services, reasons


def _register(services: Sequence[Service], events: CacheEvents) -> None:
    """Tell every service of the workers, in Dynamo's words, which are also ours."""
    for service in services:
        for number, (endpoint, replay) in enumerate(zip(events.endpoints, events.replay_endpoints, strict=True)):
            worker = {
                "worker_id": number + 1,
                "model_name": "bench",
                "endpoint": f"http://127.0.0.1:{number + 1}",
                "block_size": BLOCK_SIZE,
                "kv_events_endpoints": {"0": endpoint},
                "replay_endpoint": replay,
            }
            _post(service, "/workers", json.dumps(worker).encode())


def _matched(services: Sequence[Service], workloads: dict[str, Workload]) -> dict[str, dict[str, int]]:
    """Wait until every service answers by the events; return how many tokens it matched, as proof."""
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for service in services:
        for name in ("2k", "16k", "hashes"):

            def matched(name: str = name, service: Service = service) -> bool:
                with contextlib.suppress(urllib.error.HTTPError, LoadError):
                    answer = _post(service, "/select", workloads[name].body(0, 0))
                    found[service.name][name] = int(answer["overlap"]["longest_matched"])
                return found[service.name].get(name, 0) > 0

            wait_until(matched, f"{service.name} matches a cached prompt of {name}")
    return dict(found)


def _measure(
    runner: Runner, services: Sequence[Service], workloads: dict[str, Workload], rounds: int, seconds: float
) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """Return (CPU seconds per selection, selections per second) of every round."""
    samples: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for number in range(rounds):
        for name, workload in workloads.items():
            for service in services if number % 2 == 0 else reversed(services):
                before = service.child.cpu_seconds()
                came = runner.full(workload, service.port, seconds=seconds, connections=_CONNECTIONS)
                used = service.child.cpu_seconds() - before
                if came.failed:
                    raise LoadError(f"{service.name}: {came.failed} selections of {name} failed")
                samples[name, service.name].append((used / came.requests, came.requests / came.seconds))
    return samples


def _add_rows(
    report: Report, name: str, samples: dict[tuple[str, str], list[tuple[float, float]]], reasons: dict[str, str]
) -> None:
    ours, theirs = samples.get((name, "kvrouter"), []), samples.get((name, _PEER), [])
    reason = "; ".join(reasons.values()) or None
    microseconds = [statistics.median(cpu for cpu, _ in each) * 1e6 if each else None for each in (ours, theirs)]
    report.row(f"select-{name}-cpu", "µs", microseconds[0], microseconds[1], _PEER, reason=reason, less_is_better=True)
    rates = [statistics.median(rate for _, rate in each) if each else None for each in (ours, theirs)]
    report.row(f"select-{name}-per-second", "selections/s", rates[0], rates[1], _PEER, reason=reason)


def _post(service: Service, path: str, body: bytes) -> dict[str, dict[str, int]]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{service.port}{path}", data=body, headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        answer: dict[str, dict[str, int]] = json.load(response)
        return answer


if __name__ == "__main__":
    sys.exit(main())
