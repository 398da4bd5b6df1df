"""How fast a rank loses what it has cached while a request waits there.

What was cached when a request was routed may be evicted before its turn comes: the longer the queue, and the smaller
the cache, the less of a promise is left. Each answer tells how long its request had waited and what was left; were
blocks lost at a constant rate, that rate is the tokens that were lost over the seconds for which all of them were at
risk, lost ones on average for half the time. `cost.py` multiplies it with the time that a prompt would wait, but not
with more than requests have waited on average: some of what is cached is used so often that it is never lost, and
however long a queue, that is still there.
"""

from typing import Final

from kvrouter.routing.rank_load import RankLoad

__all__ = ["Losses"]

# Of what was known, what is left after each new answer.
_KEPT: Final = 0.98
# What is gone at once was not evicted while a request waited: it may never have been there (`audit.py`).
_LEAST_SECONDS: Final = 1.0


class Losses:
    """Loss rates of ranks, by dense number; written into their loads."""

    __slots__ = ("_ranks",)

    def __init__(self) -> None:
        self._ranks: dict[int, tuple[float, float, float, float]] = {}

    def forget(self, rank: int) -> None:
        """A rank is gone."""
        self._ranks.pop(rank, None)

    def learn(self, load: RankLoad, *, promised: int, kept: int, waited: float) -> None:
        """Of `promised` tokens, `kept` were cached still after a request had waited for so many seconds."""
        lost, at_risk, tokens, seconds = self._ranks.get(load.rank, (0.0, 0.0, 0.0, 0.0))
        lost = lost * _KEPT + (promised - kept)
        at_risk = at_risk * _KEPT + (promised + kept) * 0.5 * (waited + _LEAST_SECONDS)
        tokens, seconds = tokens * _KEPT + promised, seconds * _KEPT + promised * waited
        self._ranks[load.rank] = lost, at_risk, tokens, seconds
        if at_risk > 0.0:
            load.loss_rate, load.loss_seconds = lost / at_risk, seconds / tokens
