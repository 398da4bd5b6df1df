"""Schedules of faults with real publishers, brokers and connections, each as its seed says.

A failing seed is printed with what was done. `REAL_SCHEDULE=TRANSPORT:SEED pytest tests/faults/test_real_schedules.py`
runs it alone, `REAL_SCHEDULE=serve-TRANSPORT:SEED` with a whole router; `REAL_SCHEDULES=COUNT` runs so many of each
transport, `REAL_SCHEDULES_FROM=SEED` other ones. What a seed does is always the same, when exactly is not.
"""

import asyncio
import os
import traceback
from pathlib import Path

import pytest

from tests.faults.real_lines import TRANSPORTS
from tests.faults.real_publishers import prepare
from tests.faults.real_schedule import RealSchedule

ALONE = os.environ.get("REAL_SCHEDULE", "")
FIRST = int(os.environ.get("REAL_SCHEDULES_FROM", "0"))
COUNT = int(os.environ.get("REAL_SCHEDULES", "10"))
TOGETHER = 5
"""Schedules in one test, which run at the same time."""
WHOLE_SHARE = 10
"""Of so many seeds one is also run with a whole router, which takes its time to start."""
WHOLE = "serve-"

Schedules = list[tuple[str, int]]


def _schedules() -> dict[str, Schedules]:
    """Those of each test, by what it is called."""
    if ALONE:
        name, _, seed = ALONE.partition(":")
        return {ALONE: [(name, int(seed))]}
    seeds = range(FIRST, FIRST + COUNT)
    parts = {
        f"{transport}-{part[0]}-to-{part[-1]}": [(transport, seed) for seed in part]
        for transport in TRANSPORTS
        for part in (seeds[start : start + TOGETHER] for start in range(0, COUNT, TOGETHER))
    }
    whole = {f"serve-{seed}": [(WHOLE + transport, seed) for transport in TRANSPORTS] for seed in seeds[::WHOLE_SHARE]}
    return parts | whole


@pytest.fixture(scope="module", autouse=True)
def _prepared() -> None:
    prepare()


# nats-py does not close a connection whose greeting was cut before it opens the next one.
@pytest.mark.filterwarnings("ignore:.*StreamWriter.__del__:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("schedules", _schedules().values(), ids=_schedules())
def test_the_index_is_the_truth_after_real_faults(schedules: Schedules, tmp_path: Path) -> None:
    """A-302, A-308, A-502: processes die or stand still, brokers forget, networks do all wrong; then all is well."""

    async def one(name: str, seed: int) -> str:
        folder = tmp_path / f"{name}-{seed}"
        folder.mkdir()
        transport = name.removeprefix(WHOLE)
        schedule = RealSchedule(transport, seed, folder, whole_router=transport != name)
        try:
            await schedule.run()
        except Exception:  # noqa: BLE001 - all failures of a test are told together
            return f"REAL_SCHEDULE={name}:{seed}\n{'; '.join(schedule.log)}\n{traceback.format_exc()}"
        return ""

    async def together() -> list[str]:
        return await asyncio.gather(*(one(*each) for each in schedules))

    failures = [each for each in asyncio.run(together()) if each]
    assert not failures, "\n".join(failures)
