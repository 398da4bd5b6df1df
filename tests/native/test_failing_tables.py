"""When memory ends, a rank's table raises MemoryError, claims nothing that is gone, and can be used and ended."""

from collections.abc import Callable
from functools import partial
from typing import Any

import msgpack
import pytest

from kvrouter import native_core
from kvrouter.index.native import PrefixIndex
from tests.native.failing_memory import FAILURES, at_every_allocation, leaves_nothing

RANK, NEIGHBOUR = 3, 70
TIERS = ("gpu", "cpu", "disk")
PLACES = [(tier, group) for tier in TIERS for group in (0, 1)]
MANY = [number * 0x9E3779B97F4A7C15 % 2**64 for number in range(1, 400)]


def _batch(*events: object) -> bytes:
    payload: bytes = msgpack.packb([0.0, events, 0])
    return payload


def _stored(hashes: list[int], parent: int | None = None, medium: str = "GPU", group: int = 0) -> list[object]:
    tokens = [hash_ % 50_000 for hash_ in hashes for _ in range(4)]
    return ["BlockStored", hashes, parent, tokens, 4, None, medium, None, None, group]


# Made beforehand: where memory ends, other libraries may keep what they have begun.
FIRST = _batch(_stored(MANY[:150]), _stored(MANY[150:160], MANY[149]))
AGAIN = _batch(_stored(MANY[:20]), _stored(MANY[10:30], MANY[9], "CPU"))
MORE = _batch(_stored(MANY[340:390], MANY[5]), ["BlockRemoved", MANY[:70], "GPU"])
RUN = [_batch(_stored(MANY[330:335], MANY[7])), _batch(["BlockRemoved", MANY[70:90], "GPU"])]
RESET = _batch(["AllBlocksCleared"], _stored(MANY[:9]))
LAYOUT = _batch(_stored(MANY[:5], group=1), _stored(MANY[:5]))


def _learn(table: Any, hashes: list[int], base: int) -> None:
    for number, engine_hash in enumerate(hashes):
        table[engine_hash] = base + number
    table.settle(hashes)


def _apply(table: Any, payload: bytes) -> None:
    table.apply(payload)
    while table.proceed() is not None:
        pass


STEPS: dict[str, Callable[[Any], object]] = {
    "one": lambda table: table.add("gpu", 0, [5]),
    "two": lambda table: table.add("disk", 1, [5]),
    "meant": lambda table: _learn(table, [5], 9_999),
    "batch": lambda table: _apply(table, FIRST),
    "again": lambda table: _apply(table, AGAIN),
    "others": lambda table: table.add("gpu", 1, MANY[:40]),
    "unknown": lambda table: table.add("gpu", 0, MANY[200:330]),
    "elsewhere": lambda table: table.add("disk", 1, MANY[190:340]),
    "learnt": lambda table: _learn(table, MANY[195:300], 10_000),
    "named-twice": lambda table: _learn(table, MANY[300:340], 10_000),
    "more": lambda table: _apply(table, MORE),
    "run": lambda table: table.apply_plain(RUN, 0),
    "followed": lambda table: table.set_main(1),
    "back": lambda table: table.set_main(0),
    "removed": lambda table: table.remove("gpu", 0, MANY[60:260]),
    "forgotten": lambda table: table.retire(MANY),
    "cleared": lambda table: table.clear_tier("gpu"),
    "reset": lambda table: _apply(table, RESET),
    "ended": lambda table: table.clear(),
}
QUESTIONS: dict[str, Callable[[Any], object]] = {
    "meanings": lambda table: table.meanings(),
    "blocks": lambda table: table.blocks("gpu", 0),
    "copies": lambda table: table.copies(),
    "tiers": lambda table: table.tiers(),
    "idle": lambda table: table.idle_hashes(),
    "known": lambda table: table.get(MANY[100]),
    "all": lambda table: table.holds_all("gpu", 0, MANY[:5]),
    "tells": lambda table: table.tells(LAYOUT),
}


def _prepared(names: list[str]) -> tuple[PrefixIndex, Any]:
    """A table after some of the steps, in an index where another rank has some of the same blocks."""
    index = PrefixIndex()
    table = native_core.native.BlockTable(index, RANK, idle_max=100, unresolved_max=60)
    table.attach({}, {}, {}, {})
    table.describe(4, [(0, 4, False, False, True)])
    table.set_main(0)
    index.store(NEIGHBOUR, range(10_000, 10_050))
    for name in names:
        STEPS[name](table)
    return index, table


@pytest.mark.parametrize("fails", FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize("name", STEPS)
def test_every_change_survives_every_failing_allocation(name: str, fails: int) -> None:
    """What the index claims then has a copy; it goes on, also with the same again; at the end nothing is left."""
    before = list(STEPS)[: list(STEPS).index(name)]
    made: list[tuple[PrefixIndex, Any]] = []

    def check() -> None:
        for index, table in made:
            _check_claims(index, table)
            STEPS[name](table)
            _check_the_rest(index, table)

    def attempt() -> Callable[[], object]:
        check()
        made[:] = [_prepared(before)]
        return partial(STEPS[name], made[0][1])

    last = at_every_allocation(attempt, fails)

    check()
    assert last > 0 or name != "batch"  # How many there are depends on where a table's rows happen to lie.


@pytest.mark.parametrize("name", QUESTIONS)
def test_every_question_survives_every_failing_allocation(name: str) -> None:
    """Asking changes nothing, whatever becomes of the answer, and nothing is left behind."""
    _, table = _prepared(list(STEPS)[:11])
    ask = partial(QUESTIONS[name], table)
    expected = ask()

    assert leaves_nothing(lambda: at_every_allocation(lambda: ask, 1))
    assert ask() == expected


@pytest.mark.parametrize("name", STEPS)
def test_failures_leave_no_objects_behind(name: str) -> None:
    """Neither when they happen nor when the table has gone."""
    before = list(STEPS)[: list(STEPS).index(name)]

    def sweep() -> None:
        at_every_allocation(lambda: partial(STEPS[name], _prepared(before)[1]), 1)

    assert leaves_nothing(sweep)


def _check_the_rest(index: PrefixIndex, table: Any) -> None:
    """Of any later life: the table is whole, learns, loses and ends."""
    for group in (1, 0):
        table.set_main(group)
        _check_claims(index, table)
    table.add("gpu", 0, [7, 8])
    _learn(table, [7, 8], 77)
    assert index.holds(RANK, [77, 78]).all()
    for (tier, group), copies in table.copies().items():
        for engine_hash, count in copies.items():
            table.remove(tier, group, [engine_hash] * count)
        _check_claims(index, table)
    assert table.copies() == {}
    assert [index.blocks(RANK, tier) for tier in TIERS] == [0, 0, 0]
    table.clear()
    assert (len(table), table.idle, table.unresolved, index.blocks(RANK)) == (0, 0, 0, 0)
    assert index.blocks(NEIGHBOUR) == 50


def _check_claims(index: PrefixIndex, table: Any) -> None:
    """The index claims no more for the rank than there are copies of, in any group."""
    meanings, copies = table.meanings(), table.copies()
    keys = sorted(set(meanings.values()))
    for tier in TIERS:
        held = {key for key, is_held in zip(keys, index.holds(RANK, keys, tier).tolist(), strict=True) if is_held}
        there = {meanings[hash_] for group in (0, 1) for hash_ in copies.get((tier, group), ()) if hash_ in meanings}
        assert held <= there
        assert index.blocks(RANK, tier) == len(held)
