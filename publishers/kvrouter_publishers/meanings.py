"""What a rank's blocks are, as far as its events have said: enough to say it again, to somebody who never heard them.

The first description of a block stays, because later ones may know less of its namespace. Nothing here counts copies.
"""

from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from kvrouter.events import BlockRemoved, BlockStored, Event
from kvrouter_publishers.descriptions import describe, home_of, parent_of, stores
from kvrouter_publishers.places import Place, Places

__all__ = ["Meanings", "removals", "repeated_stores"]

_EVENT_HASHES_MAX: Final = 512


@dataclass(slots=True, eq=False)
class _Range:
    """A masked store: its tokens are more than its blocks', so that only the whole of it tells what they are."""

    home: Place
    event: BlockStored
    tokens: bytes

    def store(self, medium: str | None) -> BlockStored:
        tokens = array("I")
        tokens.frombytes(self.tokens)
        return replace(self.event, token_ids=tuple(tokens), medium=medium)


class Meanings:
    """Descriptions by engine hash, folded. Not thread-safe."""

    __slots__ = ("_blocks", "_homes", "_ranges")

    def __init__(self) -> None:
        self._blocks: dict[int, bytes] = {}
        self._ranges: dict[int, _Range] = {}
        self._homes: list[Place] = []

    def __len__(self) -> int:
        return len(self._blocks) + len(self._ranges)

    def __contains__(self, block: int) -> bool:
        return block in self._blocks or block in self._ranges

    def learn(self, event: BlockStored, place: Place) -> None:
        """Take what a store in `place` says; its hashes must be folded.

        Raises:
            DescriptionError: a value is not what it should be.
        """
        described = describe(event, self._home(place))
        if described is not None:
            blocks, ranges = self._blocks, self._ranges
            for block, description in zip(event.block_hashes, described, strict=True):
                blocks.setdefault(block, description)
                if ranges:
                    ranges.pop(block, None)
        elif event.block_size and len(event.token_ids) > event.block_size * len(event.block_hashes):
            self._learn_range(event, place)

    def forget(self, block: int) -> None:
        """Drop one description."""
        self._blocks.pop(block, None)
        self._ranges.pop(block, None)

    def keep(self, blocks: Collection[int]) -> None:
        """Drop all other descriptions."""
        self._blocks = {block: known for block, known in self._blocks.items() if block in blocks}
        self._ranges = {block: known for block, known in self._ranges.items() if block in blocks}

    def needed(self, is_held: Callable[[int], bool]) -> set[int]:
        """Return the blocks whose descriptions it takes to describe all that are held."""
        stated: set[int] = set()
        for _ in self._runs(is_held, stated):
            pass
        stated.update(block for block in self._ranges if is_held(block))
        return stated

    def state(
        self, copies: Mapping[Place, Mapping[int, int]], places: Places, *, names_namespaces: bool
    ) -> Iterator[Event]:
        """Return events that add `copies`, and nothing else, for somebody who may know nothing of them.

        A block is described once, where it was described first, parents before children. What is described only
        because another block continues it is removed again at the end.
        """

        def is_held(block: int) -> bool:
            return any(block in pool for pool in copies.values())

        surplus: dict[Place, list[int]] = {}
        for home, run in self._runs(is_held, set()):
            place = self._homes[home]
            pool = copies.get(place, {})
            surplus.setdefault(place, []).extend(block for block, _ in run if block not in pool)
            yield from stores(run, medium=places.media[place], group=place[1], names_namespaces=names_namespaces)
        ranged: Counter[tuple[Place, int]] = Counter()
        for each in self._held_ranges(is_held):
            ranged.update((each.home, block) for block in each.event.block_hashes)
            yield each.store(places.media[each.home])
        for place, pool in copies.items():
            missing = {
                block: count - self._is_home(block, place) - ranged.pop((place, block), 0)
                for block, count in pool.items()
            }
            yield from repeated_stores(missing, places.media[place], place[1])
            surplus.setdefault(place, []).extend(
                block for block, count in missing.items() for _ in range(-count) if count < 0
            )
        for (place, block), count in ranged.items():
            surplus.setdefault(place, []).extend([block] * count)
        for place, blocks in surplus.items():
            yield from removals(Counter(blocks), places.media[place], place[1])

    def _home(self, place: Place) -> int:
        if place not in self._homes:
            self._homes.append(place)
        return self._homes.index(place)

    def _learn_range(self, event: BlockStored, place: Place) -> None:
        bare = replace(event, token_ids=(), kv_cache_spec_kind=None, session_id=None)
        masked = _Range(place, bare, array("I", event.token_ids).tobytes())
        for block in event.block_hashes:
            if block not in self._blocks:
                self._ranges[block] = masked

    def _is_home(self, block: int, place: Place) -> bool:
        description = self._blocks.get(block)
        return description is not None and self._homes[home_of(description)] == place

    def _held_ranges(self, is_held: Callable[[int], bool]) -> list[_Range]:
        if not self._ranges:
            return []
        return list(dict.fromkeys(each for block, each in self._ranges.items() if is_held(block)))

    def _runs(self, is_held: Callable[[int], bool], stated: set[int]) -> Iterator[tuple[int, list[tuple[int, bytes]]]]:
        """Return what describes all that is held: parents first, cut where the home changes."""
        run: list[tuple[int, bytes]] = []
        home = -1
        for known in self._in_order(is_held, stated):
            description = self._blocks[known]
            if home_of(description) != home:
                if run:
                    yield home, run
                home, run = home_of(description), []
            run.append((known, description))
        if run:
            yield home, run

    def _in_order(self, is_held: Callable[[int], bool], stated: set[int]) -> Iterator[int]:
        for block in self._blocks:
            if block not in stated and is_held(block):
                yield from self._lineage(block, stated)
        for each in self._held_ranges(is_held):  # They lie among blocks of other groups, which say where.
            for anchor in (each.event.parent_block_hash, *each.event.block_hashes):
                yield from self._lineage(anchor, stated)

    def _lineage(self, block: int | None, stated: set[int]) -> Iterator[int]:
        """Return the blocks before `block` that were not stated yet, from the first on, and itself."""
        chain: list[int] = []
        while block is not None and block not in stated and block in self._blocks:
            chain.append(block)
            stated.add(block)
            block = parent_of(self._blocks[block])
        return reversed(chain)


def repeated_stores(copies: Mapping[int, int], medium: str | None, group: int) -> Iterator[BlockStored]:
    """Return stores by hash alone that add so many copies of each block; counts below one add nothing."""
    for some in _chunks(copies):
        yield BlockStored(block_hashes=some, medium=medium, group_idx=group or None)


def removals(copies: Mapping[int, int], medium: str | None, group: int) -> Iterator[BlockRemoved]:
    """Return removals of so many copies of each block."""
    for some in _chunks(copies):
        yield BlockRemoved(block_hashes=some, medium=medium, group_idx=group or None)


def _chunks(copies: Mapping[int, int]) -> Iterator[tuple[int, ...]]:
    blocks = [block for block, count in copies.items() for _ in range(count)]
    for start in range(0, len(blocks), _EVENT_HASHES_MAX):
        yield tuple(blocks[start : start + _EVENT_HASHES_MAX])
