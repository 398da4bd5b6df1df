"""When a request would get its first token, as far as anybody can tell: its wait at the router, then its prefill.

Prefill is the router's own prediction for the fleet as it is; the wait is how many go before it, at the speed at which
the queue was seen to drain.
"""

from typing import NamedTuple

from kvrouter.blocks import Prompt
from kvrouter.routing import Router
from kvrouter.routing.constraints import Constraints
from kvrouter.routing.fleet import Candidates
from kvrouter.routing.queue_drain import DrainRates

__all__ = ["Forecast", "Lane"]

REQUEST_TOKENS = 240
"""What a request costs its tenant beside its prefill. Shares are told in it, so it is no knob of routing."""


class Lane(NamedTuple):
    """Which ranks could serve a request: requests of one lane wait for the same ones."""

    model: str | None
    constraints: Constraints | None
    exclude: frozenset[str]

    def including_all(self) -> "Lane":
        """The lane of a request that no worker has failed."""
        return self._replace(exclude=frozenset())


class Forecast:
    """Predicts, and learns from those who are admitted."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._rates = DrainRates()

    # -- what happens --------------------------------------------------------------------------------------------------

    def waits(self, lane: Lane, *, now: float) -> None:
        """A request waits."""
        self._rates.waits(lane, now=now)

    def left(self, lane: Lane, *, admitted: bool, remaining: int, now: float) -> None:
        """A request waits no longer; so many of its lane still do."""
        if admitted:
            self._rates.admitted(lane, now=now)
        if not remaining:
            self._rates.emptied(lane, now=now)

    # -- what is predicted ---------------------------------------------------------------------------------------------

    def prefill_seconds(self, lane: Lane, prompt: Prompt | None, *, now: float) -> float:
        """Time to the first token of a request that goes to a worker now.

        Raises:
            NoWorkerError, UnknownModelError: there is none.
        """
        return self._router.predict(prompt, model=lane.model, constraints=lane.constraints, now=now)

    def wait_seconds(
        self, lane: Lane, requests: float, candidates: Candidates, prefill_seconds: float, *, now: float
    ) -> float:
        """Time until so many that wait for these ranks are admitted, each of which takes `prefill_seconds` of one."""
        running = sum(load.active_requests for load in candidates.loads)
        prior = prefill_seconds / len(candidates)
        return self._rates.seconds(lane, requests, prior=prior, running=running, now=now)

    def uncached(self, prompt: Prompt | None, *, now: float) -> int:
        """Prompt tokens that the rank which has most of them would have to compute."""
        if prompt is None:
            return 0
        credited = self._router.knowledge.overlaps(prompt, now).credited
        return prompt.tokens - max(credited.values(), default=0)

    def own_seconds(self, uncached: int) -> float:
        """What a prefill takes on a rank that has nothing else to do."""
        return uncached / self._router.settings.prefill_tokens_per_second

    def charge(self, uncached: int) -> int:
        """What a request costs its tenant: its prefill, and what every request costs beside it."""
        return uncached + REQUEST_TOKENS
