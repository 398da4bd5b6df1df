"""The prefix index: which ranks hold which blocks, and how much of a prompt each has.

`PrefixIndex` is the fastest implementation that is present; `implementation` names it. Every implementation passes
the same contract suite, and `reference` is the specification of them all.
"""

from typing import TYPE_CHECKING

from kvrouter import native_core
from kvrouter.index.overlap import RANKS_MAX, Overlap, Overlaps

if TYPE_CHECKING or not native_core.present:
    from kvrouter.index.reference import PrefixIndex
else:
    from kvrouter.index.native import PrefixIndex

__all__ = ["RANKS_MAX", "Overlap", "Overlaps", "PrefixIndex", "implementation"]

implementation = native_core.implementation
