"""A source whose promises fail is found, one that evicts a little is not."""

import pytest

from kvrouter.events import Source
from kvrouter.service.promises import RESYNC_SECONDS, PromiseAudit, PromiseKeeper, Verdict

SOURCE, OTHER = Source("a", 0), Source("a", 1)


def verdicts(audit: PromiseAudit, *shares: float) -> list[Verdict | None]:
    """The verdicts on answers of 1000 promised tokens each."""
    return [audit.note(SOURCE, promised=1000, cached=round(1000 * share)) for share in shares]


def test_a_source_whose_promises_fail_is_broken_as_long_as_they_do() -> None:
    """It counts as one loss of trust."""
    audit = PromiseAudit(answers=3)

    found = verdicts(audit, *[0.0] * 6)

    assert found == [None, None, "broken", None, None, "broken"]
    assert audit.broken_total == 1


def test_it_is_kept_again_when_its_promises_hold() -> None:
    """Nothing is demoted for ever."""
    audit = PromiseAudit(answers=2)

    found = verdicts(audit, 0.0, 0.1, 0.7, 0.8, 1.0, 1.0)

    assert found == [None, "broken", None, None, None, "kept"]


def test_evictions_between_decision_and_arrival_break_nothing() -> None:
    """A busy cache always holds a little less than it did."""
    assert set(verdicts(PromiseAudit(answers=4), *[0.6] * 40)) == {None}


def test_more_than_promised_makes_up_for_nothing() -> None:
    """Another request's luck is no proof of this one's promise."""
    assert verdicts(PromiseAudit(answers=2), 0.0, 5.0) == [None, None]
    assert verdicts(PromiseAudit(answers=2), 0.0, 0.9) == [None, "broken"]


def test_tokens_count_and_not_requests() -> None:
    """Short prompts that everybody shares would hide a long one that nobody has."""
    audit = PromiseAudit(answers=3)

    found = [audit.note(SOURCE, promised=n, cached=c) for n, c in ((16, 16), (16, 16), (8000, 0))]

    assert found[-1] == "broken"


def test_answers_without_a_promise_say_nothing_and_sources_are_apart() -> None:
    """Neither a cold prompt nor another rank's answers count."""
    audit = PromiseAudit(answers=2)
    audit.note(SOURCE, promised=100, cached=0)

    others = [audit.note(OTHER, promised=100, cached=0), audit.note(SOURCE, promised=0, cached=0)]

    assert others == [None, None]
    assert audit.note(SOURCE, promised=100, cached=0) == "broken"


def test_a_source_with_a_new_state_is_judged_afresh() -> None:
    """What was wrong with the old one was the reason for it."""
    audit = PromiseAudit(answers=1)
    audit.note(SOURCE, promised=100, cached=0)

    audit.forget(SOURCE)

    assert audit.note(SOURCE, promised=100, cached=0) == "broken"


@pytest.mark.parametrize("wrong", [{"answers": 0}, {"broken_below": 0.0}, {"broken_below": 0.95}, {"kept_from": 1.1}])
def test_limits_that_contradict_each_other_are_refused(wrong: dict[str, float]) -> None:
    """Between broken and kept there must be room."""
    with pytest.raises(ValueError, match="answers"):
        PromiseAudit(**wrong)  # type: ignore[arg-type]


class Records:
    """Who is told of doubts and asked for states."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def doubt(self, source: Source, *, reason: str, now: float) -> None:
        """Note it."""
        self.told.append(f"doubt {source.rank}")

    def trust(self, source: Source, *, now: float) -> None:
        """Note it."""
        self.told.append(f"trust {source.rank}")

    def resync(self, source: Source) -> bool:
        """Note it."""
        self.told.append(f"resync {source.rank}")
        return True


def test_a_broken_source_is_doubted_and_asked_for_its_state_but_not_all_the_time() -> None:
    """An engine that counts differently would be asked with every answer."""
    records = Records()
    keeper = PromiseKeeper(PromiseAudit(answers=1), records, resync=records.resync)

    for now in (0.0, 1.0, RESYNC_SECONDS - 1.0, RESYNC_SECONDS):
        keeper.answered(SOURCE, promised=100, cached=0, now=now)

    assert records.told == ["doubt 0", "resync 0", "doubt 0", "resync 0"]


def test_a_source_that_keeps_its_promises_again_is_believed_again() -> None:
    """Also where nothing else could have told: an engine whose wire has neither digests nor replays."""
    records = Records()
    keeper = PromiseKeeper(PromiseAudit(answers=1), records, resync=records.resync)

    keeper.answered(SOURCE, promised=100, cached=0, now=0.0)
    keeper.answered(SOURCE, promised=100, cached=100, now=1.0)
    keeper.answered(SOURCE, promised=100, cached=0, now=2.0)

    assert records.told == ["doubt 0", "resync 0", "trust 0", "doubt 0", "resync 0"]
