"""Servers that die under load: nothing that was acknowledged is lost, nothing is mixed, and watches end at the truth.

Values and objects are written all the time while the server is killed and started again, with its data and without.
A write whose answer did not come may have been made or not; one that was acknowledged is there.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest

from kvrouter.errors import StoreError
from kvrouter.store import KeyValueBucket, ObjectStore, open_key_value_store, open_object_store
from tests.servers import EtcdServer, NatsServer, RedisServer, Server, etcd_server, nats_server, redis_server
from tests.store.conftest import Run
from tests.store.test_objects import content
from tests.store.test_watching import Follower, url_of

Result = TypeVar("Result")

OBJECT_BYTES = 150_000  # More than one chunk of NATS.
RESTARTS = 2
WRITES_BETWEEN = 10


def durable_redis(folder: Path) -> AbstractContextManager[RedisServer]:
    """A Redis that has a write on its disk before it acknowledges it."""
    return redis_server(folder, "--appendfsync", "always")


SERVERS: dict[str, Callable[[Path], AbstractContextManager[NatsServer | RedisServer | EtcdServer]]] = {
    "nats": nats_server,
    "redis": durable_redis,
    "etcd": etcd_server,
}


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A server of this test alone."""
    with SERVERS[request.param](tmp_path) as started:
        yield started


class Ledger:
    """What may be found under each name: the last write that was acknowledged, or a later one that nobody knows of."""

    def __init__(self) -> None:
        self.possible: dict[str, set[int | None]] = {}
        self.acknowledged = self.life = 0

    async def note(self, name: str, number: int, write: Callable[[], Awaitable[object]]) -> None:
        """Write `number` under `name`, and note what comes of it."""
        life, possible = self.life, self.possible.setdefault(name, {None})
        try:
            await write()
        except StoreError as error:
            if error.reason != "unavailable":
                raise
            possible.add(number)
            await asyncio.sleep(0.02)
        else:
            self.acknowledged += 1
            # An acknowledgement from before the server lost its data proves nothing about those that it has now.
            possible.add(number)
            if life == self.life:
                self.possible[name] = {number}

    def lost(self) -> None:
        """The server has lost its data."""
        self.life += 1
        for possible in self.possible.values():
            possible.add(None)


async def write_values(bucket: KeyValueBucket, ledger: Ledger, end: asyncio.Event) -> None:
    """Write one value after the other."""
    number = 0
    while not end.is_set():
        number += 1
        value = b"%d" % number

        async def write(name: str = f"key-{number % 7}", value: bytes = value) -> None:
            await bucket.put(name, value)

        await ledger.note(f"key-{number % 7}", number, write)


async def write_objects(store: ObjectStore, ledger: Ledger, end: asyncio.Event) -> None:
    """Write one object after the other."""
    number = 0
    while not end.is_set():
        number += 1

        async def write(name: str = f"object-{number % 3}", data: bytes = content(OBJECT_BYTES, number)) -> None:
            await store.put("objects", name, data)

        await ledger.note(f"object-{number % 3}", number, write)


async def surely(ask: Callable[[], Awaitable[Result]]) -> Result | None:
    """Ask until the server answers; None for what is missing."""
    while True:
        try:
            return await ask()
        except StoreError as error:
            if error.reason == "missing":
                return None
            if error.reason != "unavailable":
                raise
            await asyncio.sleep(0.05)


@asynccontextmanager
async def written(server: Server) -> AsyncIterator[list[Ledger]]:
    """Write to a server until the end of the block: values, and objects where it keeps them."""
    end, ledgers = asyncio.Event(), [Ledger()]
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_key_value_store(url_of(server)))
        writing = [asyncio.create_task(write_values(store.bucket("values"), ledgers[0], end))]
        if not isinstance(server, EtcdServer):
            objects = await stack.enter_async_context(open_object_store(url_of(server)))
            ledgers.append(Ledger())
            writing.append(asyncio.create_task(write_objects(objects, ledgers[1], end)))
        yield ledgers
        end.set()
        await asyncio.gather(*writing)


async def some_more(ledgers: list[Ledger]) -> None:
    """Wait until all of them have had further writes acknowledged."""
    goals = [ledger.acknowledged + WRITES_BETWEEN for ledger in ledgers]
    while any(ledger.acknowledged < goal for ledger, goal in zip(ledgers, goals, strict=True)):
        await asyncio.sleep(0.01)


async def die(server: Server, ledgers: list[Ledger], *, keep_data: bool) -> None:
    """Kill the server and start it again."""
    await asyncio.to_thread(server.restart, keep_data=keep_data)
    if not keep_data:
        for ledger in ledgers:
            ledger.lost()


@pytest.mark.parametrize("keep_data", [True, False], ids=["with-data", "without-data"])
def test_what_was_acknowledged_outlives_a_server_that_dies_under_load(
    server: Server, run: Run, keep_data: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A-302, A-308, A-341, A-352, A-353: values, objects and an open watch, through two deaths."""
    monkeypatch.setattr("kvrouter.store.nats_connection.ANSWER_SECONDS", 2.0)  # What a dead socket swallows.

    async def scenario() -> None:
        async with open_key_value_store(url_of(server)) as following:
            follower = Follower(following.bucket("values"))
            async with written(server) as ledgers:
                for _ in range(RESTARTS):
                    await some_more(ledgers)
                    await die(server, ledgers, keep_data=keep_data)
                await some_more(ledgers)

            found = await values_found(server, ledgers[0])
            await follower.until(lambda seen: seen.values == found)
            await follower.close()
            if len(ledgers) > 1:
                await check_objects(server, ledgers[1])

    run(scenario())


async def values_found(server: Server, ledger: Ledger) -> dict[str, bytes]:
    """Every value that is there now, each one that may be."""
    found = {}
    async with open_key_value_store(url_of(server)) as store:
        bucket = store.bucket("values")
        for name, possible in ledger.possible.items():
            entry = await surely(partial(bucket.get, name))
            assert (None if entry is None else int(entry.value)) in possible
            if entry is not None:
                found[name] = entry.value
    return found


async def check_objects(server: Server, ledger: Ledger) -> None:
    """Every object that is there is one that may be, from its first byte to its last."""
    async with open_object_store(url_of(server)) as objects:
        for name, possible in ledger.possible.items():
            data = await surely(partial(objects.get, "objects", name))
            assert data in [None if number is None else content(OBJECT_BYTES, number) for number in possible]
