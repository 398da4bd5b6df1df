"""What one rank has cached, as its events tell: applies batches, keeps the index in step.

Three things are kept apart. Copies are counted from the moment they are announced. What a hash
means may become known later, and stays known after the copies are gone (`aliases`). The index
holds a block of the main group while there is a copy whose meaning is known. So orphans,
hash-only stores and masked stores need no cases of their own: they are copies whose meaning waits.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from kvrouter.events import AllBlocksCleared, BlockRemoved, BlockStored, Event, tier_of
from kvrouter.index import PrefixIndex
from kvrouter.ingest.aliases import AliasMap
from kvrouter.ingest.copies import Copies
from kvrouter.ingest.limits import IngestLimits
from kvrouter.ingest.profile import Profile

__all__ = ["RankCache"]

_GROUPS_MAX = 256


class RankCache:
    """The cached blocks of one dense `rank`. Never raises on what an engine says."""

    def __init__(self, index: PrefixIndex, rank: int, limits: IngestLimits, block_size: int | None) -> None:
        self.rank = rank
        self.orphans_dropped = self.unresolved_dropped = 0
        self.ignored: dict[str, int] = {}
        self._index = index
        self._limits = limits
        self._assumed_block_size = block_size or limits.block_size
        self._aliases = AliasMap()
        self._pools: dict[tuple[str, int], Copies] = {}
        self._unresolved: OrderedDict[int, None] = OrderedDict()
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._names_namespaces = False
        self._clears_all_tiers = False
        self._repeats = False
        self.profile = Profile(self._assumed_block_size)

    @property
    def orphans(self) -> int:
        """Blocks that wait for their parent."""
        return self._aliases.orphan_blocks

    @property
    def unresolved(self) -> int:
        """Hashes with copies whose meaning is not known."""
        return len(self._unresolved)

    def blocks(self, tier: str = "gpu", group: int | None = None) -> dict[int, int]:
        """Copies per sequence hash in one place; the main group unless another is named. Not to be changed."""
        pool = self._pools.get((tier, self.profile.main if group is None else group))
        return pool.by_key if pool is not None else {}

    def copies(self) -> dict[tuple[str, int], dict[int, int]]:
        """Copies per engine hash, for each (tier, group); for checks against an engine's own dump."""
        return {place: dict(pool.by_hash) for place, pool in self._pools.items() if pool.by_hash}

    def name_adapter(self, lora_id: int, name: str) -> None:
        """Say which adapter an engine means that sends numbers instead of names."""
        self._aliases.name_adapter(lora_id, name)

    def apply(self, events: Iterable[Event]) -> bool:
        """Apply one batch; returns whether the layout of the cache turned out different."""
        events = tuple(events)
        changed = self._observe(events)
        if len(self.profile.groups) > 1:
            self._learn_from_full_groups(events)
        for event in events:
            if isinstance(event, BlockStored):
                self._store(event)
            elif isinstance(event, BlockRemoved):
                self._remove(event)
            else:
                assert isinstance(event, AllBlocksCleared)
                self._clear_as_engine()
        return changed

    def drop(self) -> None:
        """Forget all blocks and all hashes: what follows belongs to another life, or batches between are lost."""
        for (tier, group), pool in self._pools.items():
            if group == self.profile.main:
                self._index.remove(self.rank, list(pool.by_key), tier)
        self._pools.clear()
        self._aliases.clear()
        self._unresolved.clear()
        self._idle.clear()

    def restart(self) -> None:
        """`drop`, and forget the layout too: the new life may have another one."""
        self.drop()
        self.profile = Profile(self._assumed_block_size)
        self._names_namespaces = self._clears_all_tiers = self._repeats = False

    def _observe(self, events: Sequence[Event]) -> bool:
        """Learn the layout from the whole batch before any of it is applied: later groups may be finer."""
        profile, changed = self.profile, False
        unit, main = profile.shape.unit, profile.main
        for event in events:
            if isinstance(event, BlockStored) and event.block_size and self._describes_layout(event):
                changed |= profile.observe(event)
        if profile.main != main:
            self._move_index(main, profile.main)
        if profile.shape.unit != unit:
            self.drop()  # Keys of another block size say nothing.
        return changed

    def _describes_layout(self, event: BlockStored) -> bool:
        return tier_of(event.medium) == "gpu" and 0 <= (event.group_idx or 0) < _GROUPS_MAX

    def _store(self, event: BlockStored) -> None:
        tier = self._place(event)
        if tier is None or not event.block_hashes:
            return
        if event.sequence_hashes is not None:
            self._learn_stated(event, event.sequence_hashes)
        elif event.token_ids:
            self._learn(event, tier)
        hashes = event.block_hashes
        group = event.group_idx or 0
        pool = self._pool(tier, group)
        if tier == "gpu" and self._is_repetition(event, pool):
            self._ignore("repetition", len(hashes))
            return
        pool.add_hashes(hashes)
        if self._idle and not self._idle.keys().isdisjoint(hashes):
            for engine_hash in hashes:
                self._idle.pop(engine_hash, None)
        keys = list(map(self._aliases.keys.get, hashes))
        if None in keys:
            self._park(hashes)
        known = [key for key in keys if key is not None]
        added = pool.add_keys(known)
        if added and group == self.profile.main:
            self._index.store(self.rank, added, tier)

    def _learn_from_full_groups(self, events: Iterable[Event]) -> None:
        """Other groups name their blocks by hashes that a full group explains, maybe later in the same batch."""
        groups, known = self.profile.groups, self._aliases.keys
        for event in events:
            if isinstance(event, BlockStored) and event.token_ids and self._describes_layout(event):
                group = groups.get(event.group_idx or 0)
                rooted = event.parent_block_hash is None or event.parent_block_hash in known
                if rooted and group is not None and group.role == "full":
                    self._learn(event, "gpu")

    def _is_repetition(self, event: BlockStored, pool: Copies) -> bool:
        """Whether vLLM repeats what it holds because a request asked for `kv_cache_report_mode: full`.

        Such a report starts at the root and names blocks that are all there already; no copy is made. With full
        attention alone a real store never looks like that, it would have been a hit; in hybrid models it may. Only
        a prompt of exactly one block does, so one block alone counts as a repetition once longer ones were seen.
        """
        if event.parent_block_hash is not None or event.kv_cache_spec_kind is None or len(self.profile.groups) != 1:
            return False
        if not self.profile.has_full or not all(map(pool.by_hash.__contains__, event.block_hashes)):
            return False
        self._repeats = self._repeats or len(event.block_hashes) > 1
        return self._repeats

    def _learn(self, event: BlockStored, tier: str) -> None:
        unit, aliases = self.profile.shape.unit, self._aliases
        if aliases.knows_all(event.block_hashes):
            return None
        if not event.block_size or event.block_size % unit or len(event.token_ids) % event.block_size:
            return self._ignore("odd_block_size")
        if len(event.token_ids) < event.block_size * len(event.block_hashes):
            return self._ignore("too_few_tokens")
        if event.lookahead_token_ids and len(event.lookahead_token_ids[-1]) > unit:
            return self._ignore("odd_lookahead")
        if tier == "gpu":
            self._names_namespaces = self._names_namespaces or event.extra_keys is not None
        elif self._names_namespaces and event.extra_keys is None:
            # Offloaded copies are described without salt and items: hashes would get the meaning of other blocks.
            return None
        others_wait = self._unresolved or aliases.orphan_blocks
        learnt = aliases.place_before_known(event.block_hashes, unit)
        parent = event.parent_block_hash
        if parent is None or parent in aliases.keys:
            learnt += aliases.learn(event, unit)
        elif not aliases.knows_all(event.block_hashes):
            self.orphans_dropped += aliases.wait_for_parent(event, self._limits.orphan_blocks_max)
        if others_wait:
            self._settle(learnt)
        return None

    def _learn_stated(self, event: BlockStored, stated: Sequence[int | None]) -> None:
        """The publisher names the blocks by our own hashes, which say something for our size of blocks only."""
        unit, aliases = self.profile.shape.unit, self._aliases
        if event.block_size != unit:
            return self._ignore("odd_block_size")
        others_wait = self._unresolved or aliases.orphan_blocks
        learnt = aliases.learn_stated(event.block_hashes, stated, unit)
        if others_wait:
            self._settle(learnt)
        return None

    def _settle(self, learnt: Sequence[int]) -> None:
        """Hashes whose copies were announced before their meaning: now they count."""
        for engine_hash in learnt:
            if engine_hash in self._unresolved:
                del self._unresolved[engine_hash]
                self._count_copies(engine_hash, self._aliases.keys[engine_hash])
            elif not self._has_copies(engine_hash):
                self._retire(engine_hash)

    def _count_copies(self, engine_hash: int, key: int) -> None:
        for (tier, group), pool in self._pools.items():
            count = pool.by_hash.get(engine_hash, 0)
            if count and pool.add_copies_of_key(key, count) and group == self.profile.main:
                self._index.store(self.rank, [key], tier)

    def _park(self, hashes: Sequence[int]) -> None:
        known, unresolved = self._aliases.keys, self._unresolved
        for engine_hash in hashes:
            if engine_hash not in known:
                unresolved[engine_hash] = None
        while len(unresolved) > self._limits.unresolved_hashes_max:
            oldest, _ = unresolved.popitem(last=False)
            self.unresolved_dropped += 1
            for pool in self._pools.values():
                pool.by_hash.pop(oldest, None)

    def _remove(self, event: BlockRemoved) -> None:
        tier = self._place(event)
        if tier is None:
            return None
        group = event.group_idx or 0
        pool = self._pools.get((tier, group))
        if pool is None:
            return self._ignore("unknown_removal", len(event.block_hashes))
        gone = []
        key_of = self._aliases.keys.get
        for engine_hash in event.block_hashes:
            left = pool.remove_hash(engine_hash)
            if left < 0:
                self._ignore("unknown_removal")
                continue
            key = key_of(engine_hash)
            if key is not None and pool.remove_key(key):
                gone.append(key)
            if not left and not self._has_copies(engine_hash):
                self._retire(engine_hash)
        if gone and group == self.profile.main:
            self._index.remove(self.rank, gone, tier)
        return None

    def _has_copies(self, engine_hash: int) -> bool:
        return any(engine_hash in pool.by_hash for pool in self._pools.values())

    def _retire(self, engine_hash: int) -> None:
        """No copy is left anywhere; its meaning is kept for a while."""
        if engine_hash not in self._aliases.keys:
            self._unresolved.pop(engine_hash, None)
            return
        self._idle[engine_hash] = None
        if len(self._idle) > self._limits.idle_hashes_max:
            oldest, _ = self._idle.popitem(last=False)
            self._aliases.forget(oldest)

    def _clear_as_engine(self) -> None:
        """AllBlocksCleared: vLLM means its GPU blocks and keeps offloaded ones, SGLang means its whole tree."""
        tiers = {tier for tier, _ in self._pools} if self._clears_all_tiers else {"gpu"}
        self._aliases.drop_orphans()
        for tier in sorted(tiers):
            self._clear_tier(tier)

    def _clear_tier(self, tier: str) -> None:
        for (pool_tier, group), pool in self._pools.items():
            if pool_tier != tier:
                continue
            if group == self.profile.main:
                self._index.remove(self.rank, list(pool.by_key), tier)
            hashes = list(pool.by_hash)
            pool.clear()
            for engine_hash in hashes:
                if not self._has_copies(engine_hash):
                    self._retire(engine_hash)

    def _move_index(self, old_main: int, new_main: int) -> None:
        """Another group turned out to be the one that remembers whole prefixes: the index follows it."""
        for (tier, group), pool in self._pools.items():
            if group == old_main:
                self._index.remove(self.rank, list(pool.by_key), tier)
        for (tier, group), pool in self._pools.items():
            if group == new_main:
                self._index.store(self.rank, list(pool.by_key), tier)

    def _place(self, event: BlockStored | BlockRemoved) -> str | None:
        if event.locality == "REMOTE":
            self._ignore("remote")
            return None
        if event.group_idx and not 0 <= event.group_idx < _GROUPS_MAX:
            self._ignore("bad_group")
            return None
        medium = event.medium
        tier = tier_of(medium)
        if tier is None:
            self._ignore("foreign_medium")
        elif medium == "CPU_PINNED":
            self._clears_all_tiers = True  # SGLang's name for its host tier, which a reset of its tree empties too.
        return tier

    def _pool(self, tier: str, group: int) -> Copies:
        pool = self._pools.get((tier, group))
        if pool is None:
            pool = self._pools[tier, group] = Copies()
        return pool

    def _ignore(self, reason: str, count: int = 1) -> None:
        self.ignored[reason] = self.ignored.get(reason, 0) + count
