"""What a match finds, and the bounds that every index keeps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["BYTES_MAX_LEAST", "RANKS_MAX", "TIER_LENGTH_MAX", "ArrayOverlap", "Overlap", "Overlaps"]

# Dense rank numbers are 0..RANKS_MAX-1. A bound keeps a wild rank from growing every set of ranks.
RANKS_MAX = 4096
TIER_LENGTH_MAX = 64
# What is reserved for the next growth must fit as well.
BYTES_MAX_LEAST = 1 << 20


class Overlap(Protocol):
    """How many leading blocks of a prompt each rank holds; ranks that hold none are absent.

    `ranks` and `blocks` are uint32 arrays of one length, ordered by rank. The native core makes them, and the
    dictionary, each time they are asked for: an answer about thousands of ranks costs little until somebody reads it.
    """

    @property
    def ranks(self) -> NDArray[np.uint32]:
        """Those that hold the first block."""
        ...

    @property
    def blocks(self) -> NDArray[np.uint32]:
        """How many each of them holds without a hole."""
        ...

    def depths(self) -> dict[int, int]:
        """The same as plain integers, rank to blocks."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class ArrayOverlap:
    """An `Overlap` whose arrays are there."""

    ranks: NDArray[np.uint32]
    blocks: NDArray[np.uint32]

    @classmethod
    def from_depths(cls, depths: dict[int, int]) -> Self:
        """The same as arrays."""
        count = len(depths)
        ranks = sorted(depths)
        return cls(
            np.fromiter(ranks, dtype=np.uint32, count=count),
            np.fromiter(map(depths.__getitem__, ranks), dtype=np.uint32, count=count),
        )

    def depths(self) -> dict[int, int]:
        """The same as plain integers, rank to blocks."""
        return dict(zip(self.ranks.tolist(), self.blocks.tolist(), strict=True))


@dataclass(frozen=True, slots=True, eq=False)
class Overlaps:
    """The overlaps of several prompts, one after the other in two uint32 arrays.

    That of prompt p is `ranks[ends[p - 1]:ends[p]]`, and `blocks` likewise; the first one begins at 0.
    """

    ranks: NDArray[np.uint32]
    blocks: NDArray[np.uint32]
    ends: NDArray[np.uint32]

    @classmethod
    def of(cls, overlaps: Sequence[Overlap]) -> Self:
        """Put them behind one another."""
        none = np.empty(0, np.uint32)
        return cls(
            np.concatenate([none, *(each.ranks for each in overlaps)]),
            np.concatenate([none, *(each.blocks for each in overlaps)]),
            np.cumsum([len(each.ranks) for each in overlaps], dtype=np.uint32),
        )

    def __len__(self) -> int:
        """How many prompts."""
        return len(self.ends)

    def __getitem__(self, prompt: int) -> Overlap:
        """That of one prompt."""
        if not 0 <= prompt < len(self.ends):
            raise IndexError(f"prompt {prompt} of {len(self.ends)}")
        part = slice(int(self.ends[prompt - 1]) if prompt else 0, int(self.ends[prompt]))
        return ArrayOverlap(self.ranks[part], self.blocks[part])
