"""Prompts of fixed depths for the index benchmark: held whole, held in part, and not at all.

They are stored beside what the trace left in the index, by some ranks whole and by one to the half. Of each depth there
are several, asked for in turn with all others, so that none is in the processor's caches only because it is measured.
"""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.index_workload import Change

__all__ = ["DEPTHS", "KINDS", "deep_changes", "deep_queries"]

DEPTHS = (16, 128, 512, 2048, 8192)
KINDS = ("hit", "partial", "miss")
_PROMPTS_MAX = 48
_BLOCKS_PER_DEPTH = 65_536
_HOLDERS = 3
_EVENT_BLOCKS_MAX = 512

_Row = NDArray[np.uint64]


def _prompts(depth: int, depths: int) -> list[tuple[_Row, _Row]]:
    """Sequence hashes and local hashes of the prompts of one depth, always the same."""
    numbers = np.random.default_rng(depth)
    count = min(_PROMPTS_MAX, _BLOCKS_PER_DEPTH // depths)
    pairs = [numbers.integers(0, 2**64, size=(2, depths), dtype=np.uint64) for _ in range(count)]
    return [(pair[0], pair[1]) for pair in pairs]


def deep_changes(ranks: int) -> Iterator[Change]:
    """The events that store them."""
    for depth in DEPTHS:
        for number, (hashes, local) in enumerate(_prompts(depth, depth)):
            for step in range(_HOLDERS + 1):
                stop = depth // 2 if step == _HOLDERS else depth
                for start in range(0, stop, _EVENT_BLOCKS_MAX):
                    part = slice(start, min(start + _EVENT_BLOCKS_MAX, stop))
                    parent = int(hashes[start - 1]) if start else None
                    tokens = np.zeros(1, np.uint32)  # Not looked at; that there are some tells a store.
                    yield Change((number + step) % ranks, parent, hashes[part], local[part], tokens)


def deep_queries() -> list[tuple[str, bytes, bytes]]:
    """A name, sequence hashes and local hashes of each question, in random order."""
    found: list[tuple[str, bytes, bytes]] = []
    for depth in DEPTHS:
        others = _prompts(depth + 1, depth)
        for (hashes, local), (other, other_local) in zip(_prompts(depth, depth), others, strict=True):
            half = depth // 2
            forms: dict[str, tuple[Any, Any]] = {
                "hit": (hashes, local),
                "partial": (
                    np.concatenate([hashes[:half], other[half:]]),
                    np.concatenate([local[:half], other_local[half:]]),
                ),
                "miss": (other, other_local),
            }
            found += [(f"{kind}-{depth}", row.tobytes(), names.tobytes()) for kind, (row, names) in forms.items()]
    random.Random(1).shuffle(found)
    return found
