"""Plain numbers of what passes through one process; `metrics.py` reads them when Prometheus asks.

They can be told as JSON and added up, because several processes may stand behind one port.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

__all__ = ["SECONDS_BOUNDS", "GatewayCounters", "LatencyCounts"]

SECONDS_BOUNDS: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
)  # fmt: skip


class LatencyCounts:
    """How often which time was seen; upper bounds are inclusive, as Prometheus has them."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(SECONDS_BOUNDS) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(SECONDS_BOUNDS, seconds)] += 1
        self.total += seconds

    def add(self, other: "LatencyCounts") -> None:
        """Count what another one has counted too."""
        self.counts = [one + more for one, more in zip(self.counts, other.counts, strict=True)]
        self.total += other.total


class GatewayCounters:
    """Everything that is counted. Keys are names of routes, HTTP statuses and words of our own, so all are bounded."""

    __slots__ = ("connected", "gauges", "latency", "streams_active", "totals")

    def __init__(self) -> None:
        self.latency: dict[tuple[str, str], LatencyCounts] = {}
        """By route and status, from the request's head to the end of its answer."""
        self.totals: Counter[tuple[str, ...]] = Counter()
        """By a family of `metrics.py` and its labels."""
        self.gauges: dict[str, float] = {}
        """Values of now that are read only when somebody asks; they can be added up."""
        self.streams_active = 0
        self.connected = 0

    def observe(self, route: str, status: int, seconds: float) -> None:
        """Count one answer."""
        key = route, str(status)
        counts = self.latency.get(key)
        if counts is None:
            counts = self.latency[key] = LatencyCounts()
        counts.observe(seconds)

    def count(self, *key: str, times: int = 1) -> None:
        """Count something of a family with labels."""
        self.totals[key] += times

    def add(self, other: "GatewayCounters") -> None:
        """Add what another process has counted."""
        for key, counts in other.latency.items():
            self.latency.setdefault(key, LatencyCounts()).add(counts)
        self.totals.update(other.totals)
        for name, value in other.gauges.items():
            self.gauges[name] = self.gauges.get(name, 0) + value
        self.streams_active += other.streams_active
        self.connected = min(self.connected, other.connected)

    def as_json(self) -> dict[str, Any]:
        """Return all of it, for `from_json`."""
        return {
            "latency": [[*key, counts.counts, counts.total] for key, counts in self.latency.items()],
            "totals": [[list(key), number] for key, number in self.totals.items()],
            "gauges": self.gauges,
            "streams_active": self.streams_active,
            "connected": self.connected,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "GatewayCounters":
        """Read what a process of the same version wrote."""
        counters = cls()
        for route, status, counts, total in values["latency"]:
            found = counters.latency[route, status] = LatencyCounts()
            found.counts, found.total = counts, total
        counters.totals.update({tuple(key): number for key, number in values["totals"]})
        counters.gauges = values["gauges"]
        counters.streams_active = values["streams_active"]
        counters.connected = values["connected"]
        return counters
