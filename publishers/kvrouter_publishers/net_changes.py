"""What many batches changed, said in few: for steps that wait longer than there is room for them.

A removal cancels the store before it, and both are forgotten; what is left is as large as the cache, however long one
waits. A consumer that is told the rest has the same blocks, with as many copies, as one that was told everything.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Final

from kvrouter.events import AllBlocksCleared, BlockRemoved, BlockStored, Event
from kvrouter_publishers.descriptions import fold
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
        hashes = fold(event.block_hashes)
        if place is None or not hashes:
            return
        if hashes is not event.block_hashes:
            event = replace(event, block_hashes=hashes)
        if self._layout.believes(event, place):
            self._meanings.learn(event, place)
        if place[0] == "gpu" and self._is_repetition(event, place):
            return
        stored = self._stored.setdefault(place, {})
        for block in hashes:
            stored[block] = stored.get(block, 0) + 1

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
                self._idle[block] = None
            elif not forgotten:
                removed[block] = removed.get(block, 0) + 1

    def _clear(self) -> None:
        self._cleared = True
        self._cleared_all |= self.places.clears_all_tiers
        for changes in (self._stored, self._removed):
            for place, pool in changes.items():
                if self._is_cleared(place):
                    if changes is self._stored:
                        self._idle.update(dict.fromkeys(pool))
                    pool.clear()

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

    def _prune(self) -> None:
        """Forget what blocks are that came and went, unless one that stays continues them or one to come may."""
        if len(self._meanings) + len(self._idle) <= self._limit:
            return
        self._idle = dict.fromkeys(islice(reversed(self._idle), IDLE_MAX))
        self._idle = dict.fromkeys(reversed(self._idle))
        self._meanings.keep(self._meanings.needed(self._stored, self._nameable()))
        self._limit = 2 * (len(self._meanings) + len(self._idle)) + _SPARE_MAX
