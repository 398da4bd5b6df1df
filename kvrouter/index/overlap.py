"""What a match finds, and the bounds that every index keeps."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["RANKS_MAX", "TIER_LENGTH_MAX", "Overlap"]

# Dense rank numbers are 0..RANKS_MAX-1. A bound keeps a wild rank from growing every set of ranks.
RANKS_MAX = 4096
TIER_LENGTH_MAX = 64


@dataclass(frozen=True, slots=True, eq=False)
class Overlap:
    """How many leading blocks of a prompt each rank holds; ranks that hold none are absent.

    `ranks` and `blocks` are uint32 arrays of one length, ordered by rank.
    """

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
