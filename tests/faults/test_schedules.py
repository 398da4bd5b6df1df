"""Ten thousand schedules of faults, each as its seed says: after healing the index is the truth.

A failing seed is printed. `SCHEDULE=SEED pytest tests/faults/test_schedules.py` runs it alone; `SCHEDULES=COUNT` runs
so many, `SCHEDULES_FROM=SEED` other ones.
"""

import os

import pytest

import kvrouter_publishers.core
from tests.faults.schedules import Clock, Schedule

FIRST = int(os.environ.get("SCHEDULE") or os.environ.get("SCHEDULES_FROM") or 0)
COUNT = 1 if "SCHEDULE" in os.environ else int(os.environ.get("SCHEDULES") or 10_000)
PART = 1000
"""Schedules in one test, so that several can run beside each other."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock for the schedule and its publishers."""
    clock = Clock()
    monkeypatch.setattr(kvrouter_publishers.core, "time", clock)
    return clock


@pytest.mark.parametrize("start", range(FIRST, FIRST + COUNT, PART))
def test_the_index_is_the_truth_after_every_schedule_of_faults(start: int, clock: Clock) -> None:
    """A-308, A-309: losses, repetitions, damage, restarts of either side, late and torn snapshots, in any order."""
    for seed in range(start, min(start + PART, FIRST + COUNT)):
        clock.now = 1000.0
        try:
            Schedule(seed, clock).run()
        except Exception as error:
            raise AssertionError(f"SCHEDULE={seed}: {error}") from error
