"""What the default policy reaches on whole traffic: simulated, so that it is always the same."""

from __future__ import annotations

from statistics import fmean

import numpy as np
import pytest

from kvrouter.replay.fleet_simulation import FleetOptions, simulate
from kvrouter.replay.outcome import Outcome
from kvrouter.replay.synthetic import SharedPrompt, Uniform

FLEET = FleetOptions(workers=8)
SEEDS = (0,)


def played(traffic: Uniform | SharedPrompt, policy: str) -> list[Outcome]:
    """One outcome for each seed."""
    return [simulate(traffic.trace(seed), policy, FLEET, seed=seed) for seed in SEEDS]


def mean_ttft(outcomes: list[Outcome]) -> float:
    """Over all requests and seeds."""
    return fmean(float(each.ttft.mean()) for each in outcomes)


@pytest.mark.parametrize("rate", [4.0, 18.0])
def test_where_nothing_is_shared_it_is_as_good_as_the_best_load_balancer(rate: float) -> None:
    """Overlap tells nothing there: what decides is what each rank has to do, and that is known in seconds."""
    traffic = Uniform(requests=300, rate=rate)
    ours = played(traffic, "kv")

    for balancer in ("least-loaded", "round-robin"):
        theirs = played(traffic, balancer)

        assert mean_ttft(ours) <= 1.02 * mean_ttft(theirs), balancer
        assert np.percentile(ours[0].ttft, 99) <= 1.05 * np.percentile(theirs[0].ttft, 99), balancer


def test_a_shared_system_prompt_attracts_nobody() -> None:
    """One prompt that begins all requests is soon everywhere, and no worker has much more to do than another."""
    traffic = SharedPrompt(requests=300, rate=20.0, prompts=1)
    ours, blind = played(traffic, "kv"), played(traffic, "least-loaded")

    for outcome in ours:
        requests = np.bincount(outcome.worker, minlength=FLEET.workers)
        assert requests.max() <= 2 * requests.mean()
        assert requests.min() > 0
    assert mean_ttft(ours) <= 1.02 * mean_ttft(blind)
