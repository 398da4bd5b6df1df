"""A router's state is found by the next one: whole, the newest that can be read, written by one router at a time."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from kvrouter.service.state_snapshots import KEPT, StateSnapshots
from kvrouter.store import acquire, open_key_value_store, open_object_store
from tests.servers import nats_server, redis_server

BUCKET = "fleet"


def in_a_loop(test: Callable[..., Coroutine[None, None, None]]) -> Callable[..., None]:
    """Run a test that is a coroutine in an event loop of its own."""

    @wraps(test)
    def run(*fixtures: Any, **named: Any) -> None:
        asyncio.run(test(*fixtures, **named))

    return run


@contextmanager
def store_url(kind: str, folder: Path) -> Iterator[str]:
    """A store of that kind, with nothing in it."""
    if kind == "file":
        yield f"file://{folder / 'store'}"
    elif kind == "nats":
        with nats_server(folder) as server:
            yield f"{server.url}/KV"
    else:
        with redis_server(folder) as server:
            yield f"{server.url}/0/kv"


@pytest.fixture(params=["file", "nats", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A store of each kind."""
    with store_url(request.param, tmp_path) as address:
        yield address


@asynccontextmanager
async def router(url: str, router_id: str = "r1") -> AsyncIterator[StateSnapshots]:
    """One router's access to the store."""
    snapshots = StateSnapshots(open_object_store(url), open_key_value_store(url), bucket=BUCKET, router_id=router_id)
    try:
        yield snapshots
    finally:
        await snapshots.close()


@in_a_loop
async def test_what_one_router_saved_another_one_loads(url: str) -> None:
    """A-320: with the positions up to which it has everything."""
    state = bytes(range(256)) * 4096
    async with router(url) as one, router(url, "r2") as two:
        nothing = await two.load()
        outcome = await one.save(state, {"jetstream": {"nats://host/kv": 17}}, now=12.5)
        loaded = await two.load()

    assert (nothing, outcome) == (None, "saved")
    assert loaded is not None
    assert (loaded.state, loaded.positions, loaded.saved_at) == (state, {"jetstream": {"nats://host/kv": 17}}, 12.5)


@in_a_loop
async def test_old_states_go_and_the_newest_stays(url: str) -> None:
    """The store does not fill up."""
    async with router(url) as one:
        for number in range(KEPT + 4):
            await one.save(b"%d" % number, {}, now=float(number))
        loaded = await one.load()
    async with open_object_store(url) as objects:
        names = await objects.list(BUCKET)

    assert loaded is not None
    assert loaded.state == b"%d" % (KEPT + 3)
    assert len(names) == KEPT + 1


@in_a_loop
async def test_of_two_routers_only_the_leader_writes(url: str) -> None:
    """The other one says so, and tries again later."""
    async with router(url, "r2") as two, open_key_value_store(url) as keys:
        lease = await acquire(keys.bucket(BUCKET), "lock", holder="r1")
        assert lease is not None
        refused = await two.save(b"two", {}, now=1.0)
        await lease.release()
        accepted = await two.save(b"two", {}, now=2.0)

    assert (refused, accepted) == ("not_leader", "saved")


@in_a_loop
async def test_many_routers_at_once_leave_one_whole_state(url: str) -> None:
    """Whoever wins; the pointer never names what is not there."""
    async with router(url, "a") as a, router(url, "b") as b, router(url, "c") as c:
        await asyncio.gather(*(each.save(name * 1000, {}, now=1.0) for each, name in ((a, b"a"), (b, b"b"), (c, b"c"))))
        loaded = await a.load()

    assert loaded is not None
    assert loaded.state in {b"a" * 1000, b"b" * 1000, b"c" * 1000}


@in_a_loop
async def test_a_writer_that_died_before_the_pointer_moved_is_not_believed_over_it(url: str) -> None:
    """Its object is there, but nobody vouched for it."""
    async with router(url) as one:
        await one.save(b"good", {}, now=1.0)
        async with open_object_store(url) as objects:
            await objects.put(BUCKET, "router-state-000000000002-dead", b"unfinished")
        loaded = await one.load()

    assert loaded is not None
    assert loaded.state == b"good"


@in_a_loop
async def test_a_damaged_state_is_passed_over_for_the_one_before(tmp_path: Path) -> None:
    """A bit that fell over on the disk costs an older state, not the start."""
    url = f"file://{tmp_path}"
    async with router(url) as one:
        await one.save(b"older" * 100, {}, now=1.0)
        await one.save(b"newer" * 100, {}, now=2.0)
        (newest,) = (path for path in tmp_path.rglob("*router-state-000000000002*") if path.stat().st_size >= 500)
        newest.write_bytes(newest.read_bytes().replace(b"newer", b"nEwer", 1))
        loaded = await one.load()

    assert loaded is not None
    assert loaded.state == b"older" * 100
    assert one.skipped_damaged == 1


@in_a_loop
async def test_a_pointer_that_nobody_can_read_is_replaced(url: str) -> None:
    """The states themselves are numbered as well."""
    async with router(url) as one, open_key_value_store(url) as keys:
        await keys.bucket(BUCKET).create("current", b"\xff{")
        before = await one.load()
        outcome = await one.save(b"state", {}, now=1.0)
        loaded = await one.load()

    assert (before, outcome) == (None, "saved")
    assert loaded is not None


@in_a_loop
async def test_after_a_lost_pointer_the_next_state_is_above_all_that_are_there(url: str) -> None:
    """Counting from 1 again, it would be the oldest, and the first to be deleted."""
    async with router(url) as one, open_key_value_store(url) as keys:
        for number in range(KEPT + 2):
            await one.save(b"%d" % number, {}, now=float(number))
        await keys.bucket(BUCKET).delete("current")
        await one.save(b"next", {}, now=9.0)
        loaded = await one.load()

    assert loaded is not None
    assert loaded.state == b"next"
    assert one.skipped_damaged == 0


@in_a_loop
async def test_forgetting_leaves_nothing(url: str) -> None:
    """The next router begins with what the workers say."""
    async with router(url) as one:
        await one.save(b"state", {}, now=1.0)
        await one.forget()
        loaded = await one.load()
        again = await one.save(b"state", {}, now=1.0)

    assert (loaded, again) == (None, "saved")
