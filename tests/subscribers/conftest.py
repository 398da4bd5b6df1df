"""Fixtures of subscriber tests."""

from collections.abc import Iterator

import pytest

from kvrouter import native_core
from tests.subscribers.scene import DIRECT

WAYS = ["libzmq", "direct"] if native_core.present else ["libzmq"]


@pytest.fixture(params=WAYS)
def reading(request: pytest.FixtureRequest) -> Iterator[str]:
    """How plain TCP connections are read; `scene` knows it."""
    token = DIRECT.set(request.param == "direct")
    yield request.param
    DIRECT.reset(token)
