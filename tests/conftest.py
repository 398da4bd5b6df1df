"""What every folder of tests may use."""

from collections.abc import Iterator

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

IMPLEMENTATIONS = ("native", "reference") if native_core.present else ("reference",)


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
