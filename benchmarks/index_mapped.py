"""What it costs to match in an index that another process writes, and to write one that others may read.

A process writes a shared index (`kvrouter.index.mapped`): it fills it, matches in one of its own with the same content,
and then changes the shared one as fast as it goes. This process matches the same prompts through a mapping, before that
and meanwhile. `python -m benchmarks.index_mapped write PATH BLOCKS` is the other one; the figures are rows of
`benchmarks.index`.
"""

import json
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path
from time import perf_counter_ns, process_time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import Report

__all__ = ["report_mapped"]

_RANKS = 64
_QUERIES = 2000
_ROUNDS = 5
_BUSY_MATCHES = 1_000_000
_CHAIN_BLOCKS = (8, 200)
_PEER = "the same by the process that writes"


def report_mapped(report: Report, blocks: int) -> None:
    """Add the rows, of an index of so many distinct blocks, each held by two ranks."""
    with tempfile.TemporaryDirectory(dir=_folder()) as folder:
        figures = _measure(Path(folder) / "index", blocks)
    own50, own99 = figures["own"]
    for name in ("idle", "busy"):
        suffix = "" if name == "idle" else "-while-applied"
        half, most = figures[name]
        report.row(f"match-mapped-p50{suffix}", "us", half, own50, _PEER, less_is_better=True)
        report.row(f"match-mapped-p99{suffix}", "us", most, own99, _PEER, less_is_better=True)
    report.row("apply-shared", "blocks/s", figures["shared"], figures["alone"], "an index that is not shared")
    report.conditions["mapped"] = {
        "retries": figures["retries"],
        "matches": _BUSY_MATCHES,
        "applied": figures["applied"],
    }


def _folder() -> str | None:
    """Where a file is memory."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _measure(path: Path, blocks: int) -> dict[str, Any]:
    from kvrouter.index.mapped import MappedIndex  # noqa: PLC0415 - there may be no native core

    queries = _chains(blocks)[:_QUERIES]
    writer = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.index_mapped", "write", str(path), str(blocks)],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdin is not None
    assert writer.stdout is not None
    try:
        figures: dict[str, Any] = json.loads(writer.stdout.readline())
        with MappedIndex(path, patience_seconds=1.0) as mapped:
            _percentiles(mapped.match_depths, queries, 1)  # Whatever is met first is mapped page by page.
            figures["idle"] = _percentiles(mapped.match_depths, queries, 1)
            writer.stdin.write("go\n")
            writer.stdin.flush()
            writer.stdout.readline()
            before = mapped.counts()["retries"]
            # Long enough to meet the writer at all, where processors are few.
            figures["busy"] = _percentiles(mapped.match_depths, queries, _BUSY_MATCHES // len(queries))
            figures["retries"] = mapped.counts()["retries"] - before
        output, _ = writer.communicate("stop\n", timeout=60)
        figures |= json.loads(output)
    finally:
        writer.kill()
        writer.wait()
    return figures


def _chains(blocks: int) -> list[NDArray[np.uint64]]:
    draw = np.random.default_rng(11)
    made: list[NDArray[np.uint64]] = []
    while blocks > 0:
        made.append(draw.integers(1, 2**63, int(draw.integers(*_CHAIN_BLOCKS)), dtype=np.uint64))
        blocks -= len(made[-1])
    return made


def _percentiles(match: Callable[[Any], object], queries: list[NDArray[np.uint64]], rounds: int) -> tuple[float, float]:
    """The median and the 99th percentile, in microseconds."""
    times = []
    for _ in range(rounds):
        for query in queries:
            began = perf_counter_ns()
            match(query)
            times.append(perf_counter_ns() - began)
    times.sort()
    return times[len(times) // 2] / 1e3, times[len(times) * 99 // 100] / 1e3


def _write(path: str, blocks: int) -> None:
    from kvrouter.index import PrefixIndex  # noqa: PLC0415 - as above
    from kvrouter.index.mapped import share  # noqa: PLC0415

    chains = _chains(blocks)
    indexes = {"alone": PrefixIndex(), "shared": share(path, capacity_bytes=8 << 30)}
    for index in indexes.values():
        for at, chain in enumerate(chains):
            index.store_chain(at % _RANKS, chain)
            index.store_chain((at + 1) % _RANKS, chain)
    rates: dict[str, list[float]] = {name: [] for name in indexes}
    for turn in range(_ROUNDS):
        for name, index in indexes.items():
            rates[name].append(_churn(index, chains, turn * 2000, 2000))
    figures: dict[str, Any] = {name: max(each) for name, each in rates.items()}
    figures["own"] = _percentiles(indexes["alone"].match_depths, chains[:_QUERIES], 1)
    print(json.dumps(figures), flush=True)
    sys.stdin.readline()
    print("going", flush=True)
    began, changed = perf_counter_ns(), 0
    for turn in count():
        changed += _churn_once(indexes["shared"], chains, turn * 50, 50)
        if _is_told_to_stop():
            break
    seconds = (perf_counter_ns() - began) / 1e9
    print(json.dumps({"applied": changed / seconds}), flush=True)


def _churn(index: Any, chains: list[NDArray[np.uint64]], start: int, number: int) -> float:
    """Blocks per second of this process's own time."""
    began = process_time()
    blocks = _churn_once(index, chains, start, number)
    return blocks / (process_time() - began)


def _churn_once(index: Any, chains: list[NDArray[np.uint64]], start: int, number: int) -> int:
    """Take chains from the ranks that hold them, and give them back."""
    blocks = 0
    for at in range(start, start + number):
        place = at % len(chains)
        chain = chains[place]
        for rank in (place % _RANKS, (place + 1) % _RANKS):
            index.remove(rank, chain)
        for rank in (place % _RANKS, (place + 1) % _RANKS):
            index.store_chain(rank, chain)
        blocks += 4 * len(chain)
    return blocks


def _is_told_to_stop() -> bool:
    return bool(select.select([sys.stdin], [], [], 0)[0])


if __name__ == "__main__":
    _write(sys.argv[2], int(sys.argv[3]))
