"""What became of promises: cached tokens against those that were promised.

Whatever the reason, lost events, a cache that was reset, one that is switched off or counted otherwise: a rank that has
less cached than it promises is believed less. It is demoted when most of what it promised lately was not there: then
only the share that was counts when ranks are compared. It is promoted when it keeps its promises again, and on trial
when none of them was tested for a while, since nobody is tested who is not chosen. How fast ranks are is learnt by
`speeds.py`.

Pure: time is an argument. Which state an event source is in, and what to ask of it, is no business of this.
"""

from collections.abc import Callable
from typing import Final, Literal

from kvrouter.routing.rank_load import RankLoad

__all__ = ["TRIAL_SECONDS", "Audit", "RankAudit", "Verdict"]

TRIAL_SECONDS: Final = 300.0
"""A demoted rank of which no promise was tested for so long is believed once more."""

Verdict = Literal["broken", "kept"]


class RankAudit:
    """Of one rank, the sums since it came, and whether it is demoted.

    `kept_tokens` are those of the `promised_tokens` that were cached.
    """

    __slots__ = (
        "answers",
        "demoted",
        "demotions",
        "kept_tokens",
        "promised_tokens",
        "promotions",
        "tested_at",
        "window",
    )

    def __init__(self) -> None:
        self.answers = self.promised_tokens = self.kept_tokens = 0
        self.demoted = False
        self.demotions = self.promotions = 0
        self.tested_at = float("-inf")
        self.window = (0, 0, 0)
        """Answers, promised and kept tokens since the last verdict."""


class Audit:
    """Judges each rank by its last answers, `answers` of them at a time.

    A promise counts by its tokens. Engines may hold less than a moment ago, because they evict, so a rank is demoted
    only if less than `broken_below` of what it promised was there, and promoted again if at least `kept_from` of it
    was. Between the two it stays as it is; while it is demoted, the share that it kept last is what is believed.
    """

    def __init__(self, *, answers: int = 16, broken_below: float = 0.5, kept_from: float = 0.9) -> None:
        if answers < 1 or not 0 < broken_below <= kept_from <= 1:
            raise ValueError(f"answers {answers}, broken_below {broken_below}, kept_from {kept_from}")
        self._answers, self._broken_below, self._kept_from = answers, broken_below, kept_from
        self._ranks: dict[int, RankAudit] = {}
        self._demoted: dict[int, RankLoad] = {}
        self.beliefs: dict[int, float] = {}
        """The demoted ranks, and the share of what they promise that is believed."""
        self.told: Callable[[int, Verdict, float], None] | None = None
        """Whom to tell the verdict on a dense rank, and when it was: `broken` each time, `kept` once after that."""

    def rank(self, rank: int) -> RankAudit:
        """What is known of a dense rank."""
        found = self._ranks.get(rank)
        if found is None:
            found = self._ranks[rank] = RankAudit()
        return found

    def forget(self, rank: int) -> None:
        """A rank is gone."""
        self._ranks.pop(rank, None)
        self._demoted.pop(rank, None)
        self.beliefs.pop(rank, None)

    def begin_anew(self, rank: int) -> None:
        """What was cached is gone and forgotten: the rank is judged by what it promises from now on."""
        noted, load = self.rank(rank), self._demoted.get(rank)
        noted.window = (0, 0, 0)
        if load is not None:
            self._promote(noted, load)

    def answered(self, load: RankLoad, *, promised: int, cached: int, now: float, expected: int | None = None) -> None:
        """An engine says that it had `cached` tokens of a prompt cached, of which `promised` were promised.

        It is judged by those that were `expected` to be there still, all of them if nothing is said.
        """
        if promised <= 0:
            return
        expected = promised if expected is None else expected
        noted = self.rank(load.rank)
        noted.answers += 1
        noted.promised_tokens += promised
        noted.kept_tokens += min(cached, promised)
        noted.tested_at = now
        answers, promised_lately, kept_lately = noted.window
        noted.window = answers + 1, promised_lately + expected, kept_lately + min(cached, expected)
        if answers + 1 >= self._answers:
            self._judge(noted, load, now)

    def advance(self, now: float) -> None:
        """Give ranks another chance of which nothing was heard; costs nothing where none is demoted."""
        for load in list(self._demoted.values()):
            noted = self._ranks[load.rank]
            if not 0.0 <= now - noted.tested_at < TRIAL_SECONDS:
                self._promote(noted, load)

    def _judge(self, noted: RankAudit, load: RankLoad, now: float) -> None:
        _, promised, kept = noted.window
        noted.window = (0, 0, 0)
        share = kept / promised if promised else 1.0
        verdict: Verdict | None = None
        if share < self._broken_below:
            verdict = "broken"
            noted.demotions += not noted.demoted
            noted.demoted = True
            self._demoted[load.rank] = load
        elif noted.demoted and share >= self._kept_from:
            verdict = "kept"
            self._promote(noted, load)
        if noted.demoted:
            load.belief = self.beliefs[load.rank] = share
        if verdict is not None and self.told is not None:
            self.told(load.rank, verdict, now)

    def _promote(self, noted: RankAudit, load: RankLoad) -> None:
        noted.demoted, noted.window = False, (0, 0, 0)
        noted.promotions += 1
        load.belief = 1.0
        del self._demoted[load.rank], self.beliefs[load.rank]
