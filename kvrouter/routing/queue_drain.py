"""How fast a queue drains: requests admitted per second while some waited, lane by lane, the recent ones most.

It needs no model of the engines: whatever slows a fleet down, slows what was seen. What the caller thinks counts as
much as the requests that are under way: they began about together and may end together, so that before the first of
them has ended nothing can be seen, however long that takes.
"""

from collections.abc import Hashable
from math import exp

__all__ = ["DrainRates"]

_MEMORY_SECONDS = 30.0
"""What was seen so long ago counts a third."""
_LANES_MAX = 1024


class _Rate:
    __slots__ = ("admitted", "seconds", "since", "waits")

    def __init__(self, now: float) -> None:
        self.admitted = self.seconds = 0.0
        self.since = now
        self.waits = False


class DrainRates:
    """Rates by lane; of the lanes with nothing waiting the longest unused are forgotten."""

    __slots__ = ("_rates",)

    def __init__(self) -> None:
        self._rates: dict[Hashable, _Rate] = {}

    def waits(self, lane: Hashable, *, now: float) -> None:
        """Somebody waits in a lane, from now on or already."""
        rate = self._rates.pop(lane, None)
        if rate is None:
            if len(self._rates) >= _LANES_MAX:
                del self._rates[next(iter(self._rates))]
            rate = _Rate(now)
        self._rates[lane] = rate
        if not rate.waits:
            rate.waits, rate.since = True, now

    def admitted(self, lane: Hashable, *, now: float) -> None:
        """One that waited was admitted."""
        rate = self._rates.get(lane)
        if rate is not None:
            _advance(rate, now)
            rate.admitted += 1

    def emptied(self, lane: Hashable, *, now: float) -> None:
        """Nobody waits in a lane any more."""
        rate = self._rates.get(lane)
        if rate is not None:
            _advance(rate, now)
            rate.waits = False

    def seconds(self, lane: Hashable, requests: float, *, prior: float, running: int, now: float) -> float:
        """How long it takes to admit so many requests.

        `prior` is how long one takes as far as anybody could tell, and `running` how many are under way.
        """
        rate = self._rates.get(lane)
        if rate is None:
            return requests * prior
        _advance(rate, now)
        weight = max(1, running)
        return requests * (rate.seconds + weight * prior) / (rate.admitted + weight)


def _advance(rate: _Rate, now: float) -> None:
    """Let what was seen fade; only time in which somebody waited counts."""
    if not rate.waits:
        return
    passed = max(0.0, now - rate.since)
    fade = exp(-passed / _MEMORY_SECONDS)
    rate.admitted *= fade
    rate.seconds = rate.seconds * fade + _MEMORY_SECONDS * (1.0 - fade)
    rate.since = now
