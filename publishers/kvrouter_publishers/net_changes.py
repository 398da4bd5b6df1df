"""What many batches changed, said in few: for steps that wait longer than there is room for them.

A removal cancels the store before it, and both are forgotten; what is left is as large as the cache, however long one
waits. A consumer that is told the rest has the same blocks, with as many copies, as one that was told everything.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Final

from kvrouter.events import AllBlocksCleared, BlockRemoved, BlockStored, Event
from kvrouter_publishers.descriptions import fold, folded
from kvrouter_publishers.meanings import Meanings, removals
from kvrouter_publishers.places import Layout, Place, Places
from kvrouter_publishers.resident_set import IDLE_MAX, ResidentSet

__all__ = ["NetChanges"]

_SPARE_MAX: Final = 4096


class NetChanges:
    """The sum of a row of batches that follow on what consumers were told. Not thread-safe.

    `places` and `layout` are what the stream had shown before; `resident` is what consumers hold, where that is known.
    Without it a report of blocks that are there already (`Layout.is_repetition`) counts as copies.

    Per place and block it keeps r removals and then s stores: whatever number c of copies there was, max(c - r, 0) + s
    remain, and every row of stores and removals comes to that form.
    """

    def __init__(self, places: Places, layout: Layout, resident: ResidentSet | None) -> None:
        self.batches = self.unreadable = 0
        self.lost = False
        """Whether something that may have been a removal could not be read: nothing from before can be believed."""
        self.places = places.copy()
        self._layout, self._resident = layout.copy(), resident
        self._meanings = Meanings()
        self._limit = _SPARE_MAX
        self._stored: dict[Place, dict[int, int]] = {}
        self._removed: dict[Place, dict[int, int]] = {}
        self._cleared = self._cleared_all = False
        self._idle: dict[int, None] = {}  # In the order in which they came and went.
        self._continued: dict[int, int] = {}  # How many described blocks continue each.

    def add(self, events: Sequence[Event]) -> None:
        """Add the events of the next batch; never raises."""
        self.batches += 1
        for event in events:
            if isinstance(event, BlockStored):
                self._attempt(event, first=True)
        for event in events:
            self._attempt(event, first=False)
        self._prune()

    def events(self) -> Iterator[Event]:
        """Return the sum as events.

        First a clear if there was one; stores before removals, but where a block that is stored was removed first.
        So a block is never without its parent's meaning, and a consumer that counts no copies comes out right too.
        """
        if self._cleared and not self.lost:
            yield from self.places.markers() if self._cleared_all else ()
            yield AllBlocksCleared()
        yield from self._removals(before_stores=True)
        if any(self._stored.values()) or self._nameable():
            yield from self._layout.markers()
            yield from self._meanings.state(
                self._stored, self._nameable(), self.places, names_namespaces=self._layout.names_namespaces
            )
        yield from self._removals(before_stores=False)

    def _removals(self, *, before_stores: bool) -> Iterator[BlockRemoved]:
        for place, removed in self._removed.items():
            stored = self._stored.get(place, {})
            some = {block: count for block, count in removed.items() if (block in stored) is before_stores}
            yield from removals(some, self.places.media[place], place[1])

    def _attempt(self, event: Event, *, first: bool) -> None:
        """Take one event. A store that cannot be read is left out; without any other nobody knows what is left."""
        try:
            if first:
                assert isinstance(event, BlockStored)
                self._layout.observe(event)
            elif isinstance(event, BlockStored):
                self._store(event)
            elif isinstance(event, BlockRemoved):
                self._remove(event)
            else:
                assert isinstance(event, AllBlocksCleared), "what else could it be?"
                self._clear()
        except Exception:  # noqa: BLE001 - whatever an engine hands us
            if isinstance(event, BlockStored):
                self.unreadable += not first
            else:
                self._lose()

    def _store(self, event: BlockStored) -> None:
        place = self.places.place(event)
        event = folded(event)
        hashes = event.block_hashes
        if place is None or not hashes:
            return
        if self._layout.believes(event, place):
            for parent in self._meanings.learn(event, place):
                if parent is not None:
                    self._continued[parent] = self._continued.get(parent, 0) + 1
        if place[0] == "gpu" and self._is_repetition(event, place):
            for block in hashes:
                self._retire(block)
            return
        stored = self._stored.setdefault(place, {})
        idle = self._idle
        for block in hashes:
            stored[block] = stored.get(block, 0) + 1
            if idle:
                idle.pop(block, None)

    def _is_repetition(self, event: BlockStored, place: Place) -> bool:
        resident = self._resident
        if resident is None:
            return False
        stored, removed = self._stored.get(place, {}), self._removed.get(place, {})
        forgotten = self.lost or (self._cleared and self._is_cleared(place))

        def is_held(block: int) -> bool:
            return block in stored or (not forgotten and resident.count(place, block) > removed.get(block, 0))

        return self._layout.is_repetition(event, is_held)

    def _remove(self, event: BlockRemoved) -> None:
        place = self.places.place(event)
        hashes = fold(event.block_hashes)
        if place is None:
            return
        stored, removed = self._stored.setdefault(place, {}), self._removed.setdefault(place, {})
        forgotten = self.lost or (self._cleared and self._is_cleared(place))
        for block in hashes:
            count = stored.get(block, 0)
            if count > 1:
                stored[block] = count - 1
            elif count:
                del stored[block]
                self._retire(block)
            elif not forgotten:
                removed[block] = removed.get(block, 0) + 1

    def _clear(self) -> None:
        self._cleared = True
        self._cleared_all |= self.places.clears_all_tiers
        for place, pool in self._removed.items():
            if self._is_cleared(place):
                pool.clear()
        gone: list[int] = []
        for place in [place for place in self._stored if self._is_cleared(place)]:
            gone.extend(self._stored.pop(place))
        if any(self._stored.values()) or self.places.has_others():
            for block in gone:
                self._retire(block)
        else:
            self._meanings, self._continued = Meanings(), {}

    def _is_cleared(self, place: Place) -> bool:
        return self._cleared_all or place[0] == "gpu"

    def _lose(self) -> None:
        self.lost = True
        self.unreadable += 1
        self._stored.clear()
        self._removed.clear()

    def _nameable(self) -> Collection[int]:
        """Return blocks that came and went, and that later stores may name: as in the resident set."""
        return self._idle if self.places.has_others() else ()

    def _retire(self, block: int) -> None:
        """A copy came and went; unless there are others, what the block is need not be said, or not for long."""
        if self._is_stored(block):
            return
        if not self.places.has_others():
            self._forget(block)
            return
        self._idle[block] = None
        if len(self._idle) > IDLE_MAX:
            oldest = next(iter(self._idle))
            del self._idle[oldest]
            self._forget(oldest)

    def _forget(self, block: int | None) -> None:
        """Forget what a block is, unless one that stays continues it; then those that only it continued."""
        if self._meanings.has_ranges:
            return  # What these need is found out once in a while, by `_prune`.
        continued = self._continued
        while block is not None and block in self._meanings:
            if continued.get(block) or block in self._idle or self._is_stored(block):
                return
            parent = self._meanings.forget(block)
            if parent is not None:
                continued[parent] -= 1
                if not continued[parent]:
                    del continued[parent]
            block = parent

    def _prune(self) -> None:
        if not self._meanings.has_ranges or len(self._meanings) <= self._limit:
            return
        kept = self._meanings.needed(self._stored, self._nameable())
        self._meanings.keep(kept)
        self._limit = 2 * len(self._meanings) + _SPARE_MAX

    def _is_stored(self, block: int) -> bool:
        return any(block in stored for stored in self._stored.values())
