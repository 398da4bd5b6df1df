"""A nats-server for a module of tests, and a bound on each test's story."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from tests.servers import NatsServer, nats_server

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """A nats-server for one module."""
    with nats_server(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest.fixture
def run() -> Run:
    """Run one test's story, with a bound on its time."""

    def bounded(scenario: Coroutine[Any, Any, None]) -> None:
        async def main() -> None:
            async with asyncio.timeout(110):
                await scenario

        asyncio.run(main())

    return bounded
