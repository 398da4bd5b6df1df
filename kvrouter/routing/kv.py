"""The default policy: the rank on which a prompt costs least, all seconds counted that anybody waits for it."""

from itertools import repeat

from kvrouter import native_core
from kvrouter.routing.cost import CostModel
from kvrouter.routing.fleet import Candidates, FleetRank
from kvrouter.routing.policy import Choice, Request
from kvrouter.routing.settings import RoutingSettings

__all__ = ["NATIVE_REASONS", "KvPolicy", "NativeKvPolicy"]

NATIVE_REASONS = ("load", "affinity", "escape")


class KvPolicy:
    """The least price: predicted time to first token, and the seconds that others wait because of the prompt.

    There are no weights between caches and load. Cached blocks save seconds of computing, and a second of computing
    costs as many seconds as requests wait for it: few on an idle fleet, where the shortest queue wins, many on a busy
    one or where caches are starved, where the longest prefix does. Overlap that everybody has saves nothing and so
    decides nothing: without any, this balances load.
    """

    name = "kv"
    weighs_extra_seconds = True
    weighs_room = True

    def __init__(self, settings: RoutingSettings) -> None:
        self._model = CostModel(settings)

    def choose(self, candidates: Candidates, request: Request) -> Choice:
        """Return the best rank; the reason is `load` where nobody has anything of the prompt.

        Else it is `affinity` if the rank has about as much of it as the one that has most, and `escape` if not.
        """
        credit_of, cost = request.credits.get, self._model.cost
        tokens, now = request.tokens, request.now
        shared = self._model.shared(credit_of(each.dense_rank, 0) for each in candidates)
        best, least = candidates[0], 0.0
        extra = candidates.extra_seconds or repeat(0.0, len(candidates))
        for position, (each, extra_seconds) in enumerate(zip(candidates, extra, strict=True)):
            credit = credit_of(each.dense_rank, 0)
            price = cost(each.load, credit, tokens, now, shared).price + extra_seconds
            if not position or price < least or (price == least and _waited_longer(each, best)):
                best, least = each, price
        if not shared.most:
            return best, "load"
        return best, "affinity" if credit_of(best.dense_rank, 0) >= shared.most * self._model.affinity else "escape"


class NativeKvPolicy(KvPolicy):
    """The same, compared by the native core."""

    def __init__(self, settings: RoutingSettings) -> None:
        super().__init__(settings)
        self.weights = self._model.weights
        self._choose = native_core.native.RankLoad.choose

    def choose(self, candidates: Candidates, request: Request) -> Choice:
        """Return the best rank, with the reason."""
        if candidates.extra_seconds is not None:
            return super().choose(candidates, request)
        position, reason = self._choose(candidates.loads, request.credits, request.tokens, self.weights, request.now)
        return candidates[position], NATIVE_REASONS[reason]


def _waited_longer(one: FleetRank, other: FleetRank) -> bool:
    """Whether `one` goes first at equal cost: fewer requests, then chosen longer ago."""
    mine, theirs = one.load.active_requests, other.load.active_requests
    return mine < theirs or (mine == theirs and one.turn < other.turn)
