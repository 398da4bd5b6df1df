"""The prefix index in plain Python: short, exact, and the specification that a faster one is held to.

A sequence hash names its whole prefix, so the classic radix tree needs no nodes: one dictionary per tier maps a hash
to the set of ranks that hold the block. A set of ranks is an integer, bit r for rank r; equal sets are one shared
object, because a fleet has few distinct sets and millions of blocks. Matching probes hash after hash and does work
only where the set changes. There are no parents: storing and removing are idempotent and work in any order.

Not here: what an engine can use of a match (`kvrouter.ingest`), and who the ranks are (`kvrouter.routing`).
Not thread-safe; lives on one event loop.
"""

import sys
from collections import Counter, deque
from collections.abc import Collection, Iterable, Sequence
from itertools import repeat
from operator import or_
from typing import Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kvrouter.blocks import chain_hashes
from kvrouter.index.overlap import BYTES_MAX_LEAST, RANKS_MAX, TIER_LENGTH_MAX, ArrayOverlap, Overlap, Overlaps
from kvrouter.index.snapshot import decode_tables, encode_tables

__all__ = ["Hashes", "PrefixIndex"]

Hashes: TypeAlias = Sequence[int] | NDArray[np.uint64]
_Table: TypeAlias = dict[int, int]

# Memories of shared sets and of their members; dropping one costs time, never correctness.
_SETS_MAX = 65_536
_MEMBERS_MAX = 4_096
# A dictionary's entry and its key; sets are shared.
_BYTES_PER_ENTRY = 112
# What a block is expected to take, in the index and beside it.
_BYTES_PER_NEW_BLOCK = 512


class PrefixIndex:
    """Maps sequence hashes to the ranks that hold them, per tier.

    Ranks are dense numbers 0..RANKS_MAX-1; a tier is any short name. Hashes come as a uint64 array or as a sequence
    of plain integers (faster for a few), in any order.

    Memory grows with the blocks stored, up to `bytes_max`. At the bound the index claims less than is true, never more:
    first it forgets ranks that are in doubt, the one that has been so longest first; if that is not enough, it does not
    note what is new. Removals are always done. `dropped` counts both.

    Whoever keeps something beside the index for each rank puts it under the same bound: says how much it is (`charge`),
    asks before it grows (`admit`), and learns what was lost (`losses`). While something is beside, only one rank is
    forgotten before that was asked: what is kept beside that one can go as well.

    Raises:
        ValueError: `bytes_max` is less than BYTES_MAX_LEAST.
    """

    __slots__ = (
        "_beside",
        "_bytes_max",
        "_counts",
        "_distinct",
        "_doubted",
        "_dropped",
        "_lost",
        "_members",
        "_refused_before",
        "_sets",
        "_tables",
    )

    def __init__(self, bytes_max: int | None = None) -> None:
        if bytes_max is not None and bytes_max < BYTES_MAX_LEAST:
            raise ValueError(f"bytes_max is {bytes_max}; it must be at least {BYTES_MAX_LEAST}")
        self._bytes_max = bytes_max
        self._doubted: dict[int, None] = {}
        self._dropped = {"unconfirmed": 0, "refused": 0}
        self._beside = self._refused_before = 0
        self._lost: list[int] = []
        self._tables: dict[str, _Table] = {}
        self._counts: dict[str, dict[int, int]] = {}
        self._distinct = 0
        self._sets: dict[int, int] = {}
        self._members: dict[int, tuple[int, ...]] = {}

    def __len__(self) -> int:
        """Distinct hashes held by at least one rank in at least one tier."""
        return self._distinct

    def blocks(self, rank: int, tier: str | None = None) -> int:
        """Blocks that `rank` holds in `tier`; without a tier, summed over all tiers."""
        if tier is not None:
            return self._counts.get(tier, {}).get(rank, 0)
        return sum(counts.get(rank, 0) for counts in self._counts.values())

    def tiers(self) -> tuple[str, ...]:
        """Names of the tiers in which anything was ever stored."""
        return tuple(self._tables)

    def store(self, rank: int, hashes: Hashes, tier: str = "gpu") -> None:
        """Note that `rank` holds these blocks; those it already holds are left as they are.

        Raises:
            ValueError: the rank is not in 0..RANKS_MAX-1, or the name of the tier is empty or too long.
        """
        bit = _bit(rank)
        table = self._table(tier)
        keys = _plain(hashes)
        if (alike := self._alike(table, keys)) is not None:
            if not alike & bit:
                self._join(table, keys, alike, rank, tier)
            return
        get = table.get
        previous, joined, added = -1, 0, 0
        room = self._make_room()
        for key in keys:
            holders = get(key, 0)
            if holders & bit:
                continue
            if not holders:
                if room <= 0:
                    self._dropped["refused"] += 1
                    continue
                room -= 1
            if holders is not previous:
                previous, joined = holders, self._shared(holders | bit)
            table[key] = joined
            added += 1
            if not holders:
                self._appeared(key, table)
        if added:
            counts = self._counts[tier]
            counts[rank] = counts.get(rank, 0) + added

    def store_chain(self, rank: int, hashes: Hashes, parent: int | None = None, tier: str = "gpu") -> None:  # noqa: ARG002
        """`store` for blocks each of which follows the one before it in a prompt.

        Nothing but speed depends on being told, as long as it is true: an implementation may match whole stretches of
        a chain at once.

        Args:
            rank: who holds the blocks.
            hashes: their sequence hashes, in order.
            parent: the sequence hash before the first of them; None means that it is the first of a prompt. It may be
                one that the index does not know.
            tier: where they are.
        """
        self.store(rank, hashes, tier)

    def remove(self, rank: int, hashes: Hashes, tier: str = "gpu") -> None:
        """Note that `rank` no longer holds these blocks; unknown ones are ignored."""
        bit = _bit(rank)
        table = self._tables.get(tier)
        if table is None:
            return
        keys = _plain(hashes)
        if (alike := self._alike(table, keys)) is not None:
            if alike & bit:
                self._part(table, keys, alike, rank, tier)
            return
        get = table.get
        previous, left, removed = -1, 0, 0
        for key in keys:
            holders = get(key, 0)
            if not holders & bit:
                continue
            if holders is not previous:
                previous, left = holders, self._shared(holders ^ bit)
            removed += 1
            if left:
                table[key] = left
            else:
                del table[key]
                self._vanished(key)
        if removed:
            self._counts[tier][rank] -= removed

    def clear(self, rank: int, tier: str | None = None) -> None:
        """Forget every block of `rank`, in one tier or in all; costs one pass over what the tier holds."""
        bit = _bit(rank)
        for name in [tier] if tier is not None else list(self._tables):
            if self._counts.get(name, {}).get(rank, 0):
                held = [key for key, holders in self._tables[name].items() if holders & bit]
                self.remove(rank, held, name)
                del self._counts[name][rank]

    def match(self, hashes: Hashes, exact: bool = True, tiers: Collection[str] | None = None) -> Overlap:  # noqa: FBT001, FBT002
        """How many leading blocks each rank holds, without a hole, counting from the first.

        Args:
            hashes: the prompt's sequence hashes, in order.
            exact: look at every block. False allows a bisection, which is faster on long prompts and overstates a
                rank that has a hole in the middle of its prefix.
            tiers: a block counts if it is held in one of these; None means in any.
        """
        keys = _plain(hashes)
        return ArrayOverlap.from_depths(self.match_depths(keys, tiers) if exact else self._bisect(keys, tiers))

    def match_depths(self, hashes: Sequence[int], tiers: Collection[str] | None = None) -> dict[int, int]:
        """An exact `match` in plain integers, rank to blocks, for the hot path."""
        depths: dict[int, int] = {}
        previous: int | None = -1
        alive = -1
        for position, holders in enumerate(self._holders(hashes, tiers)):
            if holders is previous:
                continue
            previous = holders
            kept = alive & (holders or 0)
            if kept == alive:
                continue
            if alive >= 0:
                for rank in self._ranks(alive ^ kept):
                    depths[rank] = position
            alive = kept
            if not kept:
                return depths
        if alive > 0:
            for rank in self._ranks(alive):
                depths[rank] = len(hashes)
        return depths

    def match_tokens(
        self, words: bytes, block_size: int, seed: int, lookahead: int = 0, tiers: Collection[str] | None = None
    ) -> dict[int, int]:
        """`match_depths` of a prompt by its tokens, of which no more need be hashed than match.

        Args:
            words: token ids as `kvrouter.blocks.token_bytes` packs them.
            block_size: tokens in a block.
            seed: what `kvrouter.blocks.hash_seed` returns.
            lookahead: tokens after a block that its hash also covers.
            tiers: as for `match`.
        """
        return self.match_depths(chain_hashes(None, words, block_size, seed, lookahead=lookahead), tiers)

    def match_best(self, hashes: Hashes, k: int = 1, tiers: Collection[str] | None = None) -> list[tuple[int, int]]:
        """The `k` ranks that hold most of a prompt, exactly matched, and how much: the deepest first, then by rank.

        Raises:
            ValueError: `k` is less than 1.
        """
        if k < 1:
            raise ValueError(f"k is {k}; it must be at least 1")
        depths = self.match_depths(_plain(hashes), tiers)
        return sorted(depths.items(), key=lambda item: (-item[1], item[0]))[:k]

    def match_many(self, prompts: Iterable[Hashes], tiers: Collection[str] | None = None) -> Overlaps:
        """An exact `match` of each of several prompts, in one call."""
        return Overlaps.of([self.match(hashes, tiers=tiers) for hashes in prompts])

    def holds(self, rank: int, hashes: Hashes, tier: str | None = None) -> NDArray[np.bool_]:
        """For each block, whether `rank` holds it, in one tier or in any."""
        bit = _bit(rank)
        keys = _plain(hashes)
        holders = self._holders(keys, None if tier is None else (tier,))
        return np.fromiter((bool((held or 0) & bit) for held in holders), dtype=np.bool_, count=len(keys))

    def doubt(self, rank: int) -> None:
        """What `rank` holds is not confirmed any more: it is what the index forgets first."""
        _bit(rank)
        self._doubted.setdefault(rank)

    def trust(self, rank: int) -> None:
        """It is confirmed again."""
        _bit(rank)
        self._doubted.pop(rank, None)

    def dropped(self) -> dict[str, int]:
        """Blocks that the bound has cost so far: `unconfirmed` ones that were forgotten, and `refused` new ones."""
        return dict(self._dropped)

    def losses(self) -> tuple[tuple[int, ...], int] | None:
        """Ranks that were forgotten and blocks that were refused since this was last asked; None if there are none."""
        refused = self._dropped["refused"] - self._refused_before
        if not refused and not self._lost:
            return None
        losses = tuple(self._lost), refused
        self._lost.clear()
        self._refused_before += refused
        return losses

    def charge(self, change: int) -> None:
        """So many bytes more are kept beside the index, or fewer."""
        self._beside += change

    def admit(self, blocks: int) -> bool:
        """Whether so many blocks more may be noted, and something beside each; if not, they count as refused."""
        if self._make_room() * _BYTES_PER_ENTRY >= blocks * _BYTES_PER_NEW_BLOCK:
            return True
        self._dropped["refused"] += blocks
        return False

    def bytes_max(self) -> int | None:
        """The bound; None: there is none."""
        return self._bytes_max

    def nbytes_beside(self) -> int:
        """What is kept beside the index, as far as it was charged."""
        return self._beside

    def nbytes(self) -> int:
        """What the index takes, about."""
        return _BYTES_PER_ENTRY * sum(map(len, self._tables.values()))

    def snapshot(self) -> bytes:
        """Everything the index knows, as checked and versioned bytes for `restore`."""
        return encode_tables(self._tables)

    @classmethod
    def restore(cls, buffer: bytes | bytearray | memoryview) -> Self:
        """Rebuild an index from `snapshot()`.

        Raises:
            SnapshotError: the bytes are damaged, truncated or of another version.
        """
        index = cls()
        index._tables = decode_tables(buffer)
        for tier, table in index._tables.items():
            counts = index._counts[tier] = {}
            for holders, blocks in Counter(table.values()).items():
                for rank in index._ranks(holders):
                    counts[rank] = counts.get(rank, 0) + blocks
        index._distinct = len(set().union(*index._tables.values()))
        return index

    def _alike(self, table: _Table, keys: Sequence[int]) -> int | None:
        """The one set of ranks that holds all of these blocks, if nothing has to be looked at block by block."""
        if len(self._tables) > 1 or self._bytes_max is not None:
            return None
        found = set(map(table.get, keys, repeat(0)))
        return found.pop() if len(found) == 1 else None

    def _join(self, table: _Table, keys: Sequence[int], holders: int, rank: int, tier: str) -> None:
        """`store` where all blocks have the same holders."""
        joined = dict.fromkeys(keys, self._shared(holders | 1 << rank))
        table.update(joined)
        self._distinct += 0 if holders else len(joined)
        counts = self._counts[tier]
        counts[rank] = counts.get(rank, 0) + len(joined)

    def _part(self, table: _Table, keys: Sequence[int], holders: int, rank: int, tier: str) -> None:
        """`remove` where all blocks have the same holders."""
        left = dict.fromkeys(keys, self._shared(holders ^ 1 << rank))
        if holders ^ 1 << rank:
            table.update(left)
        else:
            deque(map(table.__delitem__, left), maxlen=0)
            self._distinct -= len(left)
        self._counts[tier][rank] -= len(left)

    def _make_room(self) -> int:
        """How many new entries fit, once the doubted have made room for the next ones."""
        if self._bytes_max is None:
            return sys.maxsize
        bound = self._bytes_max - self._beside
        while self.nbytes() > bound - self._bytes_max // 16 and not (self._beside and self._lost):
            rank = next((each for each in self._doubted if self.blocks(each)), None)
            if rank is None:
                break
            self._doubted.pop(rank)
            self._lost.append(rank)
            self._dropped["unconfirmed"] += self.blocks(rank)
            self.clear(rank)
        return (bound - self.nbytes()) // _BYTES_PER_ENTRY

    def _bisect(self, keys: Sequence[int], tiers: Collection[str] | None) -> dict[int, int]:
        """Depths under the assumption that a rank which holds a block holds all blocks before it."""
        depths: dict[int, int] = {}
        if not keys:
            return depths
        tables = [self._tables.get(name, {}) for name in (self._tables if tiers is None else tiers)]
        # A span is two positions and who is alive at them. Between equal ones nothing can have changed; past the end
        # nobody is alive.
        spans = [(0, _held_by(tables, keys[0]), len(keys), 0)]
        while spans:
            low, before, high, after = spans.pop()
            if before == after:
                continue
            if high - low == 1:
                for rank in self._ranks(before & ~after):
                    depths[rank] = high
                continue
            middle = (low + high) // 2
            between = _held_by(tables, keys[middle]) & before
            spans += [(low, before, middle, between), (middle, between, high, after)]
        return depths

    def _holders(self, keys: Sequence[int], tiers: Collection[str] | None) -> Iterable[int | None]:
        """For each key the set of ranks that hold it, lazily; None or 0 where nobody does."""
        tables = self._tables
        names = tables if tiers is None else tiers
        found = [table for name in names if (table := tables.get(name))]
        if len(found) == 1:
            return map(found[0].get, keys)
        if not found:
            return repeat(0, len(keys))
        holders: Iterable[int] = map(found[0].get, keys, repeat(0))
        for table in found[1:]:
            holders = map(or_, holders, map(table.get, keys, repeat(0)))
        return holders

    def _table(self, tier: str) -> _Table:
        table = self._tables.get(tier)
        if table is None:
            if not 1 <= len(tier) <= TIER_LENGTH_MAX:
                raise ValueError(f"tier {tier!r} must have 1..{TIER_LENGTH_MAX} characters")
            table = self._tables[tier] = {}
            self._counts[tier] = {}
        return table

    def _shared(self, ranks: int) -> int:
        """The one object that stands for this set of ranks, so that equal sets cost one and compare by identity."""
        sets = self._sets
        if len(sets) >= _SETS_MAX:
            sets.clear()
        return sets.setdefault(ranks, ranks)

    def _ranks(self, ranks: int) -> tuple[int, ...]:
        members = self._members.get(ranks)
        if members is None:
            if len(self._members) >= _MEMBERS_MAX:
                self._members.clear()
            members = self._members[ranks] = _members(ranks)
        return members

    def _appeared(self, key: int, table: _Table) -> None:
        if len(self._tables) == 1 or not any(key in other for other in self._tables.values() if other is not table):
            self._distinct += 1

    def _vanished(self, key: int) -> None:
        if len(self._tables) == 1 or not any(key in table for table in self._tables.values()):
            self._distinct -= 1


def _bit(rank: int) -> int:
    if not 0 <= rank < RANKS_MAX:
        raise ValueError(f"rank is {rank}; it must be 0..{RANKS_MAX - 1}")
    return 1 << rank


def _plain(hashes: Hashes) -> Sequence[int]:
    if isinstance(hashes, np.ndarray):
        plain: list[int] = hashes.tolist()
        return plain
    return hashes


def _held_by(tables: Iterable[_Table], key: int) -> int:
    holders = 0
    for table in tables:
        holders |= table.get(key, 0)
    return holders


def _members(ranks: int) -> tuple[int, ...]:
    found = []
    while ranks:
        lowest = ranks & -ranks
        found.append(lowest.bit_length() - 1)
        ranks ^= lowest
    return tuple(found)
