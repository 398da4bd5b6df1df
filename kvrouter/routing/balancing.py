"""Policies that look at load alone, or at nothing."""

from collections.abc import Sequence
from operator import attrgetter
from random import Random

from kvrouter.routing.fleet import FleetRank
from kvrouter.routing.policy import Choice, Request, by_load

__all__ = ["LeastLoadedPolicy", "PowerOfTwoPolicy", "RandomPolicy", "RoundRobinPolicy"]

_turn = attrgetter("turn")


class RoundRobinPolicy:
    """Every rank in turn. The one that waited longest is next, so a changing fleet stays even."""

    name = "round-robin"

    def choose(self, candidates: Sequence[FleetRank], request: Request) -> Choice:  # noqa: ARG002 - the interface
        """Return the rank that was chosen longest ago."""
        return min(candidates, key=_turn), "turn"


class RandomPolicy:
    """Any rank, each equally likely; the same seed gives the same choices."""

    name = "random"

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)

    def choose(self, candidates: Sequence[FleetRank], request: Request) -> Choice:  # noqa: ARG002 - the interface
        """Return one of the ranks."""
        return self._random.choice(candidates), "random"


class LeastLoadedPolicy:
    """The rank with the fewest running requests, then the least prefill work, then the longest wait."""

    name = "least-loaded"

    def choose(self, candidates: Sequence[FleetRank], request: Request) -> Choice:  # noqa: ARG002 - the interface
        """Return the least loaded rank."""
        return min(candidates, key=by_load), "load"


class PowerOfTwoPolicy:
    """The less loaded of two ranks taken at random: nearly as even, and routers that share a fleet do not herd.

    Mitzenmacher, The Power of Two Choices in Randomized Load Balancing, 2001.
    """

    name = "power-of-two"

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)

    def choose(self, candidates: Sequence[FleetRank], request: Request) -> Choice:  # noqa: ARG002 - the interface
        """Return one of two ranks."""
        two = self._random.sample(candidates, min(2, len(candidates)))
        return min(two, key=by_load), "load"
