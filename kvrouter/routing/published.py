"""Policies of others, as far as they are published: to compare with, and to change nothing but the router.

Each looks at the loads that this router books and at the overlap that it knows, not at what its original would know.
"""

from random import Random

from kvrouter.routing.fleet import Candidates, FleetRank
from kvrouter.routing.pipeline import Pipeline, free_blocks, free_queue, overlap_share
from kvrouter.routing.policy import Choice, Request, by_load
from kvrouter.routing.settings import RoutingSettings

__all__ = ["CacheAwareThresholdPolicy", "DynamoCostPolicy", "LmetricPolicy", "weighted"]


class LmetricPolicy:
    """The least product of prompt tokens to compute, the prompt's included, and running requests.

    LMetric, arXiv 2603.15202. It has no weights to tune; ties go to the less loaded rank.
    """

    name = "lmetric"

    def choose(self, candidates: Candidates, request: Request) -> Choice:
        """Return the rank."""
        tokens, credit_of = request.tokens, request.credits.get

        def product(rank: FleetRank) -> tuple[int, tuple[int, int, int]]:
            load = rank.load
            to_compute = load.prefill_tokens + tokens - credit_of(rank.dense_rank, 0)
            return to_compute * (load.active_requests + 1), by_load(rank)

        return min(candidates, key=product), "product"


class DynamoCostPolicy:
    """The least sum of prompt blocks to compute and blocks in use, as NVIDIA Dynamo's router has it by default.

    `prefill_load_scale` 1, credit 1, no decay, temperature 0; ties are broken at random.
    """

    name = "dynamo-cost"

    def __init__(self, settings: RoutingSettings, seed: int) -> None:
        self._block_size = settings.block_size
        self._random = Random(seed)

    def choose(self, candidates: Candidates, request: Request) -> Choice:
        """Return the rank."""
        prompt = request.prompt
        block_size = (prompt.block_size if prompt is not None else None) or self._block_size
        credit_of = request.credits.get
        costs = [
            (each.load.prefill_tokens + request.tokens - credit_of(each.dense_rank, 0)) / block_size
            + each.load.decode_blocks
            for each in candidates
        ]
        least = min(costs)
        return self._random.choice(
            [each for each, cost in zip(candidates, costs, strict=True) if cost == least]
        ), "cost"


class CacheAwareThresholdPolicy:
    """SGLang's cache-aware rule: the best match if it is good enough, unless the fleet is out of balance.

    Out of balance is a fleet whose busiest rank has more than 64 requests more than, and more than 1.5 times as many
    as, the idlest one: then the shortest queue wins. A match of more than 0.3 of the prompt is good enough; without
    one, the rank with the least predicted or cached of anything would be taken, here the least loaded one.
    """

    name = "cache-aware-threshold"
    _MATCH_MIN = 0.3
    _BALANCE_ABSOLUTE = 64
    _BALANCE_RELATIVE = 1.5

    def choose(self, candidates: Candidates, request: Request) -> Choice:
        """Return the rank."""
        queues = [load.active_requests for load in candidates.loads]
        most, least = max(queues), min(queues)
        if most - least > self._BALANCE_ABSOLUTE and most > self._BALANCE_RELATIVE * least:
            return min(candidates, key=by_load), "imbalance"
        credit_of = request.credits.get
        best = max(candidates, key=lambda rank: (credit_of(rank.dense_rank, 0), *(-part for part in by_load(rank))))
        if request.tokens and credit_of(best.dense_rank, 0) > self._MATCH_MIN * request.tokens:
            return best, "match"
        return min(candidates, key=by_load), "load"


def weighted() -> Pipeline:
    """A weighted sum of scores as in llm-d: overlap 3, free queue 2, free blocks 2; the highest wins."""
    return Pipeline("weighted", scorers=[(3.0, overlap_share), (2.0, free_queue), (2.0, free_blocks)])
