"""Following keys: what was there, what changes, what expires, and servers that go away meanwhile (A-353)."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, aclosing
from pathlib import Path

import pytest

from kvrouter.errors import StoreError
from kvrouter.store import Entry, KeyValueBucket, open_key_value_store
from kvrouter.store.key_values import Change, Synced
from kvrouter.store.watching import Followed, KnownKeys, watched
from tests.servers import EtcdServer, NatsServer, RedisServer, Server, etcd_server, nats_server, redis_server
from tests.store.backends import Place
from tests.store.conftest import Run


class Follower:
    """Keeps what a watch has told so far."""

    def __init__(self, bucket: KeyValueBucket, prefix: str = "") -> None:
        self.values: dict[str, bytes] = {}
        self.synced = 0
        self._news = asyncio.Condition()
        self._task = asyncio.create_task(self._follow(bucket.watch(prefix)))

    async def until(self, condition: Callable[["Follower"], object]) -> None:
        """Wait until what was told fulfils a condition."""
        async with self._news:
            await self._news.wait_for(lambda: condition(self) or self._task.done())
        if self._task.done():
            self._task.result()

    async def close(self) -> None:
        """Stop following."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _follow(self, news: AsyncIterator[Change | Synced]) -> None:
        async with aclosing(news):  # type: ignore[type-var]
            async for each in news:
                async with self._news:
                    if isinstance(each, Synced):
                        self.synced += 1
                    elif each.entry is None:
                        del self.values[each.key]  # what is told as gone was told as there
                    else:
                        self.values[each.key] = each.entry.value
                    self._news.notify_all()


def test_a_watch_tells_what_is_there_then_what_changes(keys: Place, run: Run) -> None:
    """A-353: of its prefix only: new, changed, deleted, and new again."""

    async def scenario() -> None:
        async with keys.key_values() as store, keys.key_values() as other:
            bucket, elsewhere = store.bucket("watched"), other.bucket("watched")
            await bucket.put("workers/a", b"1")
            await bucket.put("others/a", b"1")
            follower = Follower(bucket, "workers/")
            await follower.until(lambda seen: seen.synced)
            assert follower.values == {"workers/a": b"1"}

            await elsewhere.put("workers/b", b"2")
            await elsewhere.put("others/b", b"2")
            await elsewhere.put("workers/a", b"3")
            await follower.until(lambda seen: seen.values == {"workers/a": b"3", "workers/b": b"2"})
            await elsewhere.delete("workers/a")
            await follower.until(lambda seen: seen.values == {"workers/b": b"2"})
            await elsewhere.create("workers/a", b"4")
            await follower.until(lambda seen: seen.values == {"workers/a": b"4", "workers/b": b"2"})
            assert follower.synced == 1
            await follower.close()

    run(scenario())


def test_a_watch_of_nothing_is_synced_too(keys: Place, run: Run) -> None:
    """A bucket that nobody has made yet has no keys."""

    async def scenario() -> None:
        async with keys.key_values() as store:
            follower = Follower(store.bucket("empty"))
            await follower.until(lambda seen: seen.synced)
            assert follower.values == {}
            await store.bucket("empty").put("first", b"")
            await follower.until(lambda seen: seen.values == {"first": b""})
            await follower.close()

    run(scenario())


def test_a_watch_tells_what_has_expired(keys: Place, run: Run) -> None:
    """Nobody deletes it; it must go all the same."""

    async def scenario() -> None:
        async with keys.key_values() as store:
            bucket = store.bucket("leases")
            await bucket.put("stays", b"x")
            follower = Follower(bucket)
            await follower.until(lambda seen: seen.synced)
            await bucket.put("goes", b"x", ttl_seconds=600.0)
            await follower.until(lambda seen: "goes" in seen.values)
            await bucket.put("goes", b"x", ttl_seconds=1.0)  # Only now: what comes and goes at once need not be told.
            await follower.until(lambda seen: seen.values == {"stays": b"x"})
            await follower.close()

    run(scenario())


def test_put_writes_whatever_is_there_and_entries_list_it(keys: Place, run: Run) -> None:
    """Revisions grow all the same."""

    async def scenario() -> None:
        async with keys.key_values() as store:
            bucket = store.bucket("plain")
            first = await bucket.put("a/one", b"1")
            second = await bucket.put("a/one", b"2")
            assert second > first
            third = await bucket.put("b/two", b"3")
            assert await bucket.entries() == {"a/one": Entry(b"2", second), "b/two": Entry(b"3", third)}
            assert await bucket.entries("a/") == {"a/one": Entry(b"2", second)}
            await bucket.delete("a/one")
            assert await bucket.entries("a/") == {}
            assert await bucket.put("a/one", b"4") > third

    run(scenario())


@pytest.mark.parametrize("seed", range(3))
def test_followers_of_many_writers_end_where_the_bucket_does(keys: Place, run: Run, seed: int) -> None:
    """Whatever the order of puts, creations, deletions and lifetimes."""

    async def scenario() -> None:
        choice = random.Random(seed)
        async with keys.key_values() as store, keys.key_values() as other:
            buckets = (store.bucket("busy"), other.bucket("busy"))
            followers = [Follower(bucket) for bucket in buckets]

            async def write(bucket: KeyValueBucket) -> None:
                for number in range(40):
                    key = f"key{choice.randrange(8)}"
                    match choice.randrange(4):
                        case 0:
                            await bucket.delete(key)
                        case 1:
                            await bucket.create(key, b"%d" % number)
                        case _:
                            await bucket.put(key, b"%d" % number)

            await asyncio.gather(*(write(bucket) for bucket in buckets for _ in range(2)))
            await buckets[0].put("last", b"")
            truth = {key: entry.value for key, entry in (await buckets[0].entries()).items()}
            for follower in followers:
                await follower.until(lambda seen: seen.values == truth)
                await follower.close()

    run(scenario())


SERVERS: dict[str, Callable[[Path], AbstractContextManager[Server]]] = {
    "nats": nats_server,
    "redis": redis_server,
    "etcd": etcd_server,
}


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A server of this test alone."""
    with SERVERS[request.param](tmp_path) as started:
        yield started


def url_of(server: Server) -> str:
    """A store on it."""
    assert isinstance(server, (EtcdServer, NatsServer, RedisServer))
    return f"{server.url}/0/test" if isinstance(server, RedisServer) else f"{server.url}/test"


async def persistently(act: Callable[[], object]) -> None:
    """Do something as soon as the server answers again."""
    while True:
        try:
            await act()  # type: ignore[misc]
        except StoreError:
            await asyncio.sleep(0.05)
        else:
            return


@pytest.mark.parametrize("keep_data", [True, False])
def test_a_watch_survives_its_server(server: Server, run: Run, keep_data: bool) -> None:
    """A-353: killed and started again, with its data or without: what is gone is told, and what is new."""

    async def scenario() -> None:
        async with open_key_value_store(url_of(server)) as store:
            bucket = store.bucket("watched")
            await bucket.put("before", b"1")
            follower = Follower(bucket)
            await follower.until(lambda seen: seen.synced)
            await asyncio.to_thread(server.restart, keep_data=keep_data)
            await persistently(lambda: bucket.put("after", b"2"))
            expected = {"after": b"2"} | ({"before": b"1"} if keep_data else {})
            await follower.until(lambda seen: seen.values == expected)
            await follower.close()

    run(scenario())


def test_who_only_reads_hears_that_everything_is_gone(server: Server, run: Run) -> None:
    """A-353: nobody writes to a server that has lost its data, and still it is known to be empty."""

    async def scenario() -> None:
        async with open_key_value_store(url_of(server)) as store, open_key_value_store(url_of(server)) as other:
            await other.bucket("watched").put("before", b"1")
            bucket = store.bucket("watched")
            follower = Follower(bucket)
            await follower.until(lambda seen: seen.values == {"before": b"1"})
            await asyncio.to_thread(server.restart, keep_data=False)
            await follower.until(lambda seen: seen.values == {})
            await persistently(bucket.entries)
            assert await bucket.entries() == {}
            await follower.close()

    run(scenario())


def test_a_watch_outlives_a_frozen_server(server: Server, run: Run) -> None:
    """Stopped where it is for a moment, and going on as if nothing had been."""

    async def scenario() -> None:
        async with open_key_value_store(url_of(server)) as store:
            bucket = store.bucket("watched")
            follower = Follower(bucket)
            await follower.until(lambda seen: seen.synced)
            server.pause()
            await asyncio.sleep(1.0)
            server.resume()
            await persistently(lambda: bucket.put("after", b"2"))
            await follower.until(lambda seen: seen.values == {"after": b"2"})
            await follower.close()

    run(scenario())


def test_only_what_is_new_is_told() -> None:
    """The pure half: a state is told as its difference, what is gone first."""
    known = KnownKeys()
    assert known.reconcile({"a": Entry(b"1", 1)}) == [Change("a", Entry(b"1", 1))]
    assert known.reconcile({"a": Entry(b"1", 1)}) == []
    assert known.reconcile({"b": Entry(b"2", 2)}) == [Change("a", None), Change("b", Entry(b"2", 2))]
    assert known.note("b", Entry(b"2", 2)) is None
    assert known.note("b", None) == Change("b", None)
    assert known.note("b", None) is None


def test_a_revision_that_is_given_once_more_is_news() -> None:
    """A-353: a server that lost its data counts anew; the same number may stand for another value then."""
    known = KnownKeys()
    known.reconcile({"a": Entry(b"before", 1)})

    assert known.reconcile({"a": Entry(b"after", 1)}) == [Change("a", Entry(b"after", 1))]
    assert known.note("a", Entry(b"after", 1)) is None


def test_an_error_that_will_not_pass_ends_the_watch(run: Run) -> None:
    """A damaged value does not mend itself; whoever follows is told."""

    async def scenario() -> None:
        class Broken:
            async def __aenter__(self) -> Followed:
                raise StoreError("damaged", reason="corrupt")

            async def __aexit__(self, *_: object) -> None: ...

        with pytest.raises(StoreError, match="damaged"):
            await anext(watched(Broken))

    run(scenario())
