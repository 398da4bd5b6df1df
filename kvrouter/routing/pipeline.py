"""A policy put together from parts: filters leave some ranks out, scorers rate the others, a picker takes one.

A part is a plain function, so that a policy of one's own is a few lines:

    def prefers_even_ranks(candidates, request):
        return [1.0 if each.rank % 2 == 0 else 0.0 for each in candidates]

    def make(settings, seed):
        return Pipeline("even", scorers=[(1.0, overlap_share), (0.5, prefers_even_ranks)])

`kvrouter serve --policy mymodule:make` takes it; `docs/routing.md` says more.
"""

from collections.abc import Callable, Iterable, Sequence
from math import exp
from random import Random
from typing import TypeAlias

from kvrouter.routing.fleet import Candidates, FleetRank
from kvrouter.routing.policy import Choice, Request

__all__ = ["Filter", "Picker", "Pipeline", "Scorer", "free_blocks", "free_queue", "overlap_share", "softmax"]

Filter: TypeAlias = Callable[[Candidates, Request], Iterable[bool]]
"""Says of each candidate whether it may be chosen. One that would leave nobody does not count."""
Scorer: TypeAlias = Callable[[Candidates, Request], Sequence[float]]
"""Rates each candidate, the better the higher; built-in ones from 0 to 1."""
Picker: TypeAlias = Callable[[Candidates, Sequence[float]], FleetRank]
"""Takes one of the candidates by their scores."""


def best(candidates: Candidates, scores: Sequence[float]) -> FleetRank:
    """Pick the highest score; among equals the rank that was chosen longest ago."""
    return max(zip(candidates, scores, strict=True), key=lambda pair: (pair[1], -pair[0].turn))[0]


def softmax(temperature: float, *, seed: int = 0) -> Picker:
    """Make a picker that takes the higher ones more often: at random, in proportion to exp(score / temperature)."""
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0")
    random = Random(seed)

    def pick(candidates: Candidates, scores: Sequence[float]) -> FleetRank:
        highest = max(scores)
        weights = [exp((score - highest) / temperature) for score in scores]
        return random.choices(candidates, weights)[0]

    return pick


class Pipeline:
    """Filters, then the weighted sum of scores, then a pick."""

    def __init__(
        self,
        name: str,
        *,
        filters: Sequence[Filter] = (),
        scorers: Sequence[tuple[float, Scorer]],
        pick: Picker = best,
        uses_sessions: bool = False,
    ) -> None:
        self.name = name
        self.uses_sessions = uses_sessions
        self._filters, self._scorers, self._pick = tuple(filters), tuple(scorers), pick

    def choose(self, candidates: Candidates, request: Request) -> Choice:
        """Return one of the candidates; the reason is `score`."""
        for keeps in self._filters:
            candidates = candidates.only(keeps(candidates, request)) or candidates
        scores = [0.0] * len(candidates)
        for weight, scorer in self._scorers:
            rated = scorer(candidates, request)
            scores = [score + weight * more for score, more in zip(scores, rated, strict=True)]
        return self._pick(candidates, scores), "score"


# -- scorers -----------------------------------------------------------------------------------------------------------


def overlap_share(candidates: Candidates, request: Request) -> Sequence[float]:
    """The part of the prompt that each has cached."""
    tokens, credit_of = max(request.tokens, 1), request.credits.get
    return [credit_of(each.dense_rank, 0) / tokens for each in candidates]


def free_queue(candidates: Candidates, request: Request) -> Sequence[float]:  # noqa: ARG001 - the interface
    """1 for the fewest requests without a first token, 0 for the most."""
    return _reversed([load.waiting for load in candidates.loads])


def free_blocks(candidates: Candidates, request: Request) -> Sequence[float]:  # noqa: ARG001 - the interface
    """1 for the fewest KV blocks in use, 0 for the most."""
    return _reversed([load.decode_blocks for load in candidates.loads])


def _reversed(numbers: Sequence[int]) -> Sequence[float]:
    least, most = min(numbers), max(numbers)
    return [(most - number) / (most - least) if most > least else 1.0 for number in numbers]
