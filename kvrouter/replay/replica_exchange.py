"""Several simulated routers tell each other what they have booked, late by as much as a store would be.

What is told and what is made of it is the router's own code (`kvrouter.routing.replicas`); here is only when.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Final

from kvrouter.routing import Router
from kvrouter.routing.replica_pace import ReplicaPace
from kvrouter.routing.replicas import ReplicaLoads

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
            _Teller(router, f"router-{number}", interval_seconds, random) for number, router in enumerate(routers)
        ]
        for teller in self._tellers:
            self._look_later(teller, 0.0)

    def _look_later(self, teller: _Teller, now: float) -> None:
        self._later(now + teller.pace.look_seconds, lambda then: self._look(teller, then))

    def _look(self, teller: _Teller, now: float) -> None:
        """One router looks whether there is anything to tell."""
        teller.settle(now)
        if teller.pace.is_due(now):
            teller.pace.telling(now)
            name, data = teller.loads.replica_id, teller.loads.record()
            for other in self._tellers:
                if other is not teller:
                    self._later(now + self._delay, lambda then, other=other: other.loads.take(name, data, now=then))  # type: ignore[misc]
        self._look_later(teller, now)


class _Teller:
    """One router's side of it."""

    def __init__(self, router: Router, name: str, interval_seconds: float, random: Random) -> None:
        self.loads = ReplicaLoads(router.fleet, name, lease_seconds=_LEASE_SECONDS, random=random)
        self.pace = ReplicaPace(self.loads, lambda: router.decisions, interval_seconds=interval_seconds, random=random)
        self._settle_at = 0.0

    def settle(self, now: float) -> None:
        if now >= self._settle_at:
            self.loads.settle(now)
            self._settle_at = now + _SETTLE_SECONDS
