"""Sending a workload: conversations grow by their own answers, and one failure ends everything."""

import pytest

from kvrouter.demo.client import Answer, AnswerError
from kvrouter.demo.load import send
from kvrouter.demo.workload import Session, Turn, Workload
from tests.replay.serving import run


class Echo:
    """Answers each prompt with its length, and remembers what it was asked."""

    def __init__(self, fails_at: int = -1) -> None:
        self.asked: list[list[int]] = []
        self._fails_at = fails_at

    async def complete(self, prompt: list[int], *, model: str, answer_tokens: int, session: str) -> Answer:
        if len(self.asked) == self._fails_at:
            raise AnswerError("no")
        self.asked.append(list(prompt))
        return Answer(
            first_token_seconds=0.1,
            seconds=0.2,
            tokens=[len(prompt)] * answer_tokens,
            prompt_tokens=len(prompt),
            cached_tokens=0,
            worker=session,
        )


def two_turns(due: float = 0.0) -> Workload:
    """Return one conversation of two turns."""
    turns = tuple(Turn(due_seconds=due + number / 100, added_tokens=(number,), answer_tokens=2) for number in (1, 2))
    return Workload(sessions=(Session(name="s", system_tokens=(7, 8, 9), turns=turns),), seconds=1)


def test_each_turn_sends_the_whole_conversation() -> None:
    """System prompt, questions, and the answers that were given."""
    echo = Echo()
    answers: list[Answer] = []

    run(lambda: send(two_turns(), echo, model="m", answered=answers.append))

    assert echo.asked == [[7, 8, 9, 1], [7, 8, 9, 1, 4, 4, 2]]
    assert len(answers) == 2


def test_nothing_is_sent_before_it_is_due() -> None:
    """The time that it took is given back."""
    took = run(lambda: send(two_turns(due=0.05), Echo(), model="m", answered=lambda _: None))

    assert took >= 0.06


def test_a_failure_ends_the_whole() -> None:
    """As itself, not inside a group."""
    echo = Echo(fails_at=1)

    with pytest.raises(AnswerError, match="no"):
        run(lambda: send(two_turns(), echo, model="m", answered=lambda _: None))

    assert len(echo.asked) == 1
