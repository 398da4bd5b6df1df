"""Shares and the store that they are in, without a gateway around them (A-428)."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from kvrouter.gateway.cutover import BUCKET, Cutover, Shares
from kvrouter.gateway.route_table import parse_routes
from kvrouter.store.key_values import Change, Entry, KeyValueBucket, Synced
from kvrouter.store.memory_keys import MemoryKeyValueStore

ROW = {"path": "/a", "subject": "s", "request": "R", "response": "R", "legacy": "http://old", "repeatable": True}
TABLE = parse_routes({"routes": [ROW | {"cutover": 0.25}]}, "test")
KEY = "cutover/a"


class LateNews:
    """A bucket whose watch tells when it is told to, and not only what is true any more."""

    def __init__(self) -> None:
        self.news: asyncio.Queue[Change | Synced] = asyncio.Queue()
        self._bucket = MemoryKeyValueStore().bucket(BUCKET)

    def lose_data(self) -> None:
        """Begin anew."""
        self._bucket = MemoryKeyValueStore().bucket(BUCKET)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bucket, name)

    async def watch(self, _: str = "") -> AsyncIterator[Change | Synced]:
        while True:
            yield await self.news.get()
            self.news.task_done()


def test_what_was_set_here_is_not_undone_by_older_news() -> None:
    """A watch may lag: neither an older value nor that the key was gone for a while takes a newer share back."""

    async def scenario() -> None:
        bucket = LateNews()
        old = await bucket.put(KEY, b'{"nats": 0.75}')
        cutover = Cutover(TABLE, as_bucket(bucket))
        following = asyncio.ensure_future(cutover.run())
        await cutover.change("a", {"nats": 0.5})

        for news in (Change(KEY, Entry(b'{"nats": 0.75}', old)), Change(KEY, None), Synced()):
            bucket.news.put_nowait(news)
        await cutover.synced.wait()

        assert cutover.shares() == {"a": Shares(0.5, 0.0)}
        following.cancel()

    asyncio.run(scenario())


def test_what_is_gone_from_the_store_is_as_the_table_says() -> None:
    """Somebody went back."""

    async def scenario() -> None:
        bucket = LateNews()
        cutover = Cutover(TABLE, as_bucket(bucket))
        following = asyncio.ensure_future(cutover.run())
        await cutover.change("a", {"nats": 1, "shadow": 0.5})
        assert cutover.shares() == {"a": Shares(1.0, 0.5)}
        await bucket.delete(KEY)

        for news in (Change(KEY, None), Synced()):
            bucket.news.put_nowait(news)
        await cutover.synced.wait()

        assert cutover.shares() == {"a": Shares(0.25, 0.0)}
        following.cancel()

    asyncio.run(scenario())


def test_a_store_that_lost_its_data_is_believed_again() -> None:
    """A-428: it counts anew, so the share that another gateway sets has a smaller revision than those before."""

    async def scenario() -> None:
        bucket = LateNews()
        for share in (b"0.1", b"0.2", b"0.5"):
            revision = await bucket.put(KEY, b'{"nats": %s}' % share)
        cutover = Cutover(TABLE, as_bucket(bucket))
        following = asyncio.ensure_future(cutover.run())
        bucket.news.put_nowait(Change(KEY, Entry(b'{"nats": 0.5}', revision)))
        bucket.lose_data()
        first = await bucket.put(KEY, b'{"nats": 0.75}')
        bucket.news.put_nowait(Change(KEY, Entry(b'{"nats": 0.75}', first)))
        bucket.news.put_nowait(Synced())
        await cutover.synced.wait()

        assert first < revision
        assert cutover.shares() == {"a": Shares(0.75, 0.0)}
        following.cancel()

    asyncio.run(scenario())


def as_bucket(bucket: Any) -> KeyValueBucket:
    """It has what is asked of one."""
    found: KeyValueBucket = bucket
    return found
