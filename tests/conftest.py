"""What every folder of tests may use."""

from collections.abc import Iterator

import pytest

from kvrouter import native_core

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
