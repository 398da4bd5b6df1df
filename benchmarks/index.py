"""The prefix index beside Dynamo's, on the cache events and lookups of a replayed trace: `python -m benchmarks.index`.

The same stream goes to each implementation, alone in its process on one and the same core: ours in C, ours in Python
(`-reference`), and Dynamo's `RadixTree`, the first and the last in turn, several times; figures are medians of these
rounds. Their answers to the same prompts are compared. Nobody's encoding is timed; Dynamo's reading of its JSON is,
because there is no other way into it from Python. Where engines' bytes are applied, Dynamo reads and hashes the same
bytes; beside that stands what it takes where somebody else has done so (`-beside-ready-hashes`). Which fleet and trace:
`index_workload`; what is timed and how: `index_side`.
"""

import json
import marshal
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.index_depths import DEPTHS, KINDS, deep_changes, deep_queries
from benchmarks.index_floor import measure_floor, measure_walk
from benchmarks.index_mapped import report_mapped
from benchmarks.index_workload import BLOCK_SIZE, Change, Fleet, Request, load_trace, synthetic_trace
from benchmarks.peers import PeerEnvironment, add_peers_option
from benchmarks.report import Report, argument_parser
from kvrouter import native_core
from kvrouter.blocks import sequence_hashes

__all__ = ["main"]

_SIDE = Path(__file__).with_name("index_side.py")
_DYNAMO = "dynamo RadixTree"
_DYNAMO_FROM_BYTES = "msgpack + dynamo compute_block_hash_for_seq + RadixTree"
_DYNAMO_READY = "dynamo RadixTree, given ready hashes"
_PACKAGE = "ai-dynamo-runtime"
_HASH_DYNAMO = """
import json, statistics, sys, time
from dynamo._core import compute_block_hash_for_seq
tokens = [number * 7919 % 128000 for number in range(int(sys.argv[1]))]
times = []
for _ in range(15):
    began = time.perf_counter()
    compute_block_hash_for_seq(tokens, int(sys.argv[2]))
    times.append(time.perf_counter() - began)
print(statistics.median(times))
"""

# They are measured in turn, each so many times; the others once.
_RIVALS = ("dynamo", "native", "ingest", "dynamo-from-bytes")
_ROUNDS = 3

Result = dict[str, Any]


def main() -> None:
    """Run the benchmark."""
    parser = argument_parser("index", __doc__.splitlines()[0])
    add_peers_option(parser)
    parser.add_argument("trace", nargs="?", type=Path, help="a trace in Mooncake's form (default: a synthetic one)")
    parser.add_argument("--ranks", type=int, default=64)
    parser.add_argument("--pairs", type=int, help="resident (block, rank) pairs to reach (default: 2.5 M; quick 0.3 M)")
    parser.add_argument("--rounds", type=int, default=_ROUNDS, help="how often the rivals are measured in turn")
    arguments = parser.parse_args()
    pairs = arguments.pairs or (300_000 if arguments.quick else 2_500_000)
    peers = PeerEnvironment.find(arguments.peers_python)
    report = Report("index", packages=["numpy", "xxhash"])
    report.versions |= {_PACKAGE: peers.versions[_PACKAGE]} if _PACKAGE in peers.versions else {}
    copies, requests = (1, 4000) if arguments.quick else (2, 40_000)
    trace = load_trace(arguments.trace, copies=copies)[:requests] if arguments.trace else synthetic_trace(requests)
    with tempfile.TemporaryDirectory() as folder:
        scale = 8 if arguments.quick else 1
        resident = _write_workload(
            trace,
            Path(folder),
            ranks=arguments.ranks,
            pairs=pairs,
            queries=2000 // scale,
        )
        report.conditions |= {
            "rounds": arguments.rounds,
            "ranks": arguments.ranks,
            "resident_pairs": resident,
            "requests": len(trace),
        }
        report.conditions["trace"] = arguments.trace.name if arguments.trace else "synthetic"
        results = _run_sides(Path(folder), peers, arguments.rounds)
    _report(report, results, resident, peers)
    report.emit(arguments.json)


def _write_workload(trace: list[Request], folder: Path, *, ranks: int, pairs: int, queries: int) -> int:
    """Write the stream in each form, as lists of events that end with None; returns the pairs held at its end."""
    fleet = Fleet(ranks=ranks, blocks_max=pairs // ranks)
    wanted = iter(trace[:-queries])
    number = 0
    with (
        (folder / "hashes").open("wb") as hashes,
        (folder / "dynamo").open("wb") as dynamo,
        (folder / "vllm").open("wb") as vllm,
    ):
        while requests := list(islice(wanted, 50)):
            changes = [change for request in requests for change in fleet.serve(request)]
            marshal.dump(list(map(_plain, changes)), hashes)
            marshal.dump([_for_dynamo(each, number + at) for at, each in enumerate(changes)], dynamo)
            number += len(changes)
            marshal.dump([(each.rank, None, each.vllm(0.0), len(each.hashes)) for each in changes], vllm)
        for stream in (hashes, dynamo, vllm):
            marshal.dump(None, stream)
        deep = list(deep_changes(ranks))
        marshal.dump(list(map(_plain, deep)), hashes)
        marshal.dump([_for_dynamo(each, number + at) for at, each in enumerate(deep)], dynamo)
    with (folder / "queries").open("wb") as stream:
        marshal.dump([tuple(part.tobytes() for part in fleet.prompt(request)) for request in trace[-queries:]], stream)
        marshal.dump(deep_queries(), stream)
    return fleet.pairs()


def _plain(change: Change) -> tuple[Any, ...]:
    return change.rank, bool(len(change.tokens)), change.hashes.tobytes(), len(change.hashes), change.parent


def _for_dynamo(change: Change, number: int) -> tuple[Any, ...]:
    return change.rank, None, change.dynamo(number), len(change.hashes)


def _run_sides(folder: Path, peers: PeerEnvironment, count: int) -> dict[str, Result]:
    sides = {"reference": Path(sys.executable), "ingest": Path(sys.executable), "ingest-singly": Path(sys.executable)}
    if native_core.present:
        sides["native"] = Path(sys.executable)
    if _PACKAGE in peers.versions:
        sides["dynamo"] = peers.python
        if _reads_msgpack(peers.python):
            sides["dynamo-from-bytes"] = peers.python
    rounds: dict[str, list[Result]] = {kind: [] for kind in sides}
    for number in range(count):
        for kind in (*_RIVALS, *sides) if number == 0 else _RIVALS:
            if kind in sides and len(rounds[kind]) <= number:
                rounds[kind].append(_run_side(kind, sides[kind], folder))
    return {kind: _median_of(results) for kind, results in rounds.items()}


def _reads_msgpack(python: Path) -> bool:
    found = "any(map(importlib.util.find_spec, ('msgspec', 'msgpack')))"
    command = [str(python), "-c", f"import importlib.util, sys; sys.exit(not {found})"]
    return subprocess.run(command, check=False, timeout=60).returncode == 0


def _run_side(kind: str, python: Path, folder: Path) -> Result:
    core = [str(max(os.sched_getaffinity(0)))] if hasattr(os, "sched_getaffinity") else []
    done = subprocess.run(
        [python, _SIDE, kind, folder, *core],
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
        cwd=_SIDE.parents[1],
    )
    if done.returncode:
        raise SystemExit(f"{kind} failed:\n{done.stderr}")
    result: Result = json.loads(done.stdout)
    return result


def _median_of(results: list[Any]) -> Any:
    """Numbers by their median, objects and lists member by member."""
    first = results[0]
    if isinstance(first, dict):
        return {key: _median_of([each[key] for each in results]) for key in first}
    if isinstance(first, list):
        return [_median_of(list(members)) for members in zip(*results, strict=True)]
    return statistics.median_low(results)


def _report(report: Report, results: dict[str, Result], resident: int, peers: PeerEnvironment) -> None:
    dynamo = results.get("dynamo")
    digests = {kind: (each["digest"], each["deep_digest"]) for kind, each in results.items() if "digest" in each}
    report.conditions["answers_agree"] = len(set(digests.values())) == 1
    report.conditions["stream"] = {key: results["reference"][key] for key in ("events", "blocks")}

    def row(
        name: str,
        unit: str,
        ours: float | None,
        key: str | None = None,
        *,
        scale: float = 1.0,
        of: str | None = None,
        at: int = 0,
    ) -> None:
        peer = None
        if dynamo is not None and key is not None:
            peer = dynamo[key] * scale if of is None else dynamo[key][of][at]
        less = not unit.endswith("/s")
        reason = peers.missing(_PACKAGE) if dynamo is None and key is not None else None
        report.row(name, unit, ours, peer, _DYNAMO if key else None, reason=reason, less_is_better=less)

    for kind, suffix in (("native", ""), ("reference", "-reference")):
        result = results.get(kind)
        if result is None:
            report.row("match-p50", "us", None, reason=native_core.absence)
            continue
        for asked, name in (("match", "match"), ("answer", "match-answer")):
            for form, of in (("array", ""), ("list", "-list")):
                for share in ("p50", "p99"):
                    figure = result[f"{asked}_{form}_{share}_us"]
                    row(f"{name}{of}-{share}{suffix}", "us", figure, f"{asked}_list_{share}_us")
        row(f"match-bisect-deepest{suffix}", "us", result["match_bisect_us"])
        row(f"apply-hashes{suffix}", "blocks/s", result["blocks_per_second"], "blocks_per_second")
        row(f"apply-hashes-cpu{suffix}", "blocks/s", result["blocks_per_cpu_second"], "blocks_per_cpu_second")
        row(f"worst-apply-pause{suffix}", "ms", result["worst_pause_ms"], "worst_pause_ms")
        row(
            f"bytes-per-pair{suffix}",
            "bytes",
            result["resident_bytes"] / resident,
            "resident_bytes",
            scale=1 / resident,
        )
        if "nbytes" in result:
            row(f"bytes-per-pair-accounted{suffix}", "bytes", result["nbytes"] / resident)
        row(f"clear-rank{suffix}", "ms", result["clear_ms"])
        row(f"snapshot{suffix}", "ms", result["snapshot_ms"])
        row(f"restore{suffix}", "ms", result["restore_ms"])
        for name in (f"{kind}-{depth}" for kind in KINDS for depth in DEPTHS):
            row(f"match-{name}-p50{suffix}", "us", result["deep"][f"array-{name}"][0], "deep", of=f"list-{name}")
            row(f"match-list-{name}-p50{suffix}", "us", result["deep"][f"list-{name}"][0], "deep", of=f"list-{name}")
            row(f"match-{name}-p99{suffix}", "us", result["deep"][f"array-{name}"][1], "deep", of=f"list-{name}", at=1)
        for name, figure in result["forms"].items():
            row(f"{name}{suffix}", "us", figure)
    _report_ingest(report, results, resident, peers)
    if native_core.present:
        _report_floor(report, int(results["reference"]["distinct"]))
        report_mapped(report, int(results["reference"]["distinct"]))
    _report_hashing(report, peers)


def _report_ingest(report: Report, results: dict[str, Result], resident: int, peers: PeerEnvironment) -> None:
    """Engines' bytes, aliases included: beside the same work, and beside less of it."""
    ingest, singly = results["ingest"], results["ingest-singly"]
    same, less = results.get("dynamo-from-bytes"), results.get("dynamo")
    absent = peers.missing(_PACKAGE)
    unread = absent if less is None else "neither msgspec nor msgpack is installed beside ai-dynamo-runtime"
    blocks, processor = "blocks_per_second", "blocks_per_cpu_second"
    for name, ours, key, theirs, peer, reason in (
        ("apply-engine-bytes", ingest, blocks, same, _DYNAMO_FROM_BYTES, unread),
        ("apply-engine-bytes-cpu", ingest, processor, same, _DYNAMO_FROM_BYTES, unread),
        ("apply-engine-bytes-singly", singly, blocks, same, _DYNAMO_FROM_BYTES, unread),
        ("apply-engine-bytes-beside-ready-hashes", ingest, blocks, less, _DYNAMO_READY, absent),
        ("apply-engine-bytes-beside-ready-hashes-cpu", ingest, processor, less, _DYNAMO_READY, absent),
        ("apply-engine-bytes-singly-beside-ready-hashes", singly, blocks, less, _DYNAMO_READY, absent),
    ):
        found = None if theirs is None else theirs[key]
        report.row(name, "blocks/s", ours[key], found, peer, reason=None if theirs else reason)
    bytes_per_pair = ingest["resident_bytes"] / ingest["pairs"]
    report.row(
        "bytes-per-pair-with-aliases",
        "bytes",
        bytes_per_pair,
        None if less is None else less["resident_bytes"] / resident,
        _DYNAMO,
        reason=None if less else absent,
        less_is_better=True,
    )


def _report_floor(report: Report, blocks: int) -> None:
    """How near the walk is to what the memory allows, over an index of as many blocks."""
    walk, strided, size = measure_walk(blocks)
    floor = measure_floor(size) or {}
    reason = None if floor else "there is no compiler for it"
    report.row("floor-dependent-miss", "ns", floor.get("dependent_miss_ns"), reason=reason)
    report.row("floor-prefetched-probe", "ns", floor.get("prefetched_probe_ns"), reason=reason)
    report.row("floor-bandwidth", "GB/s", floor.get("bandwidth_gb_per_second"), reason=reason)
    probe = floor.get("prefetched_probe_ns")
    for name, figure in (("walk-per-block", walk), ("walk-by-stretches-per-block", strided)):
        report.row(name, "ns", figure, probe, "prefetched probe of this machine", reason=reason, less_is_better=True)


def _report_hashing(report: Report, peers: PeerEnvironment) -> None:
    tokens = 32_768
    theirs = _hash_dynamo(tokens, peers) if _PACKAGE in peers.versions else None
    ids = [number * 7919 % 128_000 for number in range(tokens)]
    ours = tokens / _median(lambda: sequence_hashes(ids, BLOCK_SIZE))
    report.row(
        "hash-tokens-list",
        "tokens/s",
        ours,
        theirs,
        "dynamo compute_block_hash_for_seq",
        reason=None if theirs else peers.missing(_PACKAGE),
    )


def _hash_dynamo(tokens: int, peers: PeerEnvironment) -> float:
    command = [str(peers.python), "-c", _HASH_DYNAMO, str(tokens), str(BLOCK_SIZE)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    return tokens / float(done.stdout)


def _median(call: Callable[[], object]) -> float:
    times = []
    for _ in range(15):
        began = perf_counter()
        call()
        times.append(perf_counter() - began)
    return statistics.median(times)


if __name__ == "__main__":
    main()
