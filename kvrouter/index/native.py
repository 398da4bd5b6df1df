"""The prefix index of the native core: the contract of `kvrouter.index.reference`, many times faster.

What every method does is said there. Here is only what is better said in Python than in C: results as arrays, and the
seal of snapshots, whose format both implementations share. Hashes come as a uint64 array, or anything else that has a
buffer of such numbers, without a copy, or as a sequence of plain integers. Integers that do not fit into 64 bits are
refused with OverflowError. Where memory ends, a method raises MemoryError, and the index is whole: a change may then be
made in part.

Import it only where `kvrouter.native_core.present`.
"""

from collections.abc import Collection, Iterable
from typing import Self

import numpy as np
from numpy.typing import NDArray

from kvrouter import native_core
from kvrouter.errors import SnapshotError
from kvrouter.index.overlap import Overlaps
from kvrouter.index.reference import Hashes
from kvrouter.index.snapshot import seal, unseal

__all__ = ["PrefixIndex"]


class PrefixIndex(native_core.native.PrefixIndex):
    """Maps sequence hashes to the ranks that hold them, per tier; see `kvrouter.index.reference.PrefixIndex`."""

    __slots__ = ()

    def match_many(self, prompts: Iterable[Hashes], tiers: Collection[str] | None = None) -> Overlaps:
        """An exact `match` of each of several prompts, in one call."""
        ranks, blocks, ends = self.match_many_arrays(prompts, tiers)
        return Overlaps(
            np.frombuffer(ranks, np.uint32), np.frombuffer(blocks, np.uint32), np.frombuffer(ends, np.uint32)
        )

    def holds(self, rank: int, hashes: Hashes, tier: str | None = None) -> NDArray[np.bool_]:
        """For each block, whether `rank` holds it, in one tier or in any."""
        return np.frombuffer(self.holds_bytes(rank, hashes, tier), np.bool_)

    def snapshot(self) -> bytes:
        """Everything the index knows, as checked and versioned bytes for `restore`."""
        return seal(self.dump(), len(self.tiers()))

    @classmethod
    def restore(cls, buffer: bytes | bytearray | memoryview) -> Self:
        """Rebuild an index from `snapshot()`.

        Raises:
            SnapshotError: the bytes are damaged, truncated or of another version.
        """
        index = cls()
        tables, tiers = unseal(buffer)
        try:
            index.load(tables, tiers)
        except ValueError as error:
            raise SnapshotError(f"index snapshot is damaged: {error}") from error
        return index
