"""What a rank's cache holds now, as its own events say: where snapshots and digests come from.

Copies are counted per tier, group and engine hash, exactly as consumers count them. What a block is stays known a while
after its last copy is gone, because blocks that stay, and stores to come, may continue it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from kvrouter.events import BlockRemoved, BlockStored, Event
from kvrouter.events.digest import DigestRow, mix64
from kvrouter_publishers.descriptions import DescriptionError, describe, fold, home_of, parent_of, stores
from kvrouter_publishers.places import Layout, Place, Places

__all__ = ["ResidentSet"]

_IDLE_MAX: Final = 32_768
_EVENT_HASHES_MAX: Final = 512


class ResidentSet:
    """The cache of one rank. Not thread-safe."""

    def __init__(self, *, idle_max: int = _IDLE_MAX) -> None:
        self._idle_max = idle_max
        self.forget()

    def __len__(self) -> int:
        return sum(map(len, self._copies.values()))

    def forget(self) -> None:
        """Begin anew: consumers were told to forget all."""
        self._places = Places()
        self._layout = Layout()
        self._copies: dict[Place, dict[int, int]] = {}
        self._xors: dict[Place, int] = {}
        self._descriptions: dict[int, bytes] = {}
        self._homes: list[Place] = []
        self._idle: dict[int, None] = {}  # In the order in which their last copies went.
        self._idle_limit = 2 * self._idle_max
        self._names_namespaces = False

    def apply(self, events: Iterable[Event]) -> list[Event]:
        """Follow the events of one batch; returns those that could not be read, which changed nothing."""
        bad: list[Event] = []
        events = list(events)
        for event in events:
            if isinstance(event, BlockStored):
                self._layout.observe(event, self._places.place(event))
        for event in events:
            try:
                self._follow(event)
            except DescriptionError:
                bad.append(event)
        return bad

    def digest(self) -> tuple[DigestRow, ...]:
        """Return a row for each place that holds blocks."""
        return tuple(
            DigestRow(self._places.media[place], place[1], len(pool), self._xors[place])
            for place, pool in sorted(self._copies.items())
            if pool
        )

    def snapshot(self) -> Iterator[Event]:
        """Return events that bring a consumer that knows nothing to our state; they must be used up at once."""
        yield from self._layout.markers()
        if (marker := self._places.marker()) is not None:
            yield marker
        gone: dict[Place, list[int]] = {}
        for home, run in self._runs():
            place = self._homes[home]
            held = self._copies.get(place, {})
            gone.setdefault(place, []).extend(block for block, _ in run if block not in held)
            yield from stores(
                run,
                medium=self._places.media[place],
                group=place[1],
                names_namespaces=self._names_namespaces and place[0] == "gpu",
            )
        yield from self._further_copies()
        for place, hashes in gone.items():
            for some in _chunks(hashes):
                yield BlockRemoved(block_hashes=some, medium=self._places.media[place], group_idx=place[1] or None)

    def _follow(self, event: Event) -> None:
        if isinstance(event, BlockStored):
            self._store(event)
        elif isinstance(event, BlockRemoved):
            self._remove(event)
        else:
            for place in list(self._copies):
                if self._places.is_cleared(place):
                    self._clear(place)

    def _store(self, event: BlockStored) -> None:
        place = self._places.place(event)
        hashes = fold(event.block_hashes)
        if place is None or not hashes:
            return
        if hashes is not event.block_hashes:
            event = replace(event, block_hashes=hashes)
        self._describe(event, place)
        pool = self._copies.setdefault(place, {})
        if place[0] == "gpu" and self._layout.is_repetition(event, pool):
            return
        xor = self._xors.get(place, 0)
        idle = self._idle
        for block in hashes:
            count = pool.get(block, 0)
            pool[block] = count + 1
            if not count:
                xor ^= mix64(block)
                if idle:
                    idle.pop(block, None)
        self._xors[place] = xor

    def _describe(self, event: BlockStored, place: Place) -> None:
        if place[0] == "gpu":
            self._names_namespaces |= event.extra_keys is not None and bool(event.token_ids)
        elif self._names_namespaces and event.extra_keys is None and event.sequence_hashes is None:
            return  # Offloaded copies are described without salt and items: consumers do not believe it either.
        if place not in self._homes:
            self._homes.append(place)
        described = describe(event, self._homes.index(place))
        for block, description in zip(event.block_hashes, described or (), strict=False):
            self._descriptions.setdefault(block, description)

    def _remove(self, event: BlockRemoved) -> None:
        place = self._places.place(event)
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
        hashes = list(self._copies.pop(place))
        self._xors[place] = 0
        for block in hashes:
            self._retire(block)
        self._prune()

    def _retire(self, block: int) -> None:
        if block in self._descriptions and not self._is_held(block):
            self._idle[block] = None

    def _is_held(self, block: int) -> bool:
        return any(block in pool for pool in self._copies.values())

    def _prune(self) -> None:
        """Forget what idle blocks are, oldest first, but for those that a block of the cache continues."""
        if len(self._idle) <= self._idle_limit:
            return
        needed = {block for _, run in self._runs() for block, _ in run}
        spare = [block for block in self._idle if block not in needed]
        for block in spare[: max(0, len(spare) - self._idle_max)]:
            del self._idle[block], self._descriptions[block]
        self._idle_limit = len(self._idle) + self._idle_max

    def _runs(self) -> Iterator[tuple[int, list[tuple[int, bytes]]]]:
        """Return what must be described to describe all that is held: parents first, cut where the home changes."""
        stated: set[int] = set()
        run: list[tuple[int, bytes]] = []
        home = -1
        for block in self._descriptions:
            if block in stated or not self._is_held(block):
                continue
            for known in reversed(self._unstated(block, stated)):
                description = self._descriptions[known]
                if home_of(description) != home:
                    if run:
                        yield home, run
                    home, run = home_of(description), []
                run.append((known, description))
        if run:
            yield home, run

    def _unstated(self, block: int | None, stated: set[int]) -> list[int]:
        """Return `block` and the blocks before it that were not stated yet, last first."""
        chain: list[int] = []
        while block is not None and block not in stated and block in self._descriptions:
            chain.append(block)
            stated.add(block)
            block = parent_of(self._descriptions[block])
        return chain

    def _further_copies(self) -> Iterator[BlockStored]:
        for place, pool in self._copies.items():
            copies = {block: count - self._is_home(block, place) for block, count in pool.items()}
            while copies := {block: count for block, count in copies.items() if count > 0}:
                for some in _chunks(list(copies)):
                    yield BlockStored(block_hashes=some, medium=self._places.media[place], group_idx=place[1] or None)
                copies = {block: count - 1 for block, count in copies.items()}

    def _is_home(self, block: int, place: Place) -> bool:
        description = self._descriptions.get(block)
        return description is not None and self._homes[home_of(description)] == place


def _chunks(hashes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    for start in range(0, len(hashes), _EVENT_HASHES_MAX):
        yield tuple(hashes[start : start + _EVENT_HASHES_MAX])
