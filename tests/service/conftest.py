"""Fixtures of the service's tests; runs those that are `async def`."""

import asyncio
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service.processes import Processes


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a coroutine test to its end; leave others to pytest."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    asyncio.run(pyfuncitem.obj(**arguments))
    return True


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    """Real processes that end with the test."""
    started = Processes(tmp_path)
    yield started
    started.stop()
