"""One index under the workload of `benchmarks.index`, alone in its process: `index_side.py KIND FOLDER`.

Runs in the Python of the peer too, which has neither this project nor numpy: only what KIND needs is imported. Prints
one JSON object.
"""

import json
import marshal
import os
import statistics
import sys
import zlib
from array import array
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, perf_counter_ns
from typing import Any

_PASSES = 3


class _Ours:
    """One of our implementations."""

    def __init__(self, kind: str) -> None:
        import numpy as np  # noqa: PLC0415 - see the module

        if kind == "native":
            from kvrouter.index.native import PrefixIndex  # noqa: PLC0415
        else:
            from kvrouter.index.reference import PrefixIndex  # type: ignore[assignment]  # noqa: PLC0415
        self._np, self._make = np, PrefixIndex
        self.start()

    def start(self) -> None:
        self.index: Any = self._make()

    def prepare(self, event: Any) -> Any:
        rank, stores, packed, _, parent = event
        hashes = self._np.frombuffer(packed, self._np.uint64)
        hashes.data  # noqa: B018 - numpy keeps a note with every array that was ever looked into; not the index's memory.
        return rank, stores, hashes, parent

    def apply(self, event: Any) -> None:
        rank, stores, hashes, parent = event
        if stores:
            self.index.store_chain(rank, hashes, parent)
        else:
            self.index.remove(rank, hashes)

    def queries(self, hashes: bytes, local: bytes) -> dict[str, Any]:  # noqa: ARG002
        array = self._np.frombuffer(hashes, self._np.uint64)
        return {"array": array, "list": array.tolist()}

    def match(self, query: Any) -> dict[int, int]:
        return self.index.match_depths(query)  # type: ignore[no-any-return]

    def size(self) -> dict[str, int]:
        return {"distinct": len(self.index), "nbytes": self.index.nbytes()}

    def _forms(self, query: Any) -> dict[str, float]:
        """Other ways to ask for a long prompt that is held, and for one of whose 128 k tokens nothing is."""
        from kvrouter.blocks import HASH_SEED, packed_hashes  # noqa: PLC0415

        index, array = self.index, self._np.frombuffer
        words = self._np.random.default_rng(3).integers(0, 128_000, size=131_072, dtype=self._np.uint32).tobytes()
        batch = [query] * 64
        return {
            "match-tokens-miss-8192": _median_us(lambda: index.match_tokens(words, 16, HASH_SEED)),
            "hash-then-match-miss-8192": _median_us(
                lambda: index.match_depths(array(packed_hashes(None, words, 16, HASH_SEED), self._np.uint64))
            ),
            "match-best-of-deepest": _median_us(lambda: index.match_best(query)),
            "match-depths-of-deepest": _median_us(lambda: index.match_depths(query)),
            "match-many-of-deepest": _median_us(lambda: index.match_many(batch)) / len(batch),
        }

    def extras(self, query: Any) -> dict[str, Any]:
        index = self.index
        found: dict[str, Any] = {"forms": self._forms(query)}
        found |= {"match_bisect_us": _median_us(lambda: index.match(query, exact=False))}
        began = perf_counter()
        saved = index.snapshot()
        found["snapshot_ms"] = (perf_counter() - began) * 1e3
        began = perf_counter()
        self._make.restore(saved)
        found["restore_ms"] = (perf_counter() - began) * 1e3
        found["snapshot_bytes"] = len(saved)
        ranks = [rank for rank in range(4096) if index.blocks(rank)]
        found["pairs"] = sum(index.blocks(rank) for rank in ranks)
        pauses = []
        for rank in ranks[:8]:
            began = perf_counter()
            index.clear(rank)
            pauses.append(perf_counter() - began)
        found["clear_ms"] = min(pauses) * 1e3
        return found


class _Dynamo:
    """Dynamo's radix tree."""

    def __init__(self, _kind: str) -> None:
        from dynamo._core import RadixTree  # noqa: PLC0415

        self._make = RadixTree
        self.start()

    def start(self) -> None:
        self.index: Any = self._make()

    def prepare(self, event: Any) -> Any:
        return event

    def apply(self, event: Any) -> None:
        self.index.apply_event(event[0], event[2])

    def size(self) -> dict[str, int]:
        return {}

    def queries(self, hashes: bytes, local: bytes) -> dict[str, Any]:  # noqa: ARG002
        return {"list": memoryview(local).cast("Q").tolist()}

    def match(self, query: Any) -> Any:
        return self.index.find_matches(query).scores

    def extras(self, query: Any) -> dict[str, float]:  # noqa: ARG002
        return {}


class _Ingest:
    """Our whole path from engine bytes to the index, aliases included."""

    def __init__(self, _kind: str) -> None:
        from kvrouter.index import PrefixIndex  # noqa: PLC0415
        from kvrouter.ingest import Ingest  # noqa: PLC0415

        self._kinds = Ingest, PrefixIndex
        self.start()

    def start(self) -> None:
        from kvrouter.events import Source  # noqa: PLC0415

        self._index = self._kinds[1]()
        self.ingest = self._kinds[0](self._index)
        self._sources: dict[int, Any] = {}
        self._next: dict[int, int] = {}
        self._source = Source

    def prepare(self, event: Any) -> Any:
        return event

    def apply(self, event: Any) -> None:
        rank = event[0]
        source = self._sources.get(rank)
        if source is None:
            source = self._sources[rank] = self._source(str(rank), 0)
            self.ingest.open(source, rank, now=0.0)
            self._next[rank] = 0
        self.ingest.receive(source, self._next[rank], event[2], now=0.0)
        self._next[rank] += 1

    def queries(self, hashes: bytes, local: bytes) -> dict[str, Any]:  # noqa: ARG002
        return {}

    def extras(self, query: Any) -> dict[str, float]:  # noqa: ARG002
        return {}

    def pairs(self) -> int:
        """Blocks held, summed over the ranks."""
        return sum(self._index.blocks(rank) for rank in self._next)


_SIDES = {"native": _Ours, "reference": _Ours, "dynamo": _Dynamo, "ingest": _Ingest}
_FILES = {"native": "hashes", "reference": "hashes", "dynamo": "dynamo", "ingest": "vllm"}


def main() -> None:
    """Run one side and print what was measured."""
    kind, folder = sys.argv[1], Path(sys.argv[2])
    side: Any = _SIDES[kind](kind)
    events, counts = [], []
    with (folder / _FILES[kind]).open("rb") as stream:
        while (batch := marshal.load(stream)) is not None:
            events += [side.prepare(event) for event in batch]
            counts += [event[3] for event in batch]
        later = marshal.load(stream) if kind != "ingest" else []
    result = _measure_applying(side, events, counts)
    events.clear()
    with (folder / "queries").open("rb") as stream:
        queries = [side.queries(*query) for query in marshal.load(stream)]
        deep = [(name, side.queries(*query)) for name, *query in marshal.load(stream)]
    if queries and queries[0]:
        result |= _measure_matching(side, queries)
        result |= side.size()  # Of what the trace left, before the prompts of fixed depths join it.
        for event in later:
            side.apply(side.prepare(event))
        result |= _measure_deep(side, deep)
        deepest = max((next(iter(query.values())) for query in queries), key=len)
        result |= side.extras(deepest)
    sys.stdout.write(json.dumps(result))


def _measure_applying(side: Any, events: list[Any], counts: list[int]) -> dict[str, float]:
    """Each event takes the least of its times in several passes, in which the same work falls on the same event."""
    # Room for the times beforehand, so that what the process grows by is the index.
    passes = [array("q", bytes(8 * len(events))) for _ in range(_PASSES)]
    before = _resident_bytes()
    grown = 0
    for number, times in enumerate(passes):
        if number:
            side.start()
        apply = side.apply
        for at, event in enumerate(events):
            began = perf_counter_ns()
            apply(event)
            times[at] = perf_counter_ns() - began
        if not number:
            grown = _resident_bytes() - before
    least = list(map(min, *passes))
    half = len(events) // 2
    measured = {"pairs": side.pairs()} if hasattr(side, "pairs") else {}
    return measured | {
        "events": len(events),
        "blocks": sum(counts),
        "blocks_per_second": sum(counts[half:]) / (sum(least[half:]) / 1e9),
        "worst_pause_ms": max(least) / 1e6,
        "resident_bytes": grown,
    }


def _measure_matching(side: Any, queries: list[dict[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    match = side.match
    for form in queries[0]:
        times = []
        for query in (each[form] for each in queries):
            repeats = []
            for _ in range(_PASSES):
                began = perf_counter_ns()
                match(query)
                repeats.append(perf_counter_ns() - began)
            times.append(statistics.median(repeats))
        times.sort()
        result[f"match_{form}_p50_us"] = times[len(times) // 2] / 1e3
        result[f"match_{form}_p99_us"] = times[len(times) * 99 // 100] / 1e3
    digest = 0
    for query in queries:
        digest = zlib.crc32(repr(_answer(match(next(iter(query.values()))))).encode(), digest)
    result["digest"] = digest
    return result


def _measure_deep(side: Any, queries: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """The median and the 99th percentile of each question in each form, asked for in turn with all others."""
    times: dict[str, list[int]] = {}
    match, digest = side.match, 0
    for _ in range(_PASSES):
        for name, forms in queries:
            for form, query in forms.items():
                began = perf_counter_ns()
                match(query)
                times.setdefault(f"{form}-{name}", []).append(perf_counter_ns() - began)
    for _, forms in queries:
        digest = zlib.crc32(repr(_answer(match(next(iter(forms.values()))))).encode(), digest)
    for each in times.values():
        each.sort()
    found = {name: (each[len(each) // 2] / 1e3, each[len(each) * 99 // 100] / 1e3) for name, each in times.items()}
    return {"deep": found, "deep_digest": digest}


def _answer(found: Any) -> list[tuple[int, int]]:
    return sorted((rank[0] if isinstance(rank, tuple) else rank, depth) for rank, depth in found.items())


def _median_us(call: Callable[[], object]) -> float:
    times = []
    for _ in range(21):
        began = perf_counter_ns()
        call()
        times.append(perf_counter_ns() - began)
    return statistics.median(times) / 1e3


def _resident_bytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
