"""When memory ends, native predictions raise MemoryError and are whole; whatever is taken is given back."""

import gc
import tracemalloc
from array import array
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from kvrouter import native_core
from tests.native.failing_memory import FAILURES, at_every_allocation

PredictedBlocks = native_core.native.PredictedBlocks
LONG = array("Q", range(1, 800)).tobytes()
STEPS: list[Callable[[Any], object]] = [
    lambda each: each.predict(0, LONG, 16, 0, 0, 10.0, 5.0),
    lambda each: each.predict(70, LONG, 16, 320, 320, 11.0, 5.0),
    lambda each: each.predict(1, LONG, 16, 0, 0, 12.0, 5.0),
    lambda each: each.store(70, [*range(30, 50), *range(5000, 5100)], 13.0),
    lambda each: each.store(4000, list(range(1, 400)), 14.0),
    lambda each: each.expire(10.5),
    lambda each: each.drop(70),
    lambda each: each.predict(0, LONG, 16, 0, 0, 20.0, 15.0),
    lambda each: each.store(2, [1, 2, 3, 2, 1], 20.0),
]


@pytest.mark.parametrize("fails", FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize("number", range(len(STEPS)))
def test_every_change_survives_every_failing_allocation(number: int, fails: int) -> None:
    """What was not written is missing, and nothing else; at the end everything can be ended."""
    tried: list[Any] = []

    def attempt() -> Callable[[], object]:
        while tried:
            check_whole(tried.pop())
        tried.append(PredictedBlocks(blocks_max=600, total_max=900))
        for step in STEPS[:number]:
            step(tried[0])
        return partial(STEPS[number], tried[0])

    at_every_allocation(attempt, fails)
    check_whole(tried.pop())


def test_every_question_survives_every_failing_allocation() -> None:
    """Asking changes nothing, whatever becomes of the answer."""
    each = PredictedBlocks()
    for step in STEPS[:4]:
        step(each)
    known = dict.fromkeys(range(100, 500), 8)
    expected = each.promised(known, LONG, 16, 20_000)
    questions = [
        lambda: each.promised(known, LONG, 16, 20_000),
        lambda: each.match(list(range(1, 300)), known),
        lambda: each.deadline(0, 1),
    ]

    for question in questions:
        at_every_allocation(lambda: question, 1)  # noqa: B023 - called in this turn
    assert each.promised(known, LONG, 16, 20_000) == expected != known


def test_what_ends_gives_its_memory_back() -> None:
    """A long life costs no more than what is predicted now."""
    each = PredictedBlocks(blocks_max=500, total_max=2000)

    def live(rounds: int) -> int:
        for number in range(rounds):
            run = list(range(number % 7, 300 + number % 5))
            each.store(number % 9, run, float(number))
            each.promised({}, LONG, 16, 20_000)
            if not number % 50:
                each.expire(float(number))
        each.expire(1e9)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        live(500)
        before = live(500)
        after = live(1500)
    finally:
        tracemalloc.stop()

    assert after - before < 20_000
    assert len(each) == 0
    assert each.nbytes() < 100_000


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda each: each.store(4096, [1], 1.0), ValueError),
        (lambda each: each.store(-1, [1], 1.0), ValueError),
        (lambda each: each.store(0, [2**64], 1.0), OverflowError),
        (lambda each: each.store(0, [1], "soon"), TypeError),
        (lambda each: each.store(0, "text", 1.0), TypeError),
        (lambda each: each.match([1], [2]), TypeError),
        (lambda each: each.match([1], {0: 1.5}), TypeError),
        (lambda each: each.match([1], {5000: 1}), ValueError),
        (lambda each: each.promised({0: "x"}, LONG, 16, 100), TypeError),
        (lambda each: each.promised([], LONG, 16, 100), TypeError),
        (lambda each: each.promised({}, LONG, 0, 100), ValueError),
        (lambda each: each.promised({}, None, 16, 100), TypeError),
        (lambda each: each.predict(0, LONG, 16, 0, 0, 1.0), TypeError),
        (lambda each: each.predict(0, LONG, 0, 0, 0, 1.0, 1.0), ValueError),
        (lambda each: each.deadline(0, -1), OverflowError),
        (lambda each: each.expire("now"), TypeError),
        (lambda each: each.drop("a"), TypeError),
        (lambda each: PredictedBlocks(blocks_max=-1), ValueError),
        (lambda each: PredictedBlocks(total_max=2**40), ValueError),
    ],
)
def test_wrong_arguments_are_refused(call: Callable[[Any], object], error: type[Exception]) -> None:
    """With an exception, and nothing is changed."""
    each = PredictedBlocks()
    each.store(0, [1, 2], 1.0)

    with pytest.raises(error):
        call(each)

    assert (len(each), each.match([1, 2, 3], {})) == (2, {0: 2})


def check_whole(each: Any) -> None:
    """Counts agree with what is found, and all of it can be ended."""
    keys = [*range(1, 800), *range(5000, 5100)]
    for rank in (0, 1, 2, 70, 4000):
        assert each.blocks(rank) == sum(each.deadline(rank, key) is not None for key in keys)
    each.expire(1e9)
    assert len(each) == 0
    assert [each.blocks(rank) for rank in (0, 1, 2, 70, 4000)] == [0] * 5
    assert all(each.deadline(0, key) is None for key in keys)
