"""When a router tells the others what it has booked: soon after a booking, seldom enough for the store. Pure."""

from collections.abc import Callable
from random import Random
from typing import Final

from kvrouter.routing.replicas import ReplicaLoads

__all__ = ["ReplicaPace"]

_LOOKS: Final = 0.1
"""Of an interval, how long it takes until a booking is seen."""
_SAVED_MAX: Final = 5.0
_KEPT_FOR_BOOKINGS: Final = 2.0


class ReplicaPace:
    """Bounds how often is told: on average once in `interval_seconds`.

    What was not used of that is saved for a burst of bookings: they are what others must know soon, or they choose the
    same rank. First tokens and ends can wait for an interval. Where nobody listens, or nothing changes, there is only
    a sign of life three times in a lease.

    Args:
        loads: what is told.
        decisions: how many decisions there were; asking is cheap, where comparing records is not.
        interval_seconds: mean time between two records, at least.
        random: routers that look at the same moments would choose at the same moments.
    """

    __slots__ = (
        "_compared_at", "_decided", "_decisions", "_filled_at", "_interval", "_loads", "_met", "_random", "_saved",
        "_told_at",
    )  # fmt: skip

    def __init__(
        self, loads: ReplicaLoads, decisions: Callable[[], int], *, interval_seconds: float, random: Random
    ) -> None:
        self._loads, self._decisions = loads, decisions
        self._interval, self._random = interval_seconds, random
        self._saved, self._filled_at = 1.0, 0.0
        self._told_at = self._compared_at = float("-inf")
        self._decided = self._met = 0

    @property
    def look_seconds(self) -> float:
        """How long to wait before the next look; different each time."""
        share = _LOOKS if len(self._loads) else 1.0
        return self._interval * share * (0.5 + self._random.random())

    def is_due(self, now: float) -> bool:
        """Whether to tell now."""
        self._saved = min(self._saved + max(now - self._filled_at, 0.0) / self._interval, _SAVED_MAX)
        self._filled_at = now
        since = now - self._told_at
        if since >= self._loads.lease_seconds / 3:
            return True
        if not len(self._loads):
            return False
        if self._decisions() != self._decided or self._loads.met != self._met:
            return self._saved >= 1.0
        if self._saved < _KEPT_FOR_BOOKINGS or now - self._compared_at < self._interval:
            return False
        self._compared_at = now
        return self._loads.has_changed()

    def telling(self, now: float) -> None:
        """The record of now is made."""
        self._saved -= 1.0
        self._told_at = self._compared_at = now
        self._decided, self._met = self._decisions(), self._loads.met
