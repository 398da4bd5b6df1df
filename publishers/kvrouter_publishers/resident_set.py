"""What a rank's cache holds now, as its own events say: where snapshots and digests come from.

Copies are counted per tier, group and engine hash, exactly as consumers count them. What a block is stays known a while
after its last copy is gone, because blocks that stay, and stores to come, may continue it.
"""

from collections.abc import Collection, Iterable, Iterator
from typing import Final

from kvrouter.events import BlockRemoved, BlockStored, Event
from kvrouter.events.digest import DigestRow, mix64
from kvrouter_publishers.descriptions import fold, folded
from kvrouter_publishers.meanings import Meanings
from kvrouter_publishers.places import Layout, Place, Places

__all__ = ["IDLE_MAX", "ResidentSet"]

IDLE_MAX: Final = 32_768
"""As many as a consumer keeps (`kvrouter.ingest.limits`), so that we can describe what it could place."""


class ResidentSet:
    """The cache of one rank. Not thread-safe."""

    def __init__(self, *, idle_max: int = IDLE_MAX) -> None:
        self._idle_max = idle_max
        self.forget()

    def __len__(self) -> int:
        return sum(map(len, self._copies.values()))

    def forget(self) -> None:
        """Begin anew: consumers were told to forget all."""
        self.places = Places()
        self.layout = Layout()
        self._meanings = Meanings()
        self._copies: dict[Place, dict[int, int]] = {}
        self._xors: dict[Place, int] = {}
        self._idle: dict[int, None] = {}  # In the order in which their last copies went.
        self._idle_limit = 2 * self._idle_max

    def count(self, place: Place, block: int) -> int:
        """Return how many copies of a block are in one place."""
        pool = self._copies.get(place)
        return 0 if pool is None else pool.get(block, 0)

    def apply(self, events: Iterable[Event]) -> list[Event]:
        """Follow the events of one batch; returns those that could not be read, which changed nothing."""
        bad: list[Event] = []
        readable: list[Event] = []
        for event in events:
            try:
                if isinstance(event, BlockStored):
                    self.layout.observe(event)
                readable.append(event)
            except Exception:  # noqa: BLE001 - whatever an engine hands us
                bad.append(event)
        for event in readable:
            try:
                self._follow(event)
            except Exception:  # noqa: BLE001 - see above
                bad.append(event)
        return bad

    def digest(self) -> tuple[DigestRow, ...]:
        """Return a row for each place that holds blocks."""
        return tuple(
            DigestRow(self.places.media[place], place[1], len(pool), self._xors[place])
            for place, pool in sorted(self._copies.items())
            if pool
        )

    def snapshot(self) -> Iterator[Event]:
        """Return events that bring a consumer that knows nothing to our state; they must be used up at once."""
        yield from self.layout.markers()
        yield from self.places.markers()
        yield from self._meanings.state(
            self._copies, self._nameable(), self.places, names_namespaces=self.layout.names_namespaces
        )

    def copy(self) -> "ResidentSet":
        """Return what is held now, to be read while we go on."""
        copied = ResidentSet(idle_max=self._idle_max)
        copied.places, copied.layout, copied._meanings = self.places.copy(), self.layout.copy(), self._meanings.copy()
        copied._copies = {place: dict(pool) for place, pool in self._copies.items()}
        copied._xors, copied._idle = dict(self._xors), dict(self._idle)
        return copied

    def _nameable(self) -> Collection[int]:
        """Return idle blocks that later stores may name: copies elsewhere may come without saying what they are."""
        return self._idle if self.places.has_others() else ()

    def _follow(self, event: Event) -> None:
        if isinstance(event, BlockStored):
            self._store(event)
        elif isinstance(event, BlockRemoved):
            self._remove(event)
        else:
            for place in [place for place in self._copies if self.places.is_cleared(place)]:
                self._clear(place)

    def _store(self, event: BlockStored) -> None:
        place = self.places.place(event)
        event = folded(event)
        hashes = event.block_hashes
        if place is None or not hashes:
            return
        if self.layout.believes(event, place):
            self._meanings.learn(event, place)
        pool = self._copies.setdefault(place, {})
        xor = self._xors.setdefault(place, 0)
        if place[0] == "gpu" and self.layout.is_repetition(event, pool.__contains__):
            return
        idle = self._idle
        for block in hashes:
            count = pool.get(block, 0)
            pool[block] = count + 1
            if not count:
                xor ^= mix64(block)
                if idle:
                    idle.pop(block, None)
        self._xors[place] = xor

    def _remove(self, event: BlockRemoved) -> None:
        place = self.places.place(event)
        hashes = fold(event.block_hashes)
        pool = self._copies.get(place) if place is not None else None
        if place is None or not pool:
            return
        for block in hashes:
            count = pool.get(block, 0) - 1
            if count > 0:
                pool[block] = count
            elif count == 0:
                del pool[block]
                self._xors[place] ^= mix64(block)
                self._retire(block)
        self._prune()

    def _clear(self, place: Place) -> None:
        pool, self._copies[place], self._xors[place] = self._copies[place], {}, 0
        for block in pool:
            self._retire(block)
        self._prune()

    def _retire(self, block: int) -> None:
        if block in self._meanings and not self._is_held(block):
            self._idle[block] = None

    def _is_held(self, block: int) -> bool:
        return any(block in pool for pool in self._copies.values())

    def _prune(self) -> None:
        """Forget what idle blocks are, oldest first, but for those that a block of the cache continues."""
        if len(self._idle) <= self._idle_limit:
            return
        needed = self._meanings.needed(self._copies, ())
        spare = [block for block in self._idle if block not in needed]
        for block in spare[: max(0, len(spare) - self._idle_max)]:
            del self._idle[block]
            self._meanings.forget(block)
        self._idle_limit = len(self._idle) + self._idle_max
