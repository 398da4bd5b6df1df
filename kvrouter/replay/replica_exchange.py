"""Several simulated routers tell each other what they have booked, late by as much as a store would be.

What is told and what is made of it is the router's own code (`kvrouter.routing.replicas`); here is only when.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Final

from kvrouter.routing import Router
from kvrouter.routing.replicas import Pace, ReplicaLoads

__all__ = ["ReplicaExchange"]

_LEASE_SECONDS: Final = 5.0
_SETTLE_SECONDS: Final = 0.1


class ReplicaExchange:
    """Between the routers of one simulation.

    Args:
        routers: who tells each other.
        interval_seconds: each tells so often on average, at most.
        delay_seconds: until the others know.
        random: when each router looks.
        later: calls at a time of the simulation.
    """

    def __init__(
        self,
        routers: Sequence[Router],
        *,
        interval_seconds: float,
        delay_seconds: float,
        random: Random,
        later: Callable[[float, Callable[[float], None]], None],
    ) -> None:
        self._delay, self._later = delay_seconds, later
        self._tellers = [
            _Teller(
                router,
                ReplicaLoads(router.fleet, f"router-{number}", lease_seconds=_LEASE_SECONDS, random=random),
                Pace(interval_seconds, random=random),
            )
            for number, router in enumerate(routers)
        ]
        for teller in self._tellers:
            self._later(teller.pace.look_seconds, lambda now, teller=teller: self._look(teller, now))  # type: ignore[misc]

    def _look(self, teller: _Teller, now: float) -> None:
        """One router looks whether there is anything to tell."""
        if teller.due(now):
            data = teller.loads.record()
            for other in self._tellers:
                if other is not teller:
                    self._later(now + self._delay, lambda then, other=other: other.loads.take(data, now=then))  # type: ignore[misc]
        self._later(now + teller.pace.look_seconds, lambda then: self._look(teller, then))


class _Teller:
    """One router, and what it has told."""

    def __init__(self, router: Router, loads: ReplicaLoads, pace: Pace) -> None:
        self._router, self.loads, self.pace = router, loads, pace
        self._told_at, self._turns = 0.0, 0
        self._settled_at = 0.0

    def due(self, now: float) -> bool:
        """Whether to tell now."""
        if now - self._settled_at >= _SETTLE_SECONDS:
            self.loads.settle(now)
            self._settled_at = now
        turns = self._router.decisions
        if not self.pace.is_due(now, booked=turns != self._turns, told_at=self._told_at):
            return False
        if not self.loads.has_changed() and now - self._told_at < _LEASE_SECONDS / 3:
            return False
        self.pace.told()
        self._told_at, self._turns = now, turns
        return True
