"""How fast a rank loses what it has cached while a request waits there.

What was cached when a request was routed may be evicted before its turn comes: the longer the queue, and the smaller
the cache, the less of a promise is left. Each answer tells how long its request had waited and what was left; were
blocks lost at a constant rate, that rate is the tokens that were lost over the seconds for which all of them were at
risk, lost ones on average for half the time. `cost.py` multiplies it with the time that a prompt would wait, but not
with more than requests have waited on average: some of what is cached is used so often that it is never lost, and
however long a queue, that is still there.

And where the prompts of all requests of a rank do not fit into its cache together, what is over is lost however short
the wait is: of the prompt that comes last, whose cached blocks nobody has used for the longest time. How much of it
really is lost, is learnt from answers as well: less, where prompts have parts in common and need less room than they
have tokens. Before the first answers, half of it is taken for lost, and that belief is worth one cache full of tokens.
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

    __slots__ = ("_overflows", "_ranks")

    def __init__(self) -> None:
        self._ranks: dict[int, tuple[float, float, float, float]] = {}
        self._overflows: dict[int, tuple[float, float]] = {}

    def forget(self, rank: int) -> None:
        """A rank is gone."""
        self._ranks.pop(rank, None)
        self._overflows.pop(rank, None)

    def overflowed(self, load: RankLoad, *, promised: int, kept: int, over: int) -> int:
        """Of `promised` tokens, `kept` were cached still on a rank on which `over` tokens more ran than fit there.

        Returns what was to be expected of them.
        """
        exposed = min(over, promised)
        if exposed <= 0:
            return promised
        left = promised - int(exposed * load.room_loss)
        first = load.room_loss * load.room_tokens, float(load.room_tokens)
        lost, all_exposed = self._overflows.get(load.rank, first)
        lost = lost * _KEPT + min(promised - kept, exposed)
        all_exposed = all_exposed * _KEPT + exposed
        self._overflows[load.rank] = lost, all_exposed
        load.room_loss = lost / all_exposed
        return left

    def learn(self, load: RankLoad, *, promised: int, kept: int, waited: float) -> None:
        """Of `promised` tokens, `kept` were cached still after a request had waited for so many seconds."""
        if promised <= 0:
            return
        lost, at_risk, tokens, seconds = self._ranks.get(load.rank, (0.0, 0.0, 0.0, 0.0))
        lost = lost * _KEPT + (promised - kept)
        at_risk = at_risk * _KEPT + (promised + kept) * 0.5 * (waited + _LEAST_SECONDS)
        tokens, seconds = tokens * _KEPT + promised, seconds * _KEPT + promised * waited
        self._ranks[load.rank] = lost, at_risk, tokens, seconds
        if at_risk > 0.0:
            load.loss_rate, load.loss_seconds = lost / at_risk, seconds / tokens
