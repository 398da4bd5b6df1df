"""The default policy: the rank that is predicted to answer first, among those that have most of the prompt cached."""

from itertools import repeat
from math import inf

from kvrouter import native_core
from kvrouter.routing.cost import CostModel
from kvrouter.routing.fleet import Candidates, FleetRank
from kvrouter.routing.policy import Choice, Request
from kvrouter.routing.settings import RoutingSettings

__all__ = ["NATIVE_REASONS", "KvPolicy", "NativeKvPolicy"]

NATIVE_REASONS = ("load", "affinity", "escape")


class KvPolicy:
    """Affinity first, then predicted time to first token, with an escape.

    Ranks with at least `affinity` of the best overlap come first, and among them the one of least cost. Another rank
    wins only if it is predicted to be faster by a margin that grows with the prefill work which the affinity saves:
    a short shared system prompt ties nobody to a busy rank, a long conversation stays where it is. Overlap that
    everybody has saves nothing and so decides nothing.
    """

    name = "kv"
    weighs_extra_seconds = True

    def __init__(self, settings: RoutingSettings) -> None:
        self._model = CostModel(settings)
        self._affinity = settings.affinity
        self._escape_ratio, self._escape_seconds = settings.escape_ratio, settings.escape_seconds

    def choose(self, candidates: Candidates, request: Request) -> Choice:
        """Return the best rank; the reason is `affinity`, `escape`, or `load` where nobody has anything."""
        credit_of = request.credits.get
        believed = [credit_of(each.dense_rank, 0) for each in candidates]
        most = max(believed)
        enough = most * self._affinity
        model, tokens = self._model, request.tokens
        token_seconds, request_seconds = model.token_seconds, model.request_seconds
        block_seconds = model.block_seconds
        near = best = candidates[0]
        near_cost = best_cost = inf
        extra = candidates.extra_seconds or repeat(0.0, len(candidates))
        # `CostModel.seconds`, written out: without the native core this loop is the router's hottest.
        for each, credit, price in zip(candidates, believed, extra, strict=True):
            load = each.load
            cost = price + (
                (load.prefill_tokens + tokens - credit) * token_seconds
                + load.active_requests * request_seconds
                + load.decode_blocks * block_seconds
            )
            if cost < best_cost or (cost == best_cost and _waited_longer(each, best)):
                best, best_cost = each, cost
            if credit >= enough and (cost < near_cost or (cost == near_cost and _waited_longer(each, near))):
                near, near_cost = each, cost
        if not most:
            return best, "load"
        saved = (credit_of(near.dense_rank, 0) - credit_of(best.dense_rank, 0)) * token_seconds
        if near_cost - best_cost > min(self._escape_seconds, self._escape_ratio * saved):
            return best, "escape"
        return near, "affinity"


class NativeKvPolicy(KvPolicy):
    """The same, compared by the native core."""

    def __init__(self, settings: RoutingSettings) -> None:
        super().__init__(settings)
        model = self._model
        prices = (model.token_seconds, model.request_seconds, model.block_seconds)
        self.weights = (*prices, self._affinity, self._escape_ratio, self._escape_seconds)
        self._choose = native_core.native.RankLoad.choose

    def choose(self, candidates: Candidates, request: Request) -> Choice:
        """Return the best rank, with the reason."""
        if candidates.extra_seconds is not None:
            return super().choose(candidates, request)
        position, reason = self._choose(candidates.loads, request.credits, request.tokens, self.weights)
        return candidates[position], NATIVE_REASONS[reason]


def _waited_longer(one: FleetRank, other: FleetRank) -> bool:
    """Whether `one` goes first at equal cost: fewer requests, then chosen longer ago."""
    mine, theirs = one.load.active_requests, other.load.active_requests
    return mine < theirs or (mine == theirs and one.turn < other.turn)
