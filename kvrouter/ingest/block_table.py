"""What one rank has cached, in the engine's names and in ours: which hash names which block, and what copies there are.

`BlockTable` is short Python and the specification. The native core has the same in a tenth of the memory, and in one
call what a whole batch of plain events does to it; `block_table` makes the one that fits the index. What events mean
is for `rank_cache` to say.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, MutableMapping, Sequence
from typing import Final, Protocol, cast

from kvrouter import native_core
from kvrouter.events import Namespace
from kvrouter.index import PrefixIndex
from kvrouter.ingest.copies import Copies

__all__ = ["BlockTable", "Left", "Meanings", "block_table"]

_IDLE_MIN: Final = 1024
_IDLE_SHARE: Final = 8
_BYTES_PER_ENTRY: Final = 112

Left = tuple[int, int, int]
"""An event that the native core leaves to the reference: its number in the batch, and where it begins and ends."""


ReadBatch = tuple[int | None, bool, int, list[Left] | None, Left | None]
"""What `BlockTable.apply` says of a batch."""


class Meanings(Protocol):
    """Engine hashes to sequence hashes, as far as they are known. A meaning is given once and never changed."""

    def get(self, engine_hash: int, /) -> int | None:
        """The meaning of a hash, None if it is not known."""
        ...

    def clear(self) -> None:
        """Forget all."""
        ...

    def __contains__(self, engine_hash: object, /) -> bool: ...
    def __getitem__(self, engine_hash: int, /) -> int: ...
    def __setitem__(self, engine_hash: int, key: int, /) -> None: ...
    def __delitem__(self, engine_hash: int, /) -> None: ...
    def __len__(self) -> int: ...


class BlockTable:
    """The reference implementation, and the specification.

    Places are a tier and a group of layers. Nobody else may change what the index has of the rank. `names_namespaces`
    and `clears_all_tiers` are notes of `rank_cache` that a native batch makes as well.
    """

    def __init__(self, index: PrefixIndex, rank: int, *, idle_max: int, unresolved_max: int) -> None:
        self.keys: dict[int, int] = {}
        self.names_namespaces = self.clears_all_tiers = False
        self.unknown_removals = self.unresolved_dropped = 0
        self.evicted = self.returned = 0
        """Hashes whose last copy went, and those of them that were stored again while they were idle."""
        self.run_end = 0
        """Of the payloads that `apply_plain` was last given, those before this one were begun, even if it failed."""
        self._index, self._rank = index, rank
        self._idle_max, self._unresolved_max = idle_max, unresolved_max
        self._main: int | None = None
        self._places: dict[tuple[str, int], Copies] = {}
        self._unresolved: OrderedDict[int, None] = OrderedDict()
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._namespaces: MutableMapping[int, Namespace] = {}
        self._inner: MutableMapping[int, list[int]] = {}
        self._charged = 0

    @property
    def unresolved(self) -> int:
        """Hashes with copies whose meaning is not known."""
        return len(self._unresolved)

    @property
    def idle(self) -> int:
        """Hashes whose meaning is kept though no copy is left."""
        return len(self._idle)

    def attach(
        self,
        namespaces: MutableMapping[int, Namespace],
        inner: MutableMapping[int, list[int]],
        orphans: Mapping[int, object],  # noqa: ARG002 - only a native batch needs it
        seeds: Mapping[Namespace, int],  # noqa: ARG002
    ) -> None:
        """Forget the entries of `namespaces` and `inner` with their hashes; a native batch looks at all of them."""
        self._namespaces, self._inner = namespaces, inner

    def admit(self, blocks: int) -> bool:
        """Whether a store of so many blocks may be taken in, by the bound on the index and all that is beside it."""
        self._charge()
        return self._index.admit(blocks)

    def add(self, tier: str, group: int, hashes: Sequence[int]) -> None:
        """Count one more copy of each. Those without a meaning wait for it."""
        place = self._places.get((tier, group))
        if place is None:
            place = self._places[tier, group] = Copies()
        first = place.add_hashes(hashes)
        if self._idle and not self._idle.keys().isdisjoint(hashes):
            before = len(self._idle)
            for engine_hash in hashes:
                self._idle.pop(engine_hash, None)
            self.returned += before - len(self._idle)
        keys = list(map(self.keys.get, first))
        if None in keys:
            self._park(first)
        added = place.add_keys([key for key in keys if key is not None])
        if added and group == self._main:
            self._index.store(self._rank, added, tier)

    def remove(self, tier: str, group: int, hashes: Sequence[int]) -> None:
        """Count one copy less of each. Without any copy left a hash is idle, and forgotten after a while."""
        place = self._places.get((tier, group))
        if place is None:
            self.unknown_removals += len(hashes)
            return
        gone = []
        for engine_hash in hashes:
            left = place.remove_hash(engine_hash)
            if left < 0:
                self.unknown_removals += 1
            if left:
                continue
            key = self.keys.get(engine_hash)
            if key is not None and place.remove_key(key):
                gone.append(key)
            if not self._has_copies(engine_hash):
                self._retire(engine_hash)
        if gone and group == self._main:
            self._index.remove(self._rank, gone, tier)

    def settle(self, learnt: Sequence[int]) -> None:
        """Hashes have got their meaning: copies that waited for it count from now on."""
        for engine_hash in learnt:
            if engine_hash in self._unresolved:
                del self._unresolved[engine_hash]
                self._count_copies(engine_hash, self.keys[engine_hash])

    def retire(self, hashes: Sequence[int]) -> None:
        """Those of `hashes` that have a meaning and no copy are idle from now on."""
        for engine_hash in hashes:
            if engine_hash in self.keys and engine_hash not in self._idle and not self._has_copies(engine_hash):
                self._retire(engine_hash)

    def clear_tier(self, tier: str) -> None:
        """Take away all copies in a tier; what is idle then is so in the order of the hashes."""
        cleared: list[int] = []
        for (place_tier, group), place in self._places.items():
            if place_tier != tier:
                continue
            if group == self._main:
                self._index.remove(self._rank, list(place.by_key), tier)
            cleared += place.by_hash
            place.clear()
        for engine_hash in sorted(set(cleared)):
            if not self._has_copies(engine_hash):
                self._retire(engine_hash)

    def idle_hashes(self) -> list[int]:
        """Return them, the next one to be forgotten first."""
        return list(self._idle)

    def clear(self) -> None:
        """Forget everything."""
        self._withdraw()
        self._places.clear()
        self.keys.clear()
        self._unresolved.clear()
        self._idle.clear()
        self._charge()

    def set_main(self, group: int | None) -> None:
        """Let the index follow a group; None: it is not touched, as before the first call."""
        if group == self._main:
            return
        self._withdraw()
        self._main = group
        for (tier, place_group), place in self._places.items():
            if place_group == group:
                self._index.store(self._rank, list(place.by_key), tier)

    def holds_all(self, tier: str, group: int, hashes: Sequence[int]) -> bool:
        """Whether there is a copy of each engine hash."""
        place = self._places.get((tier, group))
        return all(map(place.by_hash.__contains__, hashes)) if place is not None else not hashes

    def holds(self, tier: str, group: int, key: int) -> bool:
        """Whether there is a copy of a block."""
        place = self._places.get((tier, group))
        return place is not None and key in place.by_key

    def blocks(self, tier: str, group: int) -> Collection[int]:
        """The sequence hashes of all blocks in a place."""
        place = self._places.get((tier, group))
        return place.by_key if place is not None else ()

    def copies(self) -> dict[tuple[str, int], dict[int, int]]:
        """Copies per engine hash in each place that has any."""
        return {place: dict(copies.by_hash) for place, copies in self._places.items() if copies.by_hash}

    def tiers(self) -> Collection[str]:
        """Tiers in which ever was something."""
        return {tier for tier, _ in self._places}

    def describe(self, unit: int, groups: list[tuple[int, int, bool, bool, bool]]) -> None:
        """Tell the layout: keys are of `unit` tokens; groups are (number, size, has a kind, is Mamba, is full)."""

    def apply(self, payload: bytes) -> ReadBatch | None:  # noqa: ARG002 - all batches are decoded in Python
        """Apply a batch of plain events; None: it is left to the reference, and nothing was done.

        Returns the announced rank, whether there was a reset, and how many fields are unknown; then the events that
        are not plain, if there are any: nothing was applied yet, because they may tell another layout. Else, the
        event at which this ended, None at the end of the batch.
        """
        return None

    def apply_plain(
        self,
        payloads: Sequence[bytes],  # noqa: ARG002 - as above
        start: int,  # noqa: ARG002
    ) -> tuple[int, int | None, Left | None]:
        """`apply` payloads from `start` on, up to the first of which it would say more than the announced rank.

        Returns how many, the last rank announced, and, where the batch after them was begun, the event at which that
        ended. A batch that was not begun is left whole.
        """
        return 0, None, None

    def tells(self, payload: bytes) -> list[Left]:  # noqa: ARG002 - as above
        """Find in a batch of plain events the first of each group that tells something new about the layout."""
        return []

    def proceed(self) -> Left | None:
        """Go on behind the event at which this ended, or begin; returns the next such event, None at the end."""
        return None

    def _charge(self) -> None:
        entries = len(self.keys) + len(self._unresolved) + len(self._idle)
        entries += sum(len(place.by_hash) + len(place.by_key) for place in self._places.values())
        taken = _BYTES_PER_ENTRY * entries
        self._index.charge(taken - self._charged)
        self._charged = taken

    def _withdraw(self) -> None:
        for (tier, group), place in self._places.items():
            if group == self._main:
                self._index.remove(self._rank, list(place.by_key), tier)

    def _count_copies(self, engine_hash: int, key: int) -> None:
        for (tier, group), place in self._places.items():
            if engine_hash in place.by_hash and place.add_keys((key,)) and group == self._main:
                self._index.store(self._rank, [key], tier)

    def _park(self, hashes: Iterable[int]) -> None:
        unresolved = self._unresolved
        for engine_hash in hashes:
            if engine_hash not in self.keys:
                unresolved[engine_hash] = None
        while len(unresolved) > self._unresolved_max:
            oldest, _ = unresolved.popitem(last=False)
            self.unresolved_dropped += 1
            for place in self._places.values():
                place.by_hash.pop(oldest, None)

    def _has_copies(self, engine_hash: int) -> bool:
        return any(engine_hash in place.by_hash for place in self._places.values())

    def _retire(self, engine_hash: int) -> None:
        """No copy is left anywhere; its meaning is kept for a while."""
        if engine_hash not in self.keys:
            self._unresolved.pop(engine_hash, None)
            return
        self._idle[engine_hash] = None
        self.evicted += 1
        while len(self._idle) > self._idle_most():
            oldest, _ = self._idle.popitem(last=False)
            del self.keys[oldest]
            self._namespaces.pop(oldest, None)
            self._inner.pop(oldest, None)

    def _idle_most(self) -> int:
        """An eighth of the others, but not few where there are few."""
        others = len(self.keys) + len(self._unresolved) - len(self._idle)
        return min(self._idle_max, max(_IDLE_MIN, others // _IDLE_SHARE))


def block_table(index: PrefixIndex, rank: int, *, idle_max: int, unresolved_max: int) -> tuple[BlockTable, Meanings]:
    """Make a table for `rank` of `index`, native where the index is; returns it and what its hashes mean."""
    if native_core.present and isinstance(index, native_core.native.PrefixIndex):
        native = native_core.native.BlockTable(index, rank, idle_max=idle_max, unresolved_max=unresolved_max)
        return cast("BlockTable", native), native
    table = BlockTable(index, rank, idle_max=idle_max, unresolved_max=unresolved_max)
    return table, table.keys
