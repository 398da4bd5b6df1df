"""When memory ends, the native index raises MemoryError and is whole."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from kvrouter.index.native import PrefixIndex
from kvrouter.index.reference import PrefixIndex as Reference
from tests.native.failing_memory import FAILURES, at_every_allocation, ran_out

BLOCKS = np.random.default_rng(5).integers(0, 2**63, size=6000, dtype=np.uint64)
PLAIN = BLOCKS.tolist()
TIERS = ("gpu", "cpu")
CHANGES: list[Callable[[Any], None]] = [
    lambda index: index.store(0, BLOCKS[:40]),
    lambda index: index.store(70, BLOCKS[:20], "cpu"),
    lambda index: index.store(4000, BLOCKS[10:30]),
    lambda index: index.store(0, BLOCKS[::2]),
    lambda index: index.store(1, BLOCKS[::3], "cpu"),
    lambda index: index.remove(0, BLOCKS[:3000]),
    lambda index: index.clear(70),
    lambda index: index.store(2, PLAIN),
    lambda index: index.clear(2),
    lambda index: index.remove(1, BLOCKS, "cpu"),
]


@pytest.mark.parametrize("fails", FAILURES.values(), ids=FAILURES)
def test_every_change_survives_every_failing_allocation(fails: int) -> None:
    """Done in part or not at all, never half; and done again, it is done."""
    oracle, saved = Reference(), PrefixIndex().snapshot()
    for change in CHANGES:
        change(oracle)
        expected, tried = what_is_told(oracle), list[PrefixIndex]()

        def attempt(change: Callable[[Any], None] = change, tried: list[PrefixIndex] = tried) -> Callable[[], object]:
            check_tried(tried, change, expected)  # noqa: B023 - called in this turn
            tried.append(PrefixIndex.restore(saved))  # noqa: B023 - as above
            return partial(change, tried[0])

        at_every_allocation(attempt, fails)
        check_tried(tried, change, expected)
        index = PrefixIndex.restore(saved)
        change(index)
        saved = index.snapshot()


@pytest.mark.parametrize("fails", FAILURES.values(), ids=FAILURES)
def test_chains_survive_every_failing_allocation(fails: int) -> None:
    """A block whose place in a chain could not be noted is stored all the same."""
    chain = BLOCKS[:2500]
    for allocation in range(1 if fails == 1 else 2, 120, 2):  # each of them in one of the two ways
        oracle, index = Reference(), PrefixIndex()
        for each in (oracle, index):
            each.store_chain(1, chain[:700])
            each.store(0, BLOCKS[::2])
        ran_out(partial(index.store_chain, 0, chain), allocation, fails)
        check_whole(index)
        for each in (oracle, index):
            each.store_chain(0, chain)
            each.clear(1)
            each.remove(0, chain[2000:2010])
        assert what_is_told(index) == what_is_told(oracle)
        assert index.match_depths(chain) == {0: 2000}
        index.clear(0)
        index.store(2, [1])
        for _ in range(20):
            index.remove(2, [2])
        assert index.placed() == 0


def test_every_question_survives_every_failing_allocation() -> None:
    """Asking changes nothing, whatever becomes of the answer."""
    index = PrefixIndex()
    for change in CHANGES[:5]:
        change(index)
    plain, expected, saved = BLOCKS[:200].tolist(), index.match_depths(BLOCKS[:200]), index.snapshot()
    questions: list[Callable[[], object]] = [
        lambda: index.match_depths(plain, TIERS),
        lambda: index.match(BLOCKS, exact=False, tiers=TIERS),
        lambda: index.holds(0, plain, "cpu"),
        lambda: index.match_best(plain, 3, TIERS),
        lambda: index.match_many([plain, BLOCKS]),
        lambda: index.match_tokens(bytes(6400), 16, 7),
        index.tiers,
        index.snapshot,
        lambda: PrefixIndex.restore(saved),
    ]

    for question in questions:
        at_every_allocation(lambda: question, 1)  # noqa: B023 - called in this turn
        assert index.match_depths(plain) == expected
    check_whole(index)


@pytest.mark.parametrize("fails", FAILURES.values(), ids=FAILURES)
def test_answers_about_many_ranks_survive_every_failing_allocation(fails: int) -> None:
    """Those that are made like the ones before too."""
    index = PrefixIndex()
    for rank in range(600):
        index.store(rank, PLAIN[: 9 if rank % 50 else 12])
    expected = {rank: 9 if rank % 50 else 12 for rank in range(600)}

    def attempt() -> Callable[[], object]:
        twin = PrefixIndex.restore(saved)
        return lambda: [(twin.match_depths(PLAIN[:20]), twin.match(PLAIN[:20]).depths()) for _ in range(3)]

    saved = index.snapshot()
    at_every_allocation(attempt, fails)
    for _ in range(3):
        assert index.match_depths(PLAIN[:20]) == index.match(PLAIN[:20]).depths() == expected


def check_tried(tried: list[PrefixIndex], change: Callable[[Any], None], expected: object) -> None:
    """What ran out of memory in the middle of a change is whole, and when it is changed again it is as it should be."""
    while tried:
        index = tried.pop()
        check_whole(index)
        change(index)
        assert what_is_told(index) == expected


def check_whole(index: PrefixIndex) -> None:
    """What the index counts is what it holds."""
    anyone = np.zeros(len(BLOCKS), dtype=np.bool_)
    for rank in (0, 1, 2, 70, 4000):
        for tier in TIERS:
            held = index.holds(rank, BLOCKS, tier)
            assert index.blocks(rank, tier) == held.sum()
            anyone |= held
    assert len(index) == anyone.sum()


def what_is_told(index: PrefixIndex | Reference) -> object:
    """All there is to know of an index of these blocks."""
    each = [(rank, tier) for rank in (0, 1, 2, 70, 4000) for tier in TIERS]
    return len(index), [(index.blocks(*one), index.holds(one[0], BLOCKS, one[1]).tobytes()) for one in each]
