"""Physical copies of blocks in one place: one tier and one group of layers of one rank.

vLLM announces every copy of a block, and its removal, on its own; a block is cached while any
copy is. Two engine hashes may name one of our blocks, so its names are counted too. Pure counting:
what the counts mean for the index is `block_table`'s to say.
"""

from collections.abc import Sequence

__all__ = ["Copies"]


class Copies:
    """Copies per engine hash; per sequence hash, how many engine hashes with copies are known to name it."""

    __slots__ = ("by_hash", "by_key")

    def __init__(self) -> None:
        self.by_hash: dict[int, int] = {}
        self.by_key: dict[int, int] = {}

    def add_hashes(self, hashes: Sequence[int]) -> Sequence[int]:
        """Count one more copy of each; returns those that had none."""
        counts = self.by_hash
        if counts.keys().isdisjoint(hashes):
            size = len(counts)
            counts.update(dict.fromkeys(hashes, 1))
            if len(counts) - size == len(hashes):
                return hashes
            for engine_hash in hashes:  # An event that names a hash twice; nobody is known to do so.
                counts[engine_hash] = 0
        first = []
        for engine_hash in hashes:
            count = counts.get(engine_hash, 0)
            if not count:
                first.append(engine_hash)
            counts[engine_hash] = count + 1
        return first

    def add_keys(self, keys: Sequence[int]) -> Sequence[int]:
        """Count one more name of each known block; returns those that had none."""
        counts = self.by_key
        if counts.keys().isdisjoint(keys):
            size = len(counts)
            counts.update(dict.fromkeys(keys, 1))
            if len(counts) - size == len(keys):
                return keys
            for key in keys:
                counts[key] = 0
        new = []
        for key in keys:
            count = counts.get(key, 0)
            if not count:
                new.append(key)
            counts[key] = count + 1
        return new

    def remove_hash(self, engine_hash: int) -> int:
        """Count one copy less; returns how many are left, -1 if there was none."""
        count = self.by_hash.get(engine_hash, 0) - 1
        if count > 0:
            self.by_hash[engine_hash] = count
        elif count == 0:
            del self.by_hash[engine_hash]
        return count

    def remove_key(self, key: int) -> bool:
        """Count one name of a known block less; returns whether that was the last."""
        count = self.by_key.get(key, 0) - 1
        if count > 0:
            self.by_key[key] = count
            return False
        self.by_key.pop(key, None)
        return True

    def clear(self) -> None:
        """Forget all copies."""
        self.by_hash.clear()
        self.by_key.clear()
