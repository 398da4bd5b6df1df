"""Which KV blocks the running requests of one rank occupy, a shared prefix counted once.

Active prompts form a trie of sequence hashes. A node counts what hangs on it, its children and the prompts that end
there, so that adding or discarding a prompt costs only the blocks that it shares with nobody.
"""

from collections.abc import Sequence

__all__ = ["ActiveBlocks"]


class ActiveBlocks:
    """A multiset of prompts, as distinct blocks. Every discarded prompt must have been added before."""

    __slots__ = ("_hanging",)

    def __init__(self) -> None:
        self._hanging: dict[int, int] = {}

    def __len__(self) -> int:
        """Distinct blocks."""
        return len(self._hanging)

    def leading(self, hashes: Sequence[int]) -> int:
        """How many leading blocks of a prompt are active already."""
        # A block is here only together with all blocks before it, so bisection is exact.
        low, high = 0, len(hashes)
        while low < high:
            middle = (low + high) // 2
            if hashes[middle] in self._hanging:
                low = middle + 1
            else:
                high = middle
        return low

    def add(self, hashes: Sequence[int]) -> int:
        """Add a prompt; returns how many of its blocks were not active before."""
        if not hashes:
            return 0
        shared = self.leading(hashes)
        if shared:
            self._hanging[hashes[shared - 1]] += 1
        self._hanging.update(dict.fromkeys(hashes[shared:], 1))
        return len(hashes) - shared

    def discard(self, hashes: Sequence[int]) -> int:
        """Take a prompt out; returns how many blocks are no longer active."""
        hanging = self._hanging
        freed = 0
        for key in reversed(hashes):
            if hanging[key] > 1:
                hanging[key] -= 1
                break
            del hanging[key]
            freed += 1
        return freed
