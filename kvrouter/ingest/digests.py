"""Compare what we believe of a rank's cache with what its publisher says that it holds, in a few numbers.

Nothing is kept from batch to batch: a digest comes every half minute, and a pass over the copies of 100 000 blocks
takes a few milliseconds.
"""

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from kvrouter.events import tier_of
from kvrouter.ingest.rank_cache import RankCache
from kvrouter.ingest.waiting import DigestRows

__all__ = ["agrees", "xor_of"]

_Place = tuple[str, int]


def agrees(cache: RankCache, rows: DigestRows) -> bool:
    """Whether `cache` has copies of just the engine hashes that `rows` tell of, in every place.

    Media of one tier are one place to us: where a publisher has blocks in several of them, which may be the same
    ones, only the others are compared. Places that are not on the rank are not ours to know.
    """
    told: dict[_Place, tuple[int, int]] = {}
    ambiguous: set[_Place] = set()
    for medium, group, count, xor in rows:
        tier = tier_of(medium)
        if tier is None or not count:
            continue
        if (tier, group) in told:
            ambiguous.add((tier, group))
        told[tier, group] = count, xor
    held = cache.copies()
    return all(
        _is(held.get(place, ()), *told.get(place, (0, 0)))
        for place in told.keys() | held.keys()
        if place not in ambiguous
    )


def xor_of(hashes: Collection[int]) -> int:
    """Return the exclusive or of `kvrouter.events.digest.mix64` over `hashes`."""
    values = np.fromiter(hashes, np.uint64, len(hashes))
    return int(np.bitwise_xor.reduce(_mix64(values))) if len(values) else 0


def _is(hashes: Collection[int], count: int, xor: int) -> bool:
    return len(hashes) == count and xor_of(hashes) == xor


def _mix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """All at once what `kvrouter.events.digest.mix64` does to one; products are modulo 2^64 by themselves."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
