"""The paged block pool of one rank: which physical block holds which key, who uses it, which goes next.

It knows numbers and keys only: what a key stands for is `cache.py`'s business, and when a request may have
blocks is the scheduler's. The rules are vLLM's, so that routers meet the real thing:

- A key may sit in several physical blocks. Nobody merges the copies, and each is evicted on its own.
- A block that nobody uses stays cached until its room is needed: least recently used first, and within one
  sequence the last block first, so that a prefix outlives its tails.
- Blocks that were never filled hold nothing worth keeping and are taken before any cached one.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

__all__ = ["BlockPool"]


class BlockPool:
    """`blocks` physical blocks, each free or used by at least one sequence, each with a key or without."""

    __slots__ = ("_cached", "_free", "_keys", "_references", "blocks")

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self._references = [0] * blocks
        self._keys: list[int | None] = [None] * blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(blocks))
        self._cached: dict[int, dict[int, None]] = {}

    @property
    def free(self) -> int:
        """Blocks that nobody uses, whether they are cached or empty."""
        return len(self._free)

    @property
    def used(self) -> int:
        """Blocks that at least one sequence uses."""
        return self.blocks - len(self._free)

    def find(self, keys: Sequence[int]) -> list[int]:
        """Return one physical block for each leading key that is cached; changes nothing."""
        found = []
        for key in keys:
            copies = self._cached.get(key)
            if copies is None:
                break
            found.append(next(iter(copies)))
        return found

    def idle(self, blocks: Iterable[int]) -> int:
        """Count those of `blocks` that `share` would take from the free ones."""
        return sum(self._references[block] == 0 for block in blocks)

    def share(self, blocks: Iterable[int]) -> None:
        """Add one user to each of `blocks`."""
        for block in blocks:
            if self._references[block] == 0:
                del self._free[block]
            self._references[block] += 1

    def take(self, count: int) -> tuple[list[int], list[int]]:
        """Take `count` free blocks for writing; return them, and the keys that were evicted, one for each copy.

        The caller has checked that `count` blocks are free.
        """
        assert count <= len(self._free), f"{count} blocks asked, {len(self._free)} free"
        taken, evicted = [], []
        for _ in range(count):
            block, _nothing = self._free.popitem(last=False)
            key = self._forget(block)
            if key is not None:
                evicted.append(key)
            self._references[block] = 1
            taken.append(block)
        return taken, evicted

    def label(self, block: int, key: int) -> None:
        """Record that `block`, in use and now full, holds `key`: later sequences may share it."""
        assert self._references[block] > 0, f"block {block} is free"
        assert self._keys[block] is None, f"block {block} has a key already"
        self._keys[block] = key
        self._cached.setdefault(key, {})[block] = None

    def release(self, blocks: Sequence[int]) -> None:
        """Remove one user from each of a sequence's `blocks`, given in the order of the sequence."""
        for block in reversed(blocks):
            assert self._references[block] > 0, f"block {block} is released more often than shared"
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free[block] = None
                if self._keys[block] is None:
                    self._free.move_to_end(block, last=False)

    def clear(self) -> bool:
        """Forget every key; refused (False) while a block is in use."""
        if self.used:
            return False
        self._keys = [None] * self.blocks
        self._cached.clear()
        return True

    def contents(self) -> Counter[int]:
        """Return every cached key with its number of physical copies."""
        return Counter({key: len(copies) for key, copies in self._cached.items()})

    def check(self) -> None:
        """Assert what must always hold; for tests."""
        assert min(self._references) >= 0
        assert {block for block, users in enumerate(self._references) if users == 0} == set(self._free)
        labelled = {(key, block) for block, key in enumerate(self._keys) if key is not None}
        assert labelled == {(key, block) for key, copies in self._cached.items() for block in copies}
        assert all(self._cached.values()), "a key without a block"

    def _forget(self, block: int) -> int | None:
        key = self._keys[block]
        if key is not None:
            self._keys[block] = None
            copies = self._cached[key]
            del copies[block]
            if not copies:
                del self._cached[key]
        return key
