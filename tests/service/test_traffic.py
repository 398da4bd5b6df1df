"""Counts of what passes through the router: the native ones are those of the reference."""

from typing import Any

import pytest

from kvrouter import native_core
from kvrouter.service.traffic import SECONDS_BOUNDS, Histogram, PlainCounts

KINDS: list[Any] = [PlainCounts, native_core.native.Histogram] if native_core.present else [PlainCounts]


@pytest.fixture(params=KINDS, ids=["reference", "native"][: len(KINDS)])
def kind(request: pytest.FixtureRequest) -> Any:
    """Each implementation in turn."""
    return request.param


def test_a_value_counts_in_the_first_bucket_that_it_does_not_exceed(kind: Any) -> None:
    """Bounds are inclusive; what is above all of them has a bucket of its own."""
    counts = kind((0.1, 1.0, 10))

    for value in (-1.0, 0.1, 0.2, 1, 10.0, 10.5, float("inf")):
        counts.observe(value)

    assert (counts.bounds, counts.counts, counts.total) == ((0.1, 1.0, 10.0), [2, 2, 1, 2], float("inf"))


def test_without_bounds_there_is_one_bucket(kind: Any) -> None:
    """And it has everything."""
    counts = kind(())

    counts.observe(2.5)

    assert (counts.counts, counts.total) == ([1], 2.5)


def test_a_histogram_adds_its_buckets_up() -> None:
    """As Prometheus wants them."""
    histogram = Histogram(SECONDS_BOUNDS)

    histogram.observe(0.005)
    histogram.observe(1e9)

    buckets = histogram.cumulative()
    assert (buckets[0], buckets[-2], buckets[-1]) == (("0.005", 1.0), ("300.0", 1.0), ("+Inf", 2.0))
