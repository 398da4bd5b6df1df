"""One rank's table: the contract of both implementations, and what only the native one could get wrong."""

import itertools
import random
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from kvrouter import native_core
from kvrouter.index import PrefixIndex
from kvrouter.index.reference import PrefixIndex as ReferenceIndex
from kvrouter.ingest.block_table import BlockTable, Meanings, block_table

RANK = 3
Made = tuple[Any, BlockTable, Meanings]


@pytest.fixture(params=[PrefixIndex, ReferenceIndex], ids=["fastest", "reference"])
def make(request: pytest.FixtureRequest) -> Callable[..., Made]:
    """An index, and a table that it follows; `idle_max` and `unresolved_max` are its bounds."""

    def made(*, idle_max: int = 1000, unresolved_max: int = 1000) -> Made:
        index = request.param()
        table, meanings = block_table(index, RANK, idle_max=idle_max, unresolved_max=unresolved_max)
        table.attach({}, {}, {}, {})
        table.set_main(0)
        return index, table, meanings

    return made


def _learn(table: BlockTable, meanings: Meanings, pairs: dict[int, int]) -> None:
    for engine_hash, key in pairs.items():
        meanings[engine_hash] = key
    table.settle(list(pairs))


def test_copies_count_as_soon_as_their_meaning_is_known(make: Callable[..., Made]) -> None:
    """In whatever order the two are told."""
    index, table, meanings = make()

    table.add("gpu", 0, [11, 12])
    before = (index.blocks(RANK), table.unresolved)
    _learn(table, meanings, {11: 101, 12: 102})

    assert before == (0, 2)
    assert index.holds(RANK, [101, 102]).tolist() == [True, True]
    assert (table.unresolved, len(meanings), meanings.get(11), meanings.get(13)) == (0, 2, 101, None)


def test_a_block_with_two_names_stays_until_both_are_gone(make: Callable[..., Made]) -> None:
    """And in each tier on its own."""
    index, table, meanings = make()
    _learn(table, meanings, {11: 101, 99: 101})
    table.add("gpu", 0, [11, 99, 99])
    table.add("cpu", 0, [99])

    held = []
    for gone in (99, 11, 99):
        table.remove("gpu", 0, [gone])
        held.append(index.blocks(RANK, "gpu"))

    assert held == [1, 1, 0]
    assert index.blocks(RANK, "cpu") == 1
    assert table.copies() == {("cpu", 0): {99: 1}}


def test_a_removal_of_what_has_no_copy_is_counted(make: Callable[..., Made]) -> None:
    """Unknown places, unknown hashes, and one removal too many."""
    _, table, meanings = make()
    _learn(table, meanings, {11: 101})
    table.add("gpu", 0, [11])

    table.remove("disk", 7, [11])
    table.remove("gpu", 0, [11, 11, 12])

    assert table.unknown_removals == 3


def test_what_went_first_is_forgotten_first_unless_it_came_back(make: Callable[..., Made]) -> None:
    """Coming back is a new beginning."""
    _, table, meanings = make(idle_max=2)
    _learn(table, meanings, {each: 100 + each for each in range(1, 5)})
    table.add("gpu", 0, [1, 2, 3, 4])

    table.remove("gpu", 0, [1, 2])
    table.add("gpu", 0, [1])
    table.remove("gpu", 0, [3, 1])
    kept = table.idle_hashes()
    table.remove("gpu", 0, [4])

    assert kept == [3, 1]
    assert table.idle_hashes() == [1, 4]
    assert [each for each in range(1, 5) if each in meanings] == [1, 4]


def test_the_index_follows_another_group_with_every_block_of_it(make: Callable[..., Made]) -> None:
    """Also blocks that have two names in the one and one in the other; and none if no group is followed."""
    index, table, meanings = make()
    _learn(table, meanings, {11: 101, 12: 102, 99: 101})
    table.add("gpu", 0, [11, 99])
    table.add("gpu", 1, [11, 12])

    table.set_main(1)
    followed = index.holds(RANK, [101, 102]).tolist()
    table.remove("gpu", 1, [11])
    after = index.holds(RANK, [101, 102]).tolist()
    table.set_main(0)
    table.remove("gpu", 0, [99])

    assert (followed, after) == ([True, True], [False, True])
    assert index.holds(RANK, [101, 102]).tolist() == [True, False]
    table.set_main(None)
    assert index.blocks(RANK) == 0
    assert [table.holds("gpu", group, 101) for group in (0, 1)] == [True, False]


def test_clearing_a_tier_leaves_the_others(make: Callable[..., Made]) -> None:
    """Whose blocks keep their meaning, and so do those that were cleared, for a while."""
    index, table, meanings = make()
    _learn(table, meanings, {11: 101, 12: 102})
    for place in (("gpu", 0), ("gpu", 1), ("cpu", 0)):
        table.add(*place, [11])
    table.add("gpu", 0, [12, 77])

    table.clear_tier("gpu")

    assert table.copies() == {("cpu", 0): {11: 1}}
    assert (index.blocks(RANK, "gpu"), index.blocks(RANK, "cpu")) == (0, 1)
    assert (table.idle_hashes(), table.unresolved) == ([12], 0)


def test_more_kinds_of_copies_than_a_row_can_number(make: Callable[..., Made]) -> None:
    """One copy in each of two groups that differ for nearly every hash: all come, and all go."""
    index, table, _ = make(unresolved_max=10**6)
    kinds = 3_000 if isinstance(table, BlockTable) else 66_000  # Python has no rows, and takes its time.
    places = list(itertools.islice(itertools.combinations(range(256), 3), kinds))

    for number, groups in enumerate(places):
        for group in groups:
            table.add("cpu", group, [number])
    copies = table.copies()
    for number, groups in enumerate(places):
        for group in groups:
            table.remove("cpu", group, [number])

    assert sum(map(len, copies.values())) == 3 * len(places)
    assert table.copies() == {}
    assert (table.unresolved, table.unknown_removals, len(index)) == (0, 0, 0)


def test_meanings_come_and_go_by_the_ten_thousand(make: Callable[..., Made]) -> None:
    """Whatever crowds, grows, splits, shrinks and joins on the way: each hash that is there means what was said."""
    _, _, meanings = make()
    choose = random.Random(1)
    known: dict[int, int] = {}

    for most in (20_000, 1_000, 9_000, 0):
        while len(known) < most:
            engine_hash = choose.getrandbits(64)
            known[engine_hash] = meanings[engine_hash] = choose.getrandbits(64)
        for engine_hash in choose.sample(sorted(known), len(known) - most):
            del known[engine_hash], meanings[engine_hash]

        assert len(meanings) == len(known)
        assert all(meanings.get(engine_hash) == key for engine_hash, key in known.items())
        assert all(choose.getrandbits(64) not in meanings for _ in range(1000))


def _in_pages(table: Any) -> int:
    """What Python's allocator does not see: the core takes pages of the system's."""
    size: int = table.nbytes() if native_core.present else 0
    return size


@pytest.mark.parametrize("what", ["clear", "remove"])
def test_memory_is_given_back(what: str) -> None:
    """A hundred thousand blocks leave next to nothing behind, cleared at once or removed one by one."""
    index = PrefixIndex()
    table, meanings = block_table(index, RANK, idle_max=0, unresolved_max=100)
    table.attach({}, {}, {}, {})
    table.set_main(0)
    hashes = [number * 0x9E3779B97F4A7C15 % 2**64 for number in range(100_000)]

    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        _learn(table, meanings, {each: each ^ 5 for each in hashes})
        table.add("gpu", 0, hashes)
        full = tracemalloc.get_traced_memory()[0] - before + _in_pages(table)
        table.clear() if what == "clear" else table.remove("gpu", 0, hashes)
        for start in range(0, 200_000, 10_000):  # What a rank leaves in the index is swept out as others store.
            index.store(RANK + 1, range(start, start + 10_000))
            index.remove(RANK + 1, range(start, start + 10_000))
        left = tracemalloc.get_traced_memory()[0] - before + _in_pages(table)
    finally:
        tracemalloc.stop()

    assert len(index) == len(meanings) == 0
    # A dict does not shrink while it is in use.
    assert left < (full / 20 if native_core.present or what == "clear" else full)


def test_batches_leave_no_memory_behind() -> None:
    """Whether they are applied, left in the middle, or no batches at all."""
    index = PrefixIndex()
    table, _ = block_table(index, RANK, idle_max=0, unresolved_max=100)
    table.attach({}, {}, {}, {})
    table.set_main(0)
    table.describe(4, [(0, 4, False, False, True)])
    tokens = list(range(400))
    stored = ["BlockStored", list(range(100)), None, tokens, 4, None, "GPU"]
    removed = ["BlockRemoved", list(range(100)), "GPU"]
    payloads = [
        msgpack.packb([0.0, [stored, removed], 0]),
        msgpack.packb([0.0, [stored, ["BlockStored", [777], 999, [1] * 4, 4], removed], 0]),
        msgpack.packb([0.0, [stored, ["Unheard", 1], removed], 0]),
        b"\x93\xc0\x91" + b"\x91" * 50,
    ]

    def repeat() -> int:
        for _, payload in itertools.product(range(50), payloads):
            table.apply(payload)
            while table.proceed() is not None:
                pass
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        repeat()
        before = repeat()
        after = repeat()
    finally:
        tracemalloc.stop()

    assert after - before < 20_000
    assert len(index) == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda table: table.add("gpu", 256, [1]),
        lambda table: table.add("tape", 0, [1]),
        lambda table: table.add("gpu", 0, [2**64]),
        lambda table: table.set_main(-1),
        lambda table: table.describe(4, [(1, 2)]),
        lambda table: table.attach([], {}, {}, {}),
        lambda table: table.apply("text"),
    ],
)
def test_what_makes_no_sense_is_refused_by_the_core(call: Callable[[Any], object]) -> None:
    """With an exception, never with a wrong table."""
    if not native_core.present:
        return
    native: Any = native_core.native
    table = native.BlockTable(PrefixIndex(), RANK, idle_max=1, unresolved_max=1)
    table.describe(4, [(0, 4, False, False, True)])

    with pytest.raises((ValueError, OverflowError, TypeError)):
        call(table)

    assert table.copies() == {}
    with pytest.raises(TypeError):
        native.BlockTable(ReferenceIndex(), RANK, idle_max=1, unresolved_max=1)
