"""A rank whose promises fail is demoted, and believed again when it keeps them; slow ones are found by their times."""

import pytest

from kvrouter.blocks import Prompt
from kvrouter.routing import Router
from kvrouter.routing.audit import TRIAL_SECONDS, Audit, Verdict
from kvrouter.routing.load import RankLoad
from tests.routing.fleets import fleet, prompt_of, stored


class Judged:
    """An audit of two ranks, and what it told."""

    def __init__(self, **options: float) -> None:
        self.audit = Audit(**options)  # type: ignore[arg-type]
        self.audit.told = self._note
        self.loads = [RankLoad(rank=number) for number in range(2)]
        self.told: list[tuple[int, Verdict]] = []

    def _note(self, rank: int, verdict: Verdict, now: float) -> None:
        self.told.append((rank, verdict))

    def answers(self, *shares: float, rank: int = 0, promised: int = 1000, now: float = 0.0) -> None:
        """Answers that had these shares of what was promised."""
        for share in shares:
            self.audit.answered(self.loads[rank], promised=promised, cached=round(share * promised), now=now)


def test_a_rank_whose_promises_fail_is_demoted_as_long_as_they_do() -> None:
    """It counts once; what is believed is the share that it kept last."""
    judged = Judged(answers=3)

    judged.answers(*[0.25] * 3, *[0.0] * 3)

    noted = judged.audit.rank(0)
    assert judged.told == [(0, "broken")] * 2
    assert (noted.demoted, noted.demotions) == (True, 1)
    assert judged.loads[0].belief == 0.0
    assert judged.audit.beliefs == {0: 0.0}


def test_it_is_promoted_when_it_keeps_its_promises_again() -> None:
    """Nothing is demoted for ever; a share between the bounds is believed as such."""
    judged = Judged(answers=2)

    judged.answers(0.0, 0.1, 0.7, 0.8)
    between = judged.loads[0].belief
    judged.answers(1.0, 1.0)

    assert between == 0.75
    assert judged.told == [(0, "broken"), (0, "kept")]
    assert (judged.loads[0].belief, judged.audit.beliefs, judged.audit.rank(0).promotions) == (1.0, {}, 1)


def test_evictions_between_decision_and_arrival_break_nothing() -> None:
    """A busy cache always holds a little less than it did."""
    judged = Judged(answers=4)

    judged.answers(*[0.6] * 40)

    assert (judged.told, judged.loads[0].belief) == ([], 1.0)


def test_more_than_promised_makes_up_for_nothing() -> None:
    """Another request's luck is no proof of this one's promise."""
    judged = Judged(answers=2)

    judged.answers(0.0, 5.0, 0.0, 0.9)

    assert judged.told == [(0, "broken")]


def test_tokens_count_and_not_requests() -> None:
    """Short prompts that everybody shares would hide a long one that nobody has."""
    judged = Judged(answers=3)

    judged.answers(1.0, 1.0, promised=16)
    judged.answers(0.0, promised=8000)

    assert judged.told == [(0, "broken")]


def test_answers_without_a_promise_say_nothing_and_ranks_are_apart() -> None:
    """Neither a cold prompt nor another rank's answers count."""
    judged = Judged(answers=2)

    judged.answers(0.0)
    judged.answers(0.0, rank=1)
    judged.answers(0.0, promised=0)
    before = list(judged.told)
    judged.answers(0.0)

    assert (before, judged.told) == ([], [(0, "broken")])


def test_a_rank_that_nobody_tests_gets_another_chance() -> None:
    """Who is not believed may get nothing by which it could prove itself."""
    judged = Judged(answers=1)
    judged.answers(0.0, now=10.0)

    judged.audit.advance(10.0 + TRIAL_SECONDS - 1.0)
    before = judged.loads[0].belief
    judged.audit.advance(10.0 + TRIAL_SECONDS)
    after = judged.loads[0].belief
    judged.answers(0.0, now=20.0 + TRIAL_SECONDS)

    assert (before, after, judged.loads[0].belief) == (0.0, 1.0, 0.0)
    assert judged.audit.rank(0).demotions == 2


def test_a_rank_with_a_new_cache_is_judged_afresh() -> None:
    """What was wrong with the old one was the reason for it."""
    judged = Judged(answers=1)
    judged.answers(0.0)

    judged.audit.begin_anew(0)
    judged.audit.begin_anew(1)

    assert (judged.loads[0].belief, judged.audit.beliefs) == (1.0, {})


def test_a_rank_that_left_is_forgotten() -> None:
    """Its number may be given to another."""
    judged = Judged(answers=1)
    judged.answers(0.0)

    judged.audit.forget(0)
    judged.audit.advance(10 * TRIAL_SECONDS)

    assert (judged.audit.beliefs, judged.audit.rank(0).answers) == ({}, 0)


@pytest.mark.parametrize("wrong", [{"answers": 0}, {"broken_below": 0.0}, {"broken_below": 0.95}, {"kept_from": 1.1}])
def test_limits_that_contradict_each_other_are_refused(wrong: dict[str, float]) -> None:
    """Between broken and kept there must be room."""
    with pytest.raises(ValueError, match="answers"):
        Audit(**wrong)  # type: ignore[arg-type]


# -- in a router -------------------------------------------------------------------------------------------------------

DOCUMENT = prompt_of(1, tokens=1600)


def answer(router: Router, tokens: list[int], share: float, *, now: float) -> str:
    """One request from beginning to end, of whose promise this share was cached; returns its worker."""
    decision = router.place(Prompt(tokens), model=None, session=None, exclude=(), id=now, now=now)
    router.first_token(decision.id, now=now + decision.cost)
    cached = round(share * decision.overlap_tokens)
    router.finished(decision.id, now=now + decision.cost + 0.01, cached_tokens=cached)
    return decision.worker_id


def questions(router: Router, share: float, *, start: float, count: int) -> list[str]:
    """Questions about the same document, one after the other; returns who was asked."""
    return [answer(router, [*DOCUMENT, 5, number], share, now=start + number) for number in range(count)]


def test_a_worker_whose_cache_is_not_what_it_says_loses_its_attraction_until_it_keeps_its_word() -> None:
    """Its overlap does not count, its candidates say so, and it computes what it was thought to have."""
    router = fleet("a", "b")
    stored(router, "a", DOCUMENT)
    first = questions(router, 0.0, start=0.0, count=16)

    decision = router.decide(Prompt(DOCUMENT), now=20.0)
    seen = {each.worker_id: each for each in decision.candidates}
    demoted = (seen["a"].overlap_tokens, seen["a"].credited_tokens)
    cost_then = seen["a"].cost
    for number in range(16):
        load = router.book.load(0)
        router.learning.audit.answered(load, promised=1584, cached=1584, now=21.0 + number)
    cost_later = {each.worker_id: each for each in router.decide(Prompt(DOCUMENT), now=40.0).candidates}["a"].cost

    assert set(first) == {"a"}
    assert demoted == (1584, 0)
    assert decision.prefill_tokens == 1600
    assert cost_later < cost_then / 4


def test_predictions_are_promises_where_no_events_come() -> None:
    """A worker whose engine has its cache switched off attracts nobody for long."""
    router = fleet("a", "b")
    promised = []
    for number in range(40):
        decision = router.place(
            Prompt([*DOCUMENT, number]), model=None, session=None, exclude=(), id=number, now=float(number)
        )
        promised.append(decision.overlap_tokens)
        router.finished(number, now=number + 0.5, cached_tokens=0)

    assert promised[1] > 1500
    assert router.learning.audit.beliefs.keys() == {0, 1}


def test_predictions_beside_events_are_not_held_against_a_worker() -> None:
    """Of two siblings that come together the second finds nothing yet: no event said that it would."""
    router = fleet("a")
    stored(router, "a", prompt_of(9))
    for number in range(40):
        prompt = Prompt([*prompt_of(20 + number // 2, tokens=640), number])
        router.place(prompt, model=None, session=None, exclude=(), id=number, now=number * 0.01)
        router.finished(number, now=number * 0.01 + 0.005, cached_tokens=0)

    assert router.learning.audit.rank(0).answers == 0


def test_work_that_others_took_part_in_is_neither_learnt_nor_held_against_anybody() -> None:
    """The outcome is known all the same."""
    router = fleet("a")
    stored(router, "a", DOCUMENT)
    decision = router.route(DOCUMENT, now=0.0)

    router.first_token(decision.id, now=2.0, learns=False)
    router.finished(decision.id, now=3.0, cached_tokens=0, learns=False)

    told = router.book.load(0).first_tokens, router.learning.audit.rank(0).answers
    assert (decision.first_token_seconds, decision.total_seconds, decision.cached_tokens) == (2.0, 3.0, 0)
    assert told == (0, 0)


def test_a_worker_that_becomes_slow_is_learnt_as_slow_and_as_fast_again() -> None:
    """It is asked less, its predictions become true, and that shows in its numbers."""
    router = fleet("a", "b", "c")
    speeds = {"a": 8000.0, "b": 8000.0, "c": 8000.0}
    now, number = 0.0, 0

    def work(rounds: int) -> tuple[dict[str, int], float]:
        """Bursts of new prompts; how many each worker got, and the error of the predicted times in the last ones."""
        nonlocal now, number
        counts, errors = dict.fromkeys("abc", 0), []
        for each in range(rounds):
            free = dict.fromkeys("abc", now)
            ends = []
            for _ in range(4):
                number += 1
                prompt = Prompt([number % 50_000, *range(1599)])
                decision = router.place(prompt, model=None, session=None, exclude=(), id=number, now=now)
                name = decision.worker_id
                counts[name] += each >= rounds // 2
                free[name] += 1600 / speeds[name]
                ends.append((free[name], number, decision))
            for end, booked, decision in sorted(ends, key=lambda item: item[0]):
                router.first_token(booked, now=end)
                router.finished(booked, now=end)
                assert decision.first_token_seconds is not None
                if each >= rounds // 2:
                    errors.append(abs(decision.first_token_seconds - decision.cost) / decision.first_token_seconds)
            now = max(free.values()) + 0.5
        return counts, sum(errors) / len(errors)

    before, _ = work(60)
    speeds["c"] = 2000.0
    slow, error = work(120)
    slowness = router.learning.slowness(2)
    speeds["c"] = 8000.0
    work(400)
    again, _ = work(60)

    assert before["c"] >= 30
    assert slow["c"] < before["c"]
    assert slowness > 1.5
    assert error < 0.35
    assert again["c"] > 20
    assert router.learning.slowness(2) < 1.25
