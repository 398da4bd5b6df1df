"""One index under the workload of `benchmarks.index`, alone in its process: `index_side.py KIND FOLDER [CORE]`.

Runs in the Python of the peer too, which has neither this project nor numpy: only what KIND needs is imported. With
CORE, all of the process stays on one core: Dynamo's tree hands each call to a thread of its own and waits for it, which
is fastest without a second core to wake. Prints one JSON object.
"""

import gc
import json
import marshal
import os
import statistics
import sys
import zlib
from array import array
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter, perf_counter_ns, process_time_ns
from typing import Any

_PASSES = 3
# As many batches as a subscriber hands over at once, where so many of one source wait.
_RUN_BATCHES = 64
_CHECKED_EVENTS = 64


class _Ours:
    """One of our implementations."""

    matches = True

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
        return (1, (rank, hashes, parent)) if stores else (0, (rank, hashes))

    def calls(self) -> tuple[Callable[..., object], ...]:
        return self.index.remove, self.index.store_chain

    def queries(self, hashes: bytes, local: bytes) -> dict[str, Any]:  # noqa: ARG002
        array = self._np.frombuffer(hashes, self._np.uint64)
        return {"array": array, "list": array.tolist()}

    def match(self, query: Any) -> dict[int, int]:
        return self.index.match_depths(query)  # type: ignore[no-any-return]

    def answer(self, query: Any) -> Any:
        """The answer as the index gives it, of which no dictionary has been made."""
        return self.index.match(query)

    def read(self, answer: Any) -> dict[int, int]:
        return answer.depths()  # type: ignore[no-any-return]

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

    matches = True

    def __init__(self, _kind: str) -> None:
        from dynamo._core import RadixTree  # noqa: PLC0415

        self._make = RadixTree
        self.start()

    def start(self) -> None:
        self.index: Any = self._make()

    def prepare(self, event: Any) -> Any:
        return 0, (event[0], event[2])

    def calls(self) -> tuple[Callable[..., object], ...]:
        return (self.index.apply_event,)

    def size(self) -> dict[str, int]:
        return {}

    def queries(self, hashes: bytes, local: bytes) -> dict[str, Any]:  # noqa: ARG002
        return {"list": memoryview(local).cast("Q").tolist()}

    def match(self, query: Any) -> Any:
        return self.index.find_matches(query).scores

    def answer(self, query: Any) -> Any:
        """The answer as the tree gives it: its dictionary is made when `scores` is read."""
        return self.index.find_matches(query)

    def read(self, answer: Any) -> Any:
        return answer.scores

    def extras(self, query: Any) -> dict[str, float]:  # noqa: ARG002
        return {}


class _DynamoFromBytes(_Dynamo):
    """Dynamo's radix tree where it is given what engines send, as our ingest is: read, hashed, then applied.

    The tree takes an event as JSON only. That is written beforehand, and its writing is not counted.
    """

    matches = False

    def __init__(self, kind: str) -> None:
        from dynamo._core import compute_block_hash_for_seq  # noqa: PLC0415

        self._hash, self._read = compute_block_hash_for_seq, _find_decoder()
        self._to_check = _CHECKED_EVENTS
        super().__init__(kind)

    def prepare(self, event: Any) -> Any:
        (rank, _, payload, _), (_, _, ready, _) = event
        if self._to_check:
            self._to_check -= 1
            self._check(payload, ready)
        return 0, (rank, payload, ready)

    def _check(self, payload: bytes, ready: bytes) -> None:
        """What is hashed has to be what the JSON says."""
        stored = json.loads(ready)["data"].get("stored")
        for event in self._read(payload)[1]:
            if stored and self._hash(event["token_ids"], event["block_size"]) != [
                block["tokens_hash"] for block in stored["blocks"]
            ]:
                raise SystemExit("the tokens of an event do not have the hashes that its JSON says")

    def calls(self) -> tuple[Callable[..., object], ...]:
        return (self._receive,)

    def _receive(self, rank: int, payload: bytes, ready: bytes) -> None:
        for event in self._read(payload)[1]:
            if event["type"] == "BlockStored":
                self._hash(event["token_ids"], event["block_size"])
        self.index.apply_event(rank, ready)


def _find_decoder() -> Callable[[bytes], Any]:
    """What reads msgpack for the peer: the fastest that is installed there."""
    try:
        import msgspec  # noqa: PLC0415
    except ImportError:
        import msgpack  # noqa: PLC0415

        return msgpack.unpackb  # type: ignore[no-any-return]
    return msgspec.msgpack.Decoder().decode


class _Ingest:
    """Our whole path from engine bytes to the index, aliases included."""

    matches = False

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
        return 0, (event[0], event[2])

    def calls(self) -> tuple[Callable[..., object], ...]:
        return (self._receive,)

    def _receive(self, rank: int, payload: bytes) -> None:
        source, number = self._place(rank)
        self.ingest.receive(source, number, payload, now=0.0)
        self._next[rank] = number + 1

    def _place(self, rank: int) -> tuple[Any, int]:
        source = self._sources.get(rank)
        if source is None:
            source = self._sources[rank] = self._source(str(rank), 0)
            self.ingest.open(source, rank, now=0.0)
            self._next[rank] = 0
        return source, self._next[rank]

    def pairs(self) -> int:
        """Blocks held, summed over the ranks."""
        return sum(self._index.blocks(rank) for rank in self._next)


class _IngestRuns(_Ingest):
    """The same where what one source says in a row is taken in one call, as a subscriber does when several wait."""

    def join(self, events: list[Any], counts: list[int]) -> tuple[list[Any], list[int]]:
        """Successive batches of one source as one event."""
        runs: list[Any] = []
        blocks: list[int] = []
        for (_, (rank, payload)), count in zip(events, counts, strict=True):
            if runs and runs[-1][1][0] == rank and len(runs[-1][1][1]) < _RUN_BATCHES:
                runs[-1][1][1].append(payload)
                blocks[-1] += count
            else:
                runs.append((0, (rank, [payload])))
                blocks.append(count)
        return runs, blocks

    def _receive(self, rank: int, payloads: Any) -> None:
        source, number = self._place(rank)
        taken = 0
        while taken < len(payloads):
            taken += self.ingest.receive_run(source, number + taken, payloads[taken:] if taken else payloads, now=0.0)[
                0
            ]
        self._next[rank] = number + taken


_SIDES = {
    "native": _Ours,
    "reference": _Ours,
    "dynamo": _Dynamo,
    "dynamo-from-bytes": _DynamoFromBytes,
    "ingest": _IngestRuns,
    "ingest-singly": _Ingest,
}
_FILES = {
    "native": ["hashes"],
    "reference": ["hashes"],
    "dynamo": ["dynamo"],
    "dynamo-from-bytes": ["vllm", "dynamo"],
    "ingest": ["vllm"],
    "ingest-singly": ["vllm"],
}


def main() -> None:
    """Run one side and print what was measured."""
    kind, folder = sys.argv[1], Path(sys.argv[2])
    if len(sys.argv) > 3 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(sys.argv[3])})
    side: Any = _SIDES[kind](kind)
    events, counts, later = _read_events(side, kind, folder)
    if hasattr(side, "join"):
        events, counts = side.join(events, counts)
    gc.collect()
    gc.freeze()  # A collection would look at all events, and be counted as the index's.
    gc.disable()
    result = _measure_applying(side, events, counts)
    events.clear()
    if side.matches:
        with (folder / "queries").open("rb") as stream:
            queries = [side.queries(*query) for query in marshal.load(stream)]
            deep = [(name, side.queries(*query)) for name, *query in marshal.load(stream)]
        result |= _measure_matching(side, queries)
        result |= side.size()  # Of what the trace left, before the prompts of fixed depths join it.
        calls = side.calls()
        for kind_of_call, arguments in map(side.prepare, later):
            calls[kind_of_call](*arguments)
        result |= _measure_deep(side, deep)
        deepest = max((next(iter(query.values())) for query in queries), key=len)
        result |= side.extras(deepest)
    sys.stdout.write(json.dumps(result))


def _read_events(side: Any, kind: str, folder: Path) -> tuple[list[Any], list[int], list[Any]]:
    """The events as a side takes them, how many blocks each is about, and what joins the index for other questions."""
    events: list[Any] = []
    counts: list[int] = []
    with ExitStack() as files:
        streams = [files.enter_context((folder / name).open("rb")) for name in _FILES[kind]]
        while (batch := marshal.load(streams[0])) is not None:
            forms = zip(batch, *map(marshal.load, streams[1:]), strict=True)
            events += [side.prepare(event[0] if len(event) == 1 else event) for event in forms]
            counts += [event[3] for event in batch]
        later = marshal.load(streams[0]) if side.matches else []
    return events, counts, later


def _measure_applying(side: Any, events: list[Any], counts: list[int]) -> dict[str, float]:
    """Each event takes the least of its times in several passes, in which the same work falls on the same event."""
    # Room for the times beforehand, so that what the process grows by is the index.
    passes = [array("q", bytes(8 * len(events))) for _ in range(_PASSES)]
    before = _resident_bytes()
    grown, half, processor = 0, len(events) // 2, []
    for number, times in enumerate(passes):
        if number:
            side.start()
        calls = side.calls()
        _time(calls, events[:half], times, 0)
        began = process_time_ns()
        _time(calls, events[half:], times, half)
        processor.append(process_time_ns() - began)
        if not number:
            grown = _resident_bytes() - before
    least = list(map(min, *passes))
    measured = {"pairs": side.pairs()} if hasattr(side, "pairs") else {}
    blocks = sum(counts[half:])
    return measured | {
        "events": len(events),
        "blocks": sum(counts),
        "blocks_per_second": blocks / (sum(least[half:]) / 1e9),
        "blocks_per_cpu_second": blocks / (min(processor) / 1e9),
        "worst_pause_ms": max(least) / 1e6,
        "resident_bytes": grown,
    }


def _time(calls: tuple[Callable[..., object], ...], events: list[Any], times: "array[int]", first: int) -> None:
    """Apply events and note what each takes, from `first` on."""
    for at, (call, arguments) in enumerate(events, first):
        began = perf_counter_ns()
        calls[call](*arguments)
        times[at] = perf_counter_ns() - began


def _measure_matching(side: Any, queries: list[dict[str, Any]]) -> dict[str, Any]:
    """Each question in each form, all of them once in each pass: what was asked last is not what is asked next."""
    asked = {"match": side.match, "answer": side.answer}
    times: dict[str, list[int]] = {}
    for _ in range(_PASSES):
        for name, ask in asked.items():
            for form in queries[0]:
                noted = times.setdefault(f"{name}_{form}", [])
                for query in (each[form] for each in queries):
                    began = perf_counter_ns()
                    ask(query)
                    noted.append(perf_counter_ns() - began)
    result: dict[str, Any] = {}
    for name, noted in times.items():
        noted.sort()
        result[f"{name}_p50_us"] = noted[len(noted) // 2] / 1e3
        result[f"{name}_p99_us"] = noted[len(noted) * 99 // 100] / 1e3
    digest = 0
    for query in queries:
        first = next(iter(query.values()))
        found = _answer(side.match(first))
        if found != _answer(side.read(side.answer(first))):
            raise SystemExit("the two ways to ask have two answers")
        digest = zlib.crc32(repr(found).encode(), digest)
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
