"""Schedules of faults with real publishers, brokers and connections, each as its seed says.

A failing seed is printed with what was done. `REAL_SCHEDULE=TRANSPORT:SEED pytest tests/faults/test_real_schedules.py`
runs it alone; `REAL_SCHEDULES=COUNT` runs so many of each transport, `REAL_SCHEDULES_FROM=SEED` other ones.
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


def _parts() -> list[tuple[str, list[int]]]:
    if ALONE:
        transport, _, seed = ALONE.partition(":")
        return [(transport, [int(seed)])]
    starts = range(FIRST, FIRST + COUNT, TOGETHER)
    return [
        (transport, list(range(start, min(start + TOGETHER, FIRST + COUNT))))
        for transport in TRANSPORTS
        for start in starts
    ]


def _name(transport: str, seeds: list[int]) -> str:
    return f"{transport}-{seeds[0]}-to-{seeds[-1]}"


@pytest.fixture(scope="module", autouse=True)
def _prepared() -> None:
    prepare()


@pytest.mark.parametrize(("transport", "seeds"), _parts(), ids=[_name(*part) for part in _parts()])
def test_the_index_is_the_truth_after_real_faults(transport: str, seeds: list[int], tmp_path: Path) -> None:
    """Processes are killed and held still, brokers forget, networks do everything wrong, and then all is well again."""

    async def one(seed: int) -> str:
        folder = tmp_path / str(seed)
        folder.mkdir()
        schedule = RealSchedule(transport, seed, folder)
        try:
            await schedule.run()
        except Exception:  # noqa: BLE001 - all failures of a test are told together
            return f"REAL_SCHEDULE={transport}:{seed}\n{'; '.join(schedule.log)}\n{traceback.format_exc()}"
        return ""

    async def together() -> list[str]:
        return await asyncio.gather(*map(one, seeds))

    failures = [each for each in asyncio.run(together()) if each]
    assert not failures, "\n".join(failures)
