"""Conversations and their ranks: checked against a model that is as simple as the rules."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvrouter.blocks import Prompt
from kvrouter.events import Source
from kvrouter.routing import POLICIES, Router
from kvrouter.routing.constraints import UNCONSTRAINED, Constraints
from kvrouter.routing.sessions import KEY_CHARACTERS_MAX, PIN_SECONDS, SessionTable

A, B = Source("a", 0), Source("b", 1)


def _table(seconds: float = 1.0, *, idle_seconds: float = 60.0, sessions_max: int = 100) -> SessionTable:
    return SessionTable(
        idle_seconds=idle_seconds, sessions_max=sessions_max, seconds=seconds, defaults=Constraints(zone="z")
    )


def test_a_conversation_asks_for_the_rank_where_it_was() -> None:
    """On top of what the request or the fleet's defaults ask for; a stranger asks for nothing more."""
    table = _table()
    table.placed("s", "m", A, 0.0)

    assert table.asked("s", "m", None, 1.0) == Constraints(zone="z", affine=A, affine_seconds=1.0)
    own = Constraints(zone="y")
    assert table.asked("s", "m", own, 1.0) == Constraints(zone="y", affine=A, affine_seconds=1.0)
    assert table.asked("s", "other", own, 1.0) is own
    assert table.asked("t", "m", None, 1.0) is None


def test_who_names_a_worker_does_not_ask_for_another() -> None:
    """A pin of the request's own goes first."""
    table = _table()
    table.placed("s", "m", A, 0.0)

    for own in (Constraints(pinned=B), Constraints(pinned_worker="b")):
        assert table.asked("s", "m", own, 1.0) is own


def test_a_conversation_that_is_answered_is_not_idle() -> None:
    """Its time runs from the end of its last request."""
    table = _table(idle_seconds=10.0)
    table.placed("s", "m", A, 0.0)
    table.expire(500.0)
    assert len(table) == 1

    table.ended("s", "m", 500.0)
    table.expire(509.0)
    assert len(table) == 1
    table.expire(510.0)
    assert (len(table), table.counts.expired) == (0, 1)


def test_a_long_name_is_kept_as_its_hash() -> None:
    """Clients choose names, and memory is bounded."""
    table, name = _table(), "x" * (KEY_CHARACTERS_MAX + 1)
    table.placed(name, "m", A, 0.0)
    table.placed(name + "y", "m", B, 0.0)

    asked = table.asked(name, "m", None, 1.0)
    assert asked is not None
    assert asked.affine == A
    assert all(len(row.session) == 32 for row in table.rows(0.0))
    assert table.close(name) == 1


def test_closing_forgets_a_conversation_with_all_models_or_one() -> None:
    """The admin says only the name."""
    table = _table()
    for model in ("m", "n"):
        table.placed("s", model, A, 0.0)
    table.placed("t", "m", B, 0.0)

    assert table.by_worker() == {"a": 2, "b": 1}
    assert table.close("s", "n") == 1
    assert table.close("s") == 1
    assert table.close("s") == 0
    assert table.drop_worker("b") == 1
    assert (len(table), table.counts.closed, table.counts.orphaned) == (0, 2, 1)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seconds", [0.5, PIN_SECONDS])
def test_a_preference_ends_with_a_long_wait_and_a_pin_does_not(policy: str, seconds: float) -> None:
    """Whatever the policy; and both end when the worker takes no more requests."""
    table, prompt = _table(seconds), Prompt(list(range(64)))
    table._defaults = UNCONSTRAINED
    router = Router(policy=policy)
    for name in "ab":
        router.add_worker(name, now=0.0)
    table.placed("s", None, Source("b", 0), 0.0)

    def chosen() -> str:
        return router.decide(prompt, constraints=table.asked("s", None, None, 1.0), now=1.0).worker_id

    assert {chosen() for _ in range(8)} == {"b"}
    for number in range(100):
        router.book.reserve(number, 1, prefill_tokens=100_000, blocks=5000, now=0.0)
    assert chosen() == ("b" if seconds == PIN_SECONDS else "a")
    router.set_routable("b", False, now=0.0)
    assert chosen() == "a"


class SessionMachine(RuleBasedStateMachine):
    """The table beside a list of (key, source, used, active) that is searched from end to end."""

    idle_seconds, sessions_max = 10.0, 4

    def __init__(self) -> None:
        super().__init__()
        self.table = _table(idle_seconds=self.idle_seconds, sessions_max=self.sessions_max)
        self.model: list[list[object]] = []
        self.now = 0.0

    keys = st.tuples(st.sampled_from("stuvw"), st.sampled_from(["m", "n"]))
    sources = st.builds(Source, st.sampled_from("ab"), st.integers(0, 1))

    def _find(self, key: tuple[str, str]) -> list[object] | None:
        return next((each for each in self.model if each[0] == key), None)

    def _forget_idle(self) -> None:
        for each in [each for each in self.model if self.now - each[2] >= self.idle_seconds]:  # type: ignore[operator]
            self.model.remove(each)
            if each[3]:
                each[2] = self.now
                self.model.append(each)

    @rule(seconds=st.sampled_from([0.0, 1.0, 4.0, 11.0]))
    def wait(self, seconds: float) -> None:
        """Let time go by."""
        self.now += seconds

    @rule(key=keys)
    def ask(self, key: tuple[str, str]) -> None:
        """What is asked for is where the last request went."""
        self._forget_idle()
        found = self._find(key)
        asked = self.table.asked(*key, None, self.now)
        assert (asked.affine if asked else None) == (found[1] if found else None)

    @rule(key=keys, source=sources)
    def place(self, key: tuple[str, str], source: Source) -> None:
        """A request goes somewhere."""
        self._forget_idle()
        self.table.expire(self.now)
        found = self._find(key)
        if found is None:
            found = [key, source, self.now, 0]
        else:
            self.model.remove(found)
        found[1:3] = [source, self.now]
        found[3] = int(found[3]) + 1  # type: ignore[call-overload]
        self.model.append(found)
        self.model = self.model[-self.sessions_max :]
        self.table.placed(*key, source, self.now)

    @rule(key=keys)
    def end(self, key: tuple[str, str]) -> None:
        """A request ends; also one of a conversation that is forgotten."""
        found = self._find(key)
        if found is not None:
            self.model.remove(found)
            found[2:] = [self.now, max(0, int(found[3]) - 1)]  # type: ignore[call-overload]
            self.model.append(found)
        self.table.ended(*key, self.now)

    @precondition(lambda self: self.model)
    @rule(key=keys)
    def close(self, key: tuple[str, str]) -> None:
        """A conversation is over."""
        found = self._find(key)
        if found is not None:
            self.model.remove(found)
        assert self.table.close(*key) == (found is not None)

    @rule(worker=st.sampled_from("ab"))
    def lose(self, worker: str) -> None:
        """A worker leaves."""
        gone = [each for each in self.model if each[1].worker_id == worker]  # type: ignore[attr-defined]
        self.model = [each for each in self.model if each not in gone]
        assert self.table.drop_worker(worker) == len(gone)

    @invariant()
    def agrees(self) -> None:
        """Same bindings, in the same order."""
        seen = [((row.session, row.model), Source(row.worker_id, row.rank)) for row in self.table.rows(self.now)]
        assert seen == [(each[0], each[1]) for each in reversed(self.model)]
        workers = [source.worker_id for _, source in seen]
        assert self.table.by_worker() == {name: workers.count(name) for name in workers}
        counts = self.table.counts
        left = counts.opened - counts.closed - counts.expired - counts.evicted - counts.orphaned
        assert left == len(self.table) <= self.sessions_max


SessionMachine.TestCase.settings = settings(deadline=None, max_examples=60, stateful_step_count=40)
TestSessionModel = SessionMachine.TestCase
