"""Numbers about runs: estimates, ties, measures and curves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kvrouter.replay.comparison import Estimate, compare, paired_difference
from kvrouter.replay.curves import POINTS, curves_of
from kvrouter.replay.fleet_simulation import FleetOptions, simulate
from kvrouter.replay.measures import Goal, Measures, measure
from kvrouter.replay.rates import EngineRates
from kvrouter.replay.synthetic import MultiTurn

OUTCOME = simulate(
    MultiTurn(requests=200).trace(1), "kv", FleetOptions(workers=2, rates=EngineRates(cache_tokens=100_000))
)
MEASURES = measure(OUTCOME, goal=Goal())


def measured(ttft: float) -> Measures:
    """Measures of which only the mean time to first token is of interest."""
    return replace(MEASURES, ttft_mean=ttft)


def test_one_value_has_no_margin() -> None:
    """Nothing is known of how much it varies."""
    assert Estimate.of([2.0]) == Estimate(2.0, None)


def test_a_margin_is_students() -> None:
    """Three values, two degrees of freedom: 4.303 standard errors."""
    estimate = Estimate.of([1.0, 2.0, 3.0])

    assert estimate.mean == 2.0
    assert estimate.margin == pytest.approx(4.303 / 3**0.5)


def test_many_values_have_about_two_standard_errors() -> None:
    """Beyond the table the normal distribution will do."""
    estimate = Estimate.of([float(number % 2) for number in range(400)])

    assert estimate.margin == pytest.approx(2.0 * 0.5 / 20, rel=0.01)


def test_differences_are_paired_by_seed() -> None:
    """What seeds have in common is no noise."""
    ours, theirs = {1: 10.0, 2: 20.0, 3: 30.0}, {1: 11.0, 2: 21.0, 3: 31.0, 4: 0.0}

    assert paired_difference(ours, theirs) == Estimate(-1.0, 0.0)


def test_the_best_is_marked_and_so_is_who_may_be_as_good() -> None:
    """A steady difference counts, one that changes its sign does not."""
    rows = compare(
        [("a", seed, measured(1.0 + seed)) for seed in range(4)]
        + [("b", seed, measured(1.1 + seed)) for seed in range(4)]
        + [("c", seed, measured(1.02 + seed + 0.2 * (-1) ** seed)) for seed in range(4)]
    )

    assert [(row.policy, row.verdict) for row in rows] == [("a", "best"), ("b", "behind"), ("c", "tied")]
    assert rows[0].seeds == (0, 1, 2, 3)
    assert rows[0].figures["ttft_mean"].mean == 2.5


def test_what_nobody_asked_for_is_absent() -> None:
    """Bounds are not computed unless somebody wants them."""
    (row,) = compare([("a", 0, MEASURES)])

    assert "pooled_share" not in row.figures
    assert MEASURES.pooled_efficiency is None


def test_measures_are_what_they_say() -> None:
    """Against the rows themselves."""
    ttft = OUTCOME.first_token - OUTCOME.arrival

    assert pytest.approx(ttft.mean()) == MEASURES.ttft_mean
    assert pytest.approx(np.percentile(ttft, 99)) == MEASURES.ttft_p99
    assert MEASURES.goodput == np.mean(ttft <= 2.0)
    assert pytest.approx(OUTCOME.cached_tokens.sum() / OUTCOME.input_tokens.sum()) == MEASURES.hit_share
    assert 1.0 <= MEASURES.imbalance <= 2.0
    assert 0.0 < MEASURES.busy_share <= 1.0


def test_a_goal_may_bound_each_further_token() -> None:
    """Then a fast first token is not enough."""
    assert measure(OUTCOME, goal=Goal(ttft_seconds=1e9)).goodput == 1.0
    assert measure(OUTCOME, goal=Goal(ttft_seconds=1e9, token_seconds=1e-9)).goodput < 0.1


def test_curves_are_of_the_whole_run() -> None:
    """Parts of time, percentiles and workers."""
    curves = curves_of(OUTCOME)

    assert len(curves.times) == len(curves.hit_share) == len(curves.ttft_mean) == POINTS
    percentile, seconds = curves.ttft_percentiles[-1]
    assert percentile == 100.0
    assert seconds == pytest.approx(OUTCOME.ttft.max())
    assert sum(curves.worker_requests) == 200
    assert all(
        prefill <= busy <= 1.0
        for prefill, busy in zip(curves.worker_prefill_share, curves.worker_busy_share, strict=True)
    )
    per_part = OUTCOME.arrival.max() - OUTCOME.arrival.min()
    assert sum(curves.arrivals_per_second) * per_part / POINTS == pytest.approx(200)
