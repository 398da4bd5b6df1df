"""Plain counters of what passes through the router; `metrics.py` reads them when Prometheus asks.

No labels are looked up and nothing is formatted per request.
"""

from bisect import bisect_left
from collections import defaultdict
from typing import TYPE_CHECKING

from kvrouter import native_core

__all__ = ["Histogram", "PlainCounts", "TrafficCounters"]

SECONDS_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
RATIO_BOUNDS = (0.1, 0.25, 0.5, 0.67, 0.8, 0.9, 1.0, 1.11, 1.25, 1.5, 2.0, 4.0, 10.0)


class PlainCounts:
    """What a histogram counts; the reference."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, /) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


if TYPE_CHECKING or not native_core.present:  # noqa: SIM108 - a type checker takes no expression for a class
    Counts = PlainCounts
else:
    Counts = native_core.native.Histogram


class Histogram(Counts):
    """Counts per bucket, with the sum; upper bounds are inclusive as Prometheus has them."""

    __slots__ = ()

    def cumulative(self) -> list[tuple[str, float]]:
        """Return the buckets as Prometheus wants them: upper bound and how many values are not above it."""
        buckets = []
        so_far = 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            so_far += count
            buckets.append((bound, float(so_far)))
        return buckets


class TrafficCounters:
    """What the dispatcher and the selection API count for the whole process."""

    __slots__ = (
        "by_policy",
        "other_requests",
        "overlap_tokens",
        "prompt_tokens",
        "refused_no_worker",
        "refused_unknown_model",
        "request_seconds",
        "reservations_expired",
        "selections",
        "ttft_ratio",
        "ttft_seconds",
    )

    def __init__(self) -> None:
        self.other_requests = 0
        self.prompt_tokens = self.overlap_tokens = 0
        self.refused_unknown_model = self.refused_no_worker = 0
        self.reservations_expired = 0
        self.by_policy: defaultdict[str, int] = defaultdict(int)
        self.selections: dict[str, int] = {}
        """Calls of the selection API by route."""
        self.ttft_seconds = Histogram(SECONDS_BOUNDS)
        self.ttft_ratio = Histogram(RATIO_BOUNDS)
        """Times to first token, as multiples of what was predicted."""
        self.request_seconds = Histogram(SECONDS_BOUNDS)

    @property
    def routed(self) -> int:
        """Requests for which a rank was chosen."""
        return sum(self.by_policy.values())
