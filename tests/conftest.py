"""What every folder of tests may use, and in which order files are begun."""

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from httpx._config import DEFAULT_TIMEOUT_CONFIG
from hypothesis import HealthCheck, settings

from kvrouter import native_core

# The gate tries the same examples every time, however long a slow machine takes for one;
# `pytest --hypothesis-profile explore` looks for others.
settings.register_profile("gate", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("explore", settings.get_profile("gate"), derandomize=False)
settings.load_profile("gate")

# What a client waits for by default: five seconds are not much where many tests share a slow machine.
DEFAULT_TIMEOUT_CONFIG.connect = DEFAULT_TIMEOUT_CONFIG.read = DEFAULT_TIMEOUT_CONFIG.write = 60.0

# Where several processes run tests, a file to each, whoever gets the longest last is waited for by all others.
LONGEST = (
    "tests/native/test_sanitized.py",
    "tests/native/test_installing.py",
    "tests/benchmarks/test_runs.py",
    "tests/service/test_restarts_with_snapshots.py",
    "tests/service/test_recorded_engines.py",
    "tests/faults/test_real_schedules.py",
    "tests/faults/test_schedules.py",
    "tests/faults/test_planes.py",
    "tests/demo/test_demo.py",
)
# What is done by the thousand reaches no line that examples do not reach, and takes twice as long when it is measured.
UNMEASURED = (
    "tests/faults/test_aborted_requests.py",
    "tests/faults/test_planes.py",
    "tests/faults/test_schedules.py",
    "tests/fuzz",
    "tests/index/test_native_memory.py",
    "tests/ingest/test_budget_model.py",
    "tests/ingest/test_channel_model.py",
    "tests/native",
    "tests/routing/test_queue_model.py",
)
_FOLDER = Path(__file__).parents[1]

IMPLEMENTATIONS = ("native", "reference") if native_core.present else ("reference",)


def pytest_configure(config: pytest.Config) -> None:
    """Let files be given to processes in our order, not by how many tests they have.

    What a shell starts in the background ignores Ctrl-C, and so would all that tests start and interrupt.
    """
    config.option.loadscopereorder = False
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files; measure what examples cover, not what is drawn at random."""
    places = {_FOLDER / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(LONGEST)))
    unmeasured = {_FOLDER / name for name in UNMEASURED}
    for item in items:
        drawn = getattr(getattr(item, "function", None), "is_hypothesis_test", False)
        if drawn or unmeasured & {item.path, item.path.parent}:
            item.add_marker(pytest.mark.no_cover)


@pytest.fixture(scope="module", params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the tests of a module with the native core and again without it: one contract for both."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native_core, "present", request.param == "native")
        yield request.param


@pytest.fixture(scope="module")
def reference() -> Iterator[None]:
    """Run the tests of a module without the native core: they are about what it makes needless."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native_core, "present", False)
        yield
