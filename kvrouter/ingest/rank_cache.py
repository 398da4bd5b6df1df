"""What one rank has cached, as its events tell: applies batches, keeps the index in step.

Three things are kept apart. Copies are counted from the moment they are announced. What a hash
means may become known later, and stays known after the copies are gone (`aliases`). The index
holds a block of the main group while there is a copy whose meaning is known. So orphans,
hash-only stores and masked stores need no cases of their own: they are copies whose meaning waits.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from kvrouter.events import AllBlocksCleared, BlockRemoved, BlockStored, Event, decode_batch, tier_of
from kvrouter.events.decode import decode_event
from kvrouter.index import PrefixIndex
from kvrouter.ingest.aliases import AliasMap
from kvrouter.ingest.block_table import BlockTable, Left, block_table
from kvrouter.ingest.limits import IngestLimits
from kvrouter.ingest.profile import Profile

__all__ = ["Applied", "RankCache"]

_GROUPS_MAX = 256
_NOTHING: Mapping[str, int] = {}


class Applied(NamedTuple):
    """What a batch was: `cleared` if an engine's reset is in it, `changed` if the layout turned out different."""

    announced_rank: int | None
    cleared: bool
    skipped: Mapping[str, int] = _NOTHING
    changed: bool = False


class RankCache:
    """The cached blocks of one dense `rank`. Never raises on what an engine says."""

    def __init__(self, index: PrefixIndex, rank: int, limits: IngestLimits, block_size: int | None) -> None:
        self.rank = rank
        self.orphans_dropped = 0
        self._ignored: dict[str, int] = {}
        self._limits = limits
        self._assumed_block_size = block_size or limits.block_size
        self._table, meanings = block_table(
            index, rank, idle_max=limits.idle_hashes_max, unresolved_max=limits.unresolved_hashes_max
        )
        self._aliases = AliasMap(meanings)
        self._aliases.share_with(self._table)
        self._table.set_main(0)
        self._repeats = False
        self._index, self._charged = index, 0
        self.profile = Profile(self._assumed_block_size)

    @property
    def ignored(self) -> dict[str, int]:
        """What was said and not taken in, by reason."""
        unknown = self._table.unknown_removals
        return self._ignored | {"unknown_removal": unknown} if unknown else self._ignored

    @property
    def orphans(self) -> int:
        """Blocks that wait for their parent."""
        return self._aliases.orphan_blocks

    @property
    def unresolved(self) -> int:
        """Hashes with copies whose meaning is not known."""
        return self._table.unresolved

    @property
    def unresolved_dropped(self) -> int:
        """How many of them were given up for the bound."""
        return self._table.unresolved_dropped

    @property
    def evictions(self) -> tuple[int, int, float, int]:
        """Hashes whose last copy went, those of them that came back soon, and how soon; and those that have a copy.

        Soon means: while the engine evicted this share of what it holds.
        """
        table = self._table
        held = max(len(self._aliases.keys) - table.idle, 0)
        return table.evicted, table.returned, min(1.0, table.idle / max(1, held)), held

    @property
    def _idle(self) -> list[int]:
        """Hashes whose meaning is kept though no copy is left, in the order in which the copies went."""
        return self._table.idle_hashes()

    @property
    def _names_namespaces(self) -> bool:
        return self._table.names_namespaces

    @_names_namespaces.setter
    def _names_namespaces(self, names: bool) -> None:
        self._table.names_namespaces = names

    @property
    def _clears_all_tiers(self) -> bool:
        return self._table.clears_all_tiers

    @_clears_all_tiers.setter
    def _clears_all_tiers(self, clears: bool) -> None:
        self._table.clears_all_tiers = clears

    def blocks(self, tier: str = "gpu", group: int | None = None) -> Collection[int]:
        """Sequence hashes in one place, as it is now and later; the main group unless another is named."""
        return _Held(self._table, tier, self.profile.main if group is None else group)

    def copies(self) -> dict[tuple[str, int], dict[int, int]]:
        """Copies per engine hash, for each (tier, group); for checks against an engine's own dump."""
        return self._table.copies()

    def name_adapter(self, lora_id: int, name: str) -> None:
        """Say which adapter an engine means that sends numbers instead of names."""
        self._aliases.name_adapter(lora_id, name)

    def apply(self, events: Iterable[Event]) -> bool:
        """Apply one batch; returns whether the layout of the cache turned out different."""
        events = tuple(events)
        changed = self._observe(events)
        self._apply_observed(events)
        return changed

    def apply_payload(self, payload: bytes) -> Applied:
        """Apply one batch as it came: what the native core can, it does; where it stops, the reference goes on.

        Raises:
            WireError: as `decode_batch`; nothing is applied then.
        """
        read = self._table.apply(payload)
        changed = False
        if read is None and not self.profile.groups:  # A rank's first batch may be large.
            first = [decode_event(payload[start:end], Counter()) for _, start, end in self._table.tells(payload)]
            changed = self._observe([event for event in first if event is not None])
            read = self._table.apply(payload) if changed else None
        if read is None:
            batch = decode_batch(payload)
            if self._observe(batch.events):
                changed = True
                read = self._table.apply(payload)  # Now that the layout is known.
            if read is None:
                self._apply_observed(batch.events)
                cleared = any(isinstance(event, AllBlocksCleared) for event in batch.events)
                return Applied(batch.data_parallel_rank, cleared, batch.skipped, changed)
        announced_rank, cleared, unknown_fields, odd, stop = read
        if odd is None and stop is None and not unknown_fields:
            return Applied(announced_rank, cleared, _NOTHING, changed)
        skipped = Counter({"unknown_field": unknown_fields} if unknown_fields else ())
        return self._apply_rest(payload, odd or (), stop, Applied(announced_rank, cleared, skipped, changed))

    @property
    def begun(self) -> int:
        """How many of the batches of the last `apply_plain` were begun."""
        return self._table.run_end

    def apply_plain(self, payloads: Sequence[bytes]) -> tuple[int, int | None]:
        """`apply_payload` those before the first of which there is more to say than that it was applied.

        Returns how many they are, and the rank that the last of them announced. If it fails, as for want of memory,
        `begun` tells how many were begun.
        """
        taken, announced_rank = 0, None
        while taken < len(payloads):
            count, rank, stop = self._table.apply_plain(payloads, taken)
            taken += count
            if count or stop is not None:
                announced_rank = rank
            if stop is None:
                break
            self._apply_rest(payloads[taken], (), stop, Applied(rank, cleared=False))
            taken += 1
        return taken, announced_rank

    def drop(self) -> None:
        """Forget all blocks and all hashes: what follows belongs to another life, or batches between are lost."""
        self._table.clear()
        self._aliases.clear()
        self._charge()

    def restart(self) -> None:
        """`drop`, and forget the layout too: the new life may have another one."""
        self.drop()
        self.profile = Profile(self._assumed_block_size)
        self._table.set_main(self.profile.main)
        self._describe()
        self._names_namespaces = self._clears_all_tiers = self._repeats = False

    def _apply_observed(self, events: Sequence[Event]) -> None:
        if len(self.profile.groups) > 1:
            self._learn_from_full_groups(events)
        for event in events:
            self._apply_one(event)

    def _apply_one(self, event: Event) -> None:
        if isinstance(event, BlockStored):
            self._store(event)
        elif isinstance(event, BlockRemoved):
            self._remove(event)
        else:
            assert isinstance(event, AllBlocksCleared)
            self._clear_as_engine()

    def _apply_rest(self, payload: bytes, odd: Sequence[Left], stop: Left | None, read: Applied) -> Applied:
        """Do what the native core leaves: events that are `odd`, which it has not begun before, and where it stops."""
        skipped = Counter(read.skipped)
        decoded = {number: decode_event(payload[start:end], skipped) for number, start, end in odd}
        said = [event for event in decoded.values() if event is not None]
        cleared = read.cleared or any(isinstance(event, AllBlocksCleared) for event in said)
        if not read.changed and any(self._tells_layout(event) for event in said):
            batch = decode_batch(payload)  # In its light, plain events behind it may tell more.
            self._observe(batch.events)
            self._apply_observed(batch.events)
            return Applied(read.announced_rank, cleared, batch.skipped, changed=True)
        stop = self._table.proceed() if odd else stop
        while stop is not None:
            number, start, end = stop
            # The native core has counted already what is unknown of a plain event.
            event = decoded[number] if number in decoded else decode_event(payload[start:end], Counter())
            if event is not None:
                self._apply_one(event)
            stop = self._table.proceed()
        return Applied(read.announced_rank, cleared, skipped, read.changed)

    def _observe(self, events: Sequence[Event]) -> bool:
        """Learn the layout from the whole batch before any of it is applied: later groups may be finer."""
        profile, changed = self.profile, False
        unit, main = profile.shape.unit, profile.main
        for event in events:
            if isinstance(event, BlockStored) and event.block_size and self._describes_layout(event):
                changed |= profile.observe(event)
        if profile.main != main:
            self._table.set_main(profile.main)
        if profile.shape.unit != unit:
            self.drop()  # Keys of another block size say nothing.
        if changed:
            self._describe()
        return changed

    def _describe(self) -> None:
        """Tell the table the layout, so that it knows which stores say nothing new about it."""
        groups = self.profile.groups.items()
        self._table.describe(
            self.profile.shape.unit,
            [
                (index, group.block_size, group.kind is not None, group.kind == "mamba", group.role == "full")
                for index, group in groups
            ],
        )

    def _describes_layout(self, event: BlockStored) -> bool:
        return tier_of(event.medium) == "gpu" and 0 <= (event.group_idx or 0) < _GROUPS_MAX

    def _tells_layout(self, event: Event) -> bool:
        if not isinstance(event, BlockStored) or not event.block_size:
            return False
        return self._describes_layout(event) and self.profile.is_new(event)

    def _store(self, event: BlockStored) -> None:
        tier = self._place(event)
        if tier is None or not event.block_hashes or not self._table.admit(len(event.block_hashes)):
            return
        if event.sequence_hashes is not None:
            self._learn_stated(event, event.sequence_hashes)
        elif event.token_ids:
            self._learn(event, tier)
        group = event.group_idx or 0
        if tier == "gpu" and self._is_repetition(event, group):
            self._ignore("repetition", len(event.block_hashes))
        else:
            self._table.add(tier, group, event.block_hashes)
        self._charge()

    def _charge(self) -> None:
        """Tell the index what is known besides the table's rows."""
        taken = self._aliases.nbytes()
        if taken != self._charged:
            self._index.charge(taken - self._charged)
            self._charged = taken

    def _learn_from_full_groups(self, events: Iterable[Event]) -> None:
        """Other groups name their blocks by hashes that a full group explains, maybe later in the same batch."""
        groups, known = self.profile.groups, self._aliases.keys
        for event in events:
            if isinstance(event, BlockStored) and event.token_ids and self._is_here(event) and self._table.admit(0):
                group = groups.get(event.group_idx or 0)
                rooted = event.parent_block_hash is None or event.parent_block_hash in known
                if rooted and group is not None and group.role == "full":
                    self._learn(event, "gpu")

    def _is_here(self, event: BlockStored) -> bool:
        return event.locality != "REMOTE" and self._describes_layout(event)

    def _is_repetition(self, event: BlockStored, group: int) -> bool:
        """Whether vLLM repeats what it holds because a request asked for `kv_cache_report_mode: full`.

        Such a report starts at the root and names blocks that are all there already; no copy is made. With full
        attention alone a real store never looks like that, it would have been a hit; in hybrid models it may. Only
        a prompt of exactly one block does, so one block alone counts as a repetition once longer ones were seen.
        """
        if event.parent_block_hash is not None or event.kv_cache_spec_kind is None or len(self.profile.groups) != 1:
            return False
        if not self.profile.has_full or not self._table.holds_all("gpu", group, event.block_hashes):
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
        others_wait = self._table.unresolved or aliases.orphan_blocks
        learnt = aliases.place_before_known(event.block_hashes, unit)
        parent = event.parent_block_hash
        if parent is None or parent in aliases.keys:
            learnt += aliases.learn(event, unit)
        elif not aliases.knows_all(event.block_hashes):
            self.orphans_dropped += aliases.wait_for_parent(event, self._limits.orphan_blocks_max)
        if others_wait:
            self._settle(learnt, event)
        return None

    def _learn_stated(self, event: BlockStored, stated: Sequence[int | None]) -> None:
        """The publisher names the blocks by our own hashes, which say something for our size of blocks only."""
        unit, aliases = self.profile.shape.unit, self._aliases
        if event.block_size != unit:
            return self._ignore("odd_block_size")
        others_wait = self._table.unresolved or aliases.orphan_blocks
        learnt = aliases.learn_stated(event.block_hashes, stated, unit)
        if others_wait:
            self._settle(learnt, event)
        return None

    def _settle(self, learnt: Sequence[int], event: BlockStored) -> None:
        """Copies that were announced before their meaning count now; meanings without copies are idle."""
        self._table.settle(learnt)
        about_to_be_stored = set(event.block_hashes)
        self._table.retire([each for each in learnt if each not in about_to_be_stored])

    def _remove(self, event: BlockRemoved) -> None:
        tier = self._place(event)
        if tier is not None:
            self._table.remove(tier, event.group_idx or 0, event.block_hashes)

    def _clear_as_engine(self) -> None:
        """AllBlocksCleared: vLLM means its GPU blocks and keeps offloaded ones, SGLang means its whole tree."""
        tiers = self._table.tiers() if self._clears_all_tiers else {"gpu"}
        self._aliases.drop_orphans()
        self._charge()
        for tier in sorted(tiers):
            self._table.clear_tier(tier)

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
            self._table.clears_all_tiers = (
                True  # SGLang's name for its host tier, which a reset of its tree empties too.
            )
        return tier

    def _ignore(self, reason: str, count: int = 1) -> None:
        self._ignored[reason] = self._ignored.get(reason, 0) + count


class _Held(Collection[int]):
    """The blocks in one place of a table."""

    __slots__ = ("_group", "_table", "_tier")

    def __init__(self, table: BlockTable, tier: str, group: int) -> None:
        self._table, self._tier, self._group = table, tier, group

    def __contains__(self, key: object) -> bool:
        return isinstance(key, int) and self._table.holds(self._tier, self._group, key)

    def __iter__(self) -> Iterator[int]:
        return iter(self._table.blocks(self._tier, self._group))

    def __len__(self) -> int:
        return len(self._table.blocks(self._tier, self._group))
