"""One index as it grows, alone in its process: `index_scaling_side.py KIND SIZE…`, sizes in pairs of block and rank.

Runs in the Python of the peer too, which has neither this project nor numpy. Prints one JSON list, an object per size.
"""

import gc
import json
import os
import random
import statistics
import sys
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter, perf_counter_ns
from typing import Any

_RANKS = 64
_CHAIN_BLOCKS = 512
# Each chain is held by one to three ranks, so by two on average.
_HOLDERS = (1, 2, 3)
_PROMPTS = 12
_CHAINS = 200
_ROUNDS = 9
_DEPTHS = (512, 8192)

Make = Callable[[], Any]


def ours(kind: str) -> tuple[Make, Callable[..., None], Callable[..., Any]]:
    """How to make one of our indexes, store a chain and match."""
    if kind == "native":
        from kvrouter.index.native import PrefixIndex  # noqa: PLC0415 - see the module
    else:
        from kvrouter.index.reference import PrefixIndex  # type: ignore[assignment]  # noqa: PLC0415

    def store(index: Any, rank: int, chain: tuple[Any, Any]) -> None:
        index.store_chain(rank, chain[0])

    return PrefixIndex, store, lambda index, query: index.match_depths(query)


def dynamos(_kind: str) -> tuple[Make, Callable[..., None], Callable[..., Any]]:
    """The same of Dynamo's radix tree."""
    from dynamo._core import RadixTree  # noqa: PLC0415

    def store(index: Any, rank: int, chain: tuple[Any, Any]) -> None:
        index.apply_event(rank, chain[1])

    return RadixTree, store, lambda index, query: index.find_matches(query).scores


def chains(source: random.Random, blocks: int, length: int, kind: str) -> Iterator[tuple[Any, Any]]:
    """So many blocks in chains: as an array of ours, and as an event of the peer's."""
    for _ in range(blocks // length):
        hashes = array("Q", source.randbytes(8 * length))
        yield hashes, _event(hashes) if kind == "dynamo" else None


def _event(hashes: "array[int]") -> bytes:
    """Blocks are known by one number in both of the peer's namespaces; it does not compare them."""
    blocks = ",".join(f'{{"block_hash":{key},"tokens_hash":{key}}}' for key in hashes)
    return f'{{"event_id":0,"data":{{"stored":{{"parent_hash":null,"blocks":[{blocks}]}}}}}}'.encode()


def main() -> None:
    """Grow, and measure at each size."""
    kind, sizes = sys.argv[1], [int(size) for size in sys.argv[2:]]
    make, store, match = (dynamos if kind == "dynamo" else ours)(kind)
    source, found, held = random.Random(1), [], 0
    prompts: dict[int, list[tuple[Any, Any]]] = {}
    gc.disable()
    index = make()
    before = _bytes_of(index)
    for size in sizes:
        for depth in _DEPTHS:
            if depth not in prompts and held + depth * _PROMPTS < size:
                prompts[depth] = list(chains(source, depth * _PROMPTS, depth, kind))
                for number, prompt in enumerate(prompts[depth]):
                    store(index, number % _RANKS, prompt)
                held += depth * _PROMPTS
        rates = []
        while held < size:
            length = min(_CHAIN_BLOCKS, max(1, (size - held) // 2))
            batch = list(chains(source, min(_CHAINS * length, max(length, (size - held) // 2)), length, kind))
            stored, began = 0, perf_counter()
            for number, chain in enumerate(batch):
                for step in range(_HOLDERS[number % len(_HOLDERS)]):
                    store(index, (number + step) % _RANKS, chain)
                    stored += length
            rates.append(stored / (perf_counter() - began))
            held += stored
        # Of the batches before the size was reached: the last ones are small, and any may have been interrupted.
        point = {"pairs": size, "blocks_per_second": statistics.median(rates)}
        point["bytes_per_pair"] = (_bytes_of(index) - before) / held
        for depth in _DEPTHS:
            point[f"match_{depth}_us"] = _measure(index, match, prompts[depth], kind) if depth in prompts else 0.0
        found.append(point)
    sys.stdout.write(json.dumps(found))


def _bytes_of(index: Any) -> int:
    """What the index says of itself, or its process takes."""
    return int(index.nbytes()) if hasattr(index, "nbytes") else _resident_bytes()


def _measure(index: Any, match: Callable[..., Any], prompts: list[tuple[Any, Any]], kind: str) -> float:
    """Median microseconds of a match, each prompt in turn."""
    queries = [prompt[0].tolist() if kind == "dynamo" else prompt[0] for prompt in prompts]
    times = []
    for _ in range(_ROUNDS):
        for query in queries:
            began = perf_counter_ns()
            match(index, query)
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
