"""A routing policy of one's own: not more than 32 requests on a rank, and long prompts where it is quiet.

PYTHONPATH=examples kvrouter serve --policy own_policy:make --worker http://127.0.0.1:8000
PYTHONPATH=examples kvrouter replay --synthetic multi-turn --policies kv,weighted,own_policy:make
"""

from kvrouter.routing import Pipeline, Policy, Request, RoutingSettings, free_queue, overlap_share
from kvrouter.routing.fleet import Candidates

__all__ = ["make"]

REQUESTS_MAX = 32


def has_room(candidates: Candidates, request: Request) -> list[bool]:  # noqa: ARG001 - what every filter is given
    """Leave out ranks that have enough to do. A filter that would leave nobody does not count."""
    return [load.active_requests < REQUESTS_MAX for load in candidates.loads]


def quiet(candidates: Candidates, request: Request) -> list[float]:
    """Rate ranks for long prompts: 1 for one that computes no prompt now, less the more it has to compute."""
    if request.tokens < 8192:
        return [0.0] * len(candidates)
    return [1.0 / (1.0 + load.prefill_tokens / request.tokens) for load in candidates.loads]


def make(settings: RoutingSettings, seed: int) -> Policy:  # noqa: ARG001 - what every maker is given
    """Filters, then the highest weighted sum of scores."""
    return Pipeline("own", filters=[has_room], scorers=[(3.0, overlap_share), (2.0, free_queue), (2.0, quiet)])
