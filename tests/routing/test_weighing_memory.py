"""When memory ends while the native core decides, it raises MemoryError, and nobody is busier than he is told."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from kvrouter import native_core
from kvrouter.blocks import Prompt
from kvrouter.index import PrefixIndex
from tests.native.failing_memory import FAILURES, at_every_allocation, leaves_nothing
from tests.routing.fleets import prompt_of

native: Any = native_core.native
WEIGHTS = ((1.0,) * 7, (1.0,) * 4)
PROMPT = Prompt(prompt_of(1, 2, tokens=700))
HASHES, TOKENS = PROMPT.hash_bytes(16), 1400
ID = 7


class Desk:
    """All that a decision is made of."""

    def __init__(self) -> None:
        index = PrefixIndex()
        index.store(0, Prompt(prompt_of(1, tokens=700)).hashes(16))
        index.store(0, Prompt(prompt_of(1, 2, tokens=700)).hashes(16), "cpu")
        self.weigher = native.Weigher(index, *WEIGHTS)
        self.loads = tuple(native.RankLoad(number, 100 * number, number, rank=number) for number in range(6))
        self.predicted = native.PredictedBlocks()
        prompt = HASHES, 16, TOKENS
        self.question = (self.loads, self.predicted, *prompt, {4, 5}, 0.0, (0.0, 0.5) * 3, (("cpu", 0.9),))

    def busy(self) -> list[tuple[int, int, int]]:
        """How busy everybody is."""
        return [(load.active_requests, load.prefill_tokens, load.decode_blocks) for load in self.loads]


QUESTIONS: dict[str, Callable[[Desk], object]] = {
    "weigh": lambda desk: desk.weigher.weigh(*desk.question),
    "choose": lambda desk: native.RankLoad.choose(desk.loads, {0: 16, 3: 160}, TOKENS, WEIGHTS[0], 0.0),
    "load": lambda _: native.RankLoad(1, 2_000_000, 3, rank=70),
    "booking": lambda _: native.RankLoad().take(1, 2, 3, 0.0).prefill_tokens,
    "shown": lambda desk: repr(desk.loads[3]),
    "equal": lambda desk: desk.loads[1] == desk.loads[2],
    "weigher": lambda _: native.Weigher(PrefixIndex(), *WEIGHTS),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_every_question_survives_every_failing_allocation(name: str) -> None:
    """Asking changes nothing, and nothing is left behind."""
    desk = Desk()
    ask = partial(QUESTIONS[name], desk)
    busy, told = desk.busy(), repr(ask())

    assert leaves_nothing(lambda: at_every_allocation(lambda: ask, 1))
    assert desk.busy() == busy
    assert name == "weigher" or repr(ask()) == told


@pytest.mark.parametrize("fails", FAILURES.values(), ids=FAILURES)
def test_a_placement_survives_every_failing_allocation(fails: int) -> None:
    """It is made or it is not; what was foreseen of it ends like everything else; afterwards it can be made."""
    placed = Desk()
    told = placed.weigher.place(*placed.question, ID)
    tried: list[Desk] = []

    def check() -> None:
        for desk in tried:
            assert desk.busy() in (Desk().busy(), placed.busy())
            desk.predicted.expire(1e9)
            assert len(desk.predicted) == 0
            if desk.busy() == Desk().busy():
                assert repr(desk.weigher.place(*desk.question, ID)) == repr(told)
                assert desk.busy() == placed.busy()

    def attempt() -> Callable[[], object]:
        check()
        tried[:] = [Desk()]
        return partial(tried[0].weigher.place, *tried[0].question, ID)

    at_every_allocation(attempt, fails)
    check()
