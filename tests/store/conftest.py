"""Each backend in turn, on servers that a module of tests shares."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers import EtcdServer, NatsServer, RedisServer, etcd_server, nats_server, redis_server
from tests.store.backends import (
    Backend,
    EtcdBackend,
    HttpBackend,
    LocalBackend,
    MemoryBackend,
    NatsBackend,
    ObjectServer,
    Place,
    RedisBackend,
)

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """A nats-server for one module."""
    with nats_server(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A redis-server for one module."""
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """An etcd for one module."""
    with etcd_server(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture(scope="module")
def object_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    """An object server for one module."""
    server = ObjectServer(tmp_path_factory.mktemp("objects"))
    try:
        yield server.start()
    finally:
        server.kill()


@pytest.fixture(params=["memory", "local", "nats", "redis", "etcd"])
def keys(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty place to store small values, one for each kind of backend."""
    if request.param == "etcd":
        return EtcdBackend(request.getfixturevalue("etcd"))
    return _backend(request, tmp_path)


@pytest.fixture(params=["memory", "local", "nats", "redis", "http"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    """An empty place to store objects, one for each kind of backend."""
    return _backend(request, tmp_path)


@pytest.fixture(params=["memory", "local", "nats", "redis"])
def both(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    """An empty place for objects and small values."""
    return _backend(request, tmp_path)


def _backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    match request.param:
        case "memory":
            return MemoryBackend()
        case "local":
            return LocalBackend(tmp_path)
        case "nats":
            return NatsBackend(request.getfixturevalue("nats"))
        case "http":
            return HttpBackend(request.getfixturevalue("object_server"))
    return RedisBackend(request.getfixturevalue("redis"))


@pytest.fixture
def run() -> Run:
    """Run one test's story, with a bound on its time."""

    def bounded(scenario: Coroutine[Any, Any, None]) -> None:
        async def main() -> None:
            async with asyncio.timeout(110):
                await scenario

        asyncio.run(main())

    return bounded
