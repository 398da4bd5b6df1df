"""How many workers are needed: the search, and a whole plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvrouter.replay.fleet_simulation import FleetOptions
from kvrouter.replay.measures import Goal, Measures
from kvrouter.replay.plan import plan_workers
from kvrouter.replay.rates import EngineRates
from kvrouter.replay.runs import Player, Run, RunResult
from kvrouter.replay.synthetic import Uniform
from tests.replay.test_comparison import MEASURES

SOURCE = Uniform(requests=100, rate=6.0)
TEMPLATE = Run(
    source=0, policy="", fleet=FleetOptions(rates=EngineRates(cache_tokens=100_000)), wants_bounds=False, goal=Goal()
)


class Steps:
    """Plays runs without simulating: a policy reaches the goal with so many workers or more."""

    def __init__(self, needs: dict[str, int]) -> None:
        self.needs, self.rounds = needs, 0

    def __call__(self, runs: Sequence[Run]) -> list[RunResult]:
        self.rounds += 1
        return [RunResult(run=run, measures=self.measures(run), curves=None, cpu_seconds=0.0) for run in runs]

    def measures(self, run: Run) -> Measures:
        return replace(MEASURES, goodput=1.0 if run.fleet.workers >= self.needs[run.policy] else 0.5)


@given(needs=st.dictionaries(st.sampled_from("abc"), st.integers(1, 80), min_size=1), most=st.integers(1, 64))
def test_the_least_number_that_suffices_is_found(needs: dict[str, int], most: int) -> None:
    """In a number of rounds that grows with its logarithm; None where the most do not suffice."""
    steps = Steps(needs)
    rows = plan_workers(TEMPLATE, SOURCE, list(needs), [0, 1], goodput=0.99, workers_max=most, play=steps)

    assert {row.policy: row.workers for row in rows} == {
        policy: count if count <= most else None for policy, count in needs.items()
    }
    assert steps.rounds <= 14
    for row in rows:
        assert [count for count, _ in row.tried] == sorted({count for count, _ in row.tried})


def test_a_real_plan_holds_what_it_says() -> None:
    """The number reaches the goal, and one less does not."""
    player = Player([SOURCE])
    (row,) = plan_workers(
        TEMPLATE,
        SOURCE,
        ["least-loaded"],
        [0],
        goodput=0.95,
        workers_max=32,
        play=lambda runs: list(map(player.play, runs)),
    )
    tried = dict(row.tried)

    assert row.workers is not None
    assert tried[row.workers] >= 0.95
    assert row.workers == 1 or tried[row.workers - 1] < 0.95
    assert row.goodput == pytest.approx(tried[row.workers])
