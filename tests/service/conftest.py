"""Fixtures of the service's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service.processes import Processes


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    """Real processes that end with the test."""
    started = Processes(tmp_path)
    yield started
    started.stop()
