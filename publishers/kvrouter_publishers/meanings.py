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
_RUN_BLOCKS_MAX: Final = 2048
_Copies = Mapping[Place, Mapping[int, int]]


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

    @property
    def has_ranges(self) -> bool:
        """Whether there are descriptions that need those of other blocks beside their parents."""
        return bool(self._ranges)

    def learn(self, event: BlockStored, place: Place) -> list[int | None]:
        """Take what a store in `place` says; its hashes must be folded. Returns the parent of each that is new.

        Raises:
            DescriptionError: a value is not what it should be.
        """
        new: list[int | None] = []
        described = describe(event, self._home(place))
        if described is not None:
            blocks, ranges, parent = self._blocks, self._ranges, event.parent_block_hash
            for block, description in zip(event.block_hashes, described, strict=True):
                if block not in blocks:
                    blocks[block] = description
                    new.append(parent)
                    if ranges:
                        ranges.pop(block, None)
                parent = block
        elif event.block_size and len(event.token_ids) > event.block_size * len(event.block_hashes):
            self._learn_range(event, place)
        return new

    def forget(self, block: int) -> int | None:
        """Drop one description; returns the block that it continues, if that is known."""
        description = self._blocks.pop(block, None)
        self._ranges.pop(block, None)
        return None if description is None else parent_of(description)

    def keep(self, blocks: Collection[int]) -> None:
        """Drop all other descriptions."""
        self._blocks = {block: known for block, known in self._blocks.items() if block in blocks}
        self._ranges = {block: known for block, known in self._ranges.items() if block in blocks}

    def copy(self) -> "Meanings":
        """Return another that knows the same."""
        copied = Meanings()
        copied._blocks, copied._ranges, copied._homes = dict(self._blocks), dict(self._ranges), list(self._homes)
        return copied

    def needed(self, copies: _Copies, idle: Collection[int]) -> set[int]:
        """Return the blocks whose descriptions it takes to describe all that is held, and those of `idle`."""
        is_wanted = _any_of(copies, idle)
        stated: set[int] = set()
        for _ in self._in_order(is_wanted, stated):
            pass
        stated.update(block for block in self._ranges if is_wanted(block))
        return stated

    def state(
        self, copies: _Copies, idle: Collection[int], places: Places, *, names_namespaces: bool
    ) -> Iterator[Event]:
        """Return events that add `copies`, and nothing else, for somebody who may know nothing of them.

        A block is described once, where it was described first, parents before children. What is described only
        because another block continues it, or somebody may name it later (`idle`), is removed again at the end.
        """
        is_wanted = _any_of(copies, idle)
        surplus: dict[Place, Counter[int]] = {place: Counter() for place in (*copies, *self._homes)}
        missing: dict[Place, dict[int, int]] = {place: {} for place in copies}
        stated = dict.fromkeys(self._homes, 0)
        for home, run in self._runs(is_wanted):
            place = self._homes[home]
            pool = copies.get(place, {})
            for block, _ in run:
                count = pool.get(block, 0)
                stated[place] += count > 0
                if count != 1:
                    (missing if count else surplus)[place][block] = count - 1 if count else 1
            yield from stores(run, medium=places.media[place], group=place[1], names_namespaces=names_namespaces)
        ranged: Counter[tuple[Place, int]] = Counter()
        for each in self._wanted_ranges(is_wanted):
            ranged.update((each.home, block) for block in each.event.block_hashes)
            yield each.store(places.media[each.home])
        for place, pool in copies.items():
            if ranged or stated.get(place) != len(pool):  # Looking at all of them once more takes its time.
                missing[place] = self._not_stated(place, pool, ranged)
            yield from repeated_stores(missing[place], places.media[place], place[1])
            surplus[place].update({block: -count for block, count in missing[place].items() if count < 0})
        for (place, block), count in ranged.items():
            surplus[place][block] += count
        for place, counts in surplus.items():
            if counts:
                yield from removals(counts, places.media[place], place[1])

    def _not_stated(self, place: Place, pool: Mapping[int, int], ranged: Counter[tuple[Place, int]]) -> dict[int, int]:
        """Return how many copies in one place no description has stated; below zero where too many were."""
        home = self._homes.index(place) if place in self._homes else -1
        known = self._blocks.get
        missing = {}
        for block, count in pool.items():
            description = known(block)
            stated = int(description is not None and home_of(description) == home)
            if ranged:
                stated += ranged.pop((place, block), 0)
            if count != stated:
                missing[block] = count - stated
        return missing

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

    def _wanted_ranges(self, is_wanted: Callable[[int], bool]) -> list[_Range]:
        if not self._ranges:
            return []
        return list(dict.fromkeys(each for block, each in self._ranges.items() if is_wanted(block)))

    def _runs(self, is_wanted: Callable[[int], bool]) -> Iterator[tuple[int, list[tuple[int, bytes]]]]:
        """Return what describes all that is wanted: parents first, cut where the home changes."""
        run: list[tuple[int, bytes]] = []
        home = -1
        for known in self._in_order(is_wanted, set()):
            description = self._blocks[known]
            its_home = home_of(description)
            if its_home != home or len(run) >= _RUN_BLOCKS_MAX:
                if run:
                    yield home, run
                home, run = its_home, []
            run.append((known, description))
        if run:
            yield home, run

    def _in_order(self, is_wanted: Callable[[int], bool], stated: set[int]) -> Iterator[int]:
        blocks = self._blocks
        for block, description in blocks.items():
            if block in stated or not is_wanted(block):
                continue
            parent = parent_of(description)
            if parent is None or parent in stated or parent not in blocks:
                stated.add(block)
                yield block
            else:
                yield from self._lineage(block, stated)
        for each in self._wanted_ranges(is_wanted):  # They lie among blocks of other groups, which say where.
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


def _any_of(copies: _Copies, idle: Collection[int]) -> Callable[[int], bool]:
    pools: list[Collection[int]] = [pool for pool in (*copies.values(), idle) if pool]
    if len(pools) == 1:
        return pools[0].__contains__
    return lambda block: any(block in pool for pool in pools)


def _chunks(copies: Mapping[int, int]) -> Iterator[tuple[int, ...]]:
    blocks = [block for block, count in copies.items() for _ in range(count)]
    for start in range(0, len(blocks), _EVENT_HASHES_MAX):
        yield tuple(blocks[start : start + _EVENT_HASHES_MAX])
