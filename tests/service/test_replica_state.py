"""Routers that tell each other through a store, in one process: what is told, heard, refused and taken back."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from random import Random
from time import monotonic

import httpx
import pytest
from fastapi import FastAPI

from kvrouter.errors import SettingsError
from kvrouter.routing import Router
from kvrouter.routing.replica_pace import ReplicaPace
from kvrouter.routing.replicas import ReplicaLoads
from kvrouter.service.admin_replicas import add_replica_routes
from kvrouter.service.replica_state import BUCKET, ReplicaState, open_replica_state
from kvrouter.settings import PlaneSettings, ReplicaSettings, Settings
from kvrouter.store import KeyValueStore
from kvrouter.store.memory_keys import MemoryKeyValueStore
from tests.routing.fleets import fleet, prompt_of

DEADLINE_SECONDS = 60.0


class Side:
    """One router, its view of the others, and the task that keeps it."""

    def __init__(self, name: str, store: KeyValueStore, *, namespace: str = "fleet") -> None:
        self.router: Router = fleet("a", "b", policy="least-loaded")
        loads = ReplicaLoads(self.router.fleet, name, lease_seconds=60.0, random=Random(0))
        pace = ReplicaPace(loads, lambda: self.router.decisions, interval_seconds=0.01, random=Random(0))
        self.state = ReplicaState(loads, pace, store, address="memory:", namespace=namespace, clock=monotonic)
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to tell and to listen."""
        self._running = asyncio.create_task(self.state.run())

    async def stop(self) -> None:
        """As the process does."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait({self._running})
            self._running = None
            await self.state.close()

    def elsewhere(self) -> int:
        """Requests that others have on the first worker."""
        return self.state.loads.elsewhere(self.router.fleet.worker("a").ranks[0]).requests


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[Side, Side, KeyValueStore]]:
    """Two routers that know of each other."""
    store = MemoryKeyValueStore()
    sides = Side("x", store), Side("y", store)
    for side in sides:
        side.start()
    try:
        await until(lambda: all(len(side.state.loads) == 1 for side in sides))
        yield *sides, store
    finally:
        for side in sides:
            await side.stop()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for it."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not condition():
            await asyncio.sleep(0.005)


async def test_what_one_books_the_other_knows_until_it_ends() -> None:
    """And sends its own requests elsewhere meanwhile."""
    async with pair() as (one, other, _):
        decision = one.router.route(prompt_of(1), now=monotonic())
        await until(lambda: sum(_requests(other)) == 1)
        chosen = other.router.route(prompt_of(2), now=monotonic())
        one.router.finished(decision.id, now=monotonic())
        await until(lambda: sum(_requests(other)) == 0)

    assert chosen.worker_id != decision.worker_id


async def test_who_stops_takes_its_record_back() -> None:
    """Nobody has to wait until its lease is over."""
    async with pair() as (one, other, store):
        one.router.route(prompt_of(1), now=monotonic())
        await until(lambda: sum(_requests(other)) == 1)

        await one.stop()
        await until(lambda: not len(other.state.loads))
        left = await store.bucket(BUCKET).entries()

    assert sum(_requests(other)) == 0
    assert list(left) == ["fleet/y"]
    assert other.state.loads.counts.left == 1


async def test_a_record_that_makes_no_sense_is_told_of_by_its_field(caplog: pytest.LogCaptureFixture) -> None:
    """Once in the log however often it comes; the records of others are read as before."""
    async with pair() as (one, other, store):
        refused = other.state.loads.counts.refused = Counter()
        with caplog.at_level(logging.WARNING):
            for count in range(3):
                await store.bucket(BUCKET).put("fleet/z", b'{"replica_id":"z","number":-1}')
                await until(lambda count=count: refused["number"] > count)  # type: ignore[misc]
            one.router.route(prompt_of(1), now=monotonic())
            await until(lambda: sum(_requests(other)) == 1)

    told = [record.fields for record in caplog.records if record.message == "replica_record_refused"]  # type: ignore[attr-defined]
    assert [fields["field"] for fields in told] == ["number"] * 2  # each of the two routers, once
    assert refused == {"number": 3}


async def test_routers_of_another_namespace_are_not_heard() -> None:
    """One store may serve several fleets; a name that begins like ours is another one, too."""
    async with pair() as (one, other, store):
        stranger = Side("z", store, namespace="fleet2")
        stranger.start()
        await until(lambda: bool(stranger.state.statistics.told and stranger.state.statistics.synced))
        one.router.route(prompt_of(1), now=monotonic())
        await until(lambda: sum(_requests(other)) == 1)
        heard = len(stranger.state.loads), len(one.state.loads), len(other.state.loads)
        await stranger.stop()

    assert heard == (0, 1, 1)


async def test_a_router_that_knows_of_no_others_says_so() -> None:
    """Over the admin API."""
    app = FastAPI()
    add_replica_routes(app, None)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://router") as client:
        answer = await client.get("/replicas")

    assert answer.json() == {"enabled": False, "replicas": []}


async def test_what_is_known_can_be_looked_at() -> None:
    """As `GET /replicas` shows it."""
    async with pair() as (one, other, _):
        one.router.route(prompt_of(1), now=monotonic())
        await until(lambda: sum(_requests(other)) == 1)
        shown = other.state.as_json()

    (known,) = shown["replicas"]
    assert (shown["replica_id"], shown["store_state"], shown["last_error"]) == ("y", "following", None)
    assert (known["replica_id"], known["active_requests"], known["prefill_tokens"]) == ("x", 1, 64)


def test_the_store_is_that_of_discovery_unless_another_is_named() -> None:
    """Or none; passwords are not shown."""
    found = PlaneSettings(discovery="memory:")

    def opened(**options: str) -> str | None:
        settings = replace(Settings(), planes=found, replicas=ReplicaSettings(**options))  # type: ignore[arg-type]
        state = open_replica_state(settings, Router(), clock=monotonic)
        return None if state is None else state.address

    assert open_replica_state(Settings(), Router(), clock=monotonic) is None
    assert opened() == "memory:"
    assert opened(store="off") is None
    assert opened(store="redis://:secret@127.0.0.1:1/0/kv") == "redis://***@127.0.0.1:1/0/kv"


@pytest.mark.parametrize("store", ["http://127.0.0.1:1", "no://where"])
def test_a_store_that_keeps_no_small_values_is_refused_at_the_start(store: str) -> None:
    """It would never work."""
    with pytest.raises(SettingsError):
        open_replica_state(replace(Settings(), replicas=ReplicaSettings(store=store)), Router(), clock=monotonic)


def _requests(side: Side) -> list[int]:
    """Requests that others have on each rank, as a router knows it."""
    return [side.state.loads.elsewhere(rank).requests for rank in side.router.fleet.ranks]
