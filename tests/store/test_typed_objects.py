"""What objects are made of: values with a schema, files, and buckets that are kept small (A-341, A-342, A-343)."""

import asyncio
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kvrouter.errors import StoreError
from kvrouter.store import open_object_store
from kvrouter.store.redis_connection import connect
from kvrouter.store.transfers import clean_bucket, download, upload
from kvrouter.store.typed_objects import Schema, get_typed, put_typed
from tests.servers import NatsServer, RedisServer
from tests.store.backends import Backend, MemoryBackend, NatsBackend, RedisBackend
from tests.store.conftest import Run
from tests.store.test_objects import MIB, content

Blocks = tuple[str, list[int]]

FIRST: Schema[Blocks] = Schema(
    name="blocks", version=1, dump=lambda value: value[1], load={1: lambda found: ("unnamed", list(found))}
)
SECOND: Schema[Blocks] = Schema(
    name="blocks",
    version=2,
    dump=lambda value: {"owner": value[0], "blocks": value[1]},
    load={**FIRST.load, 2: lambda found: (found["owner"], list(found["blocks"]))},
)


def test_a_value_comes_back_with_its_type(backend: Backend, run: Run) -> None:
    """A-342: msgpack, with schema and version beside it, where others can see them."""

    async def scenario() -> None:
        async with backend.objects() as store:
            info = await put_typed(store, "bucket", "name", ("a", [1, 2**63]), SECOND, meta={"by": "me"})

            assert await get_typed(store, "bucket", "name", SECOND) == ("a", [1, 2**63])
            assert info.meta == {"by": "me", "schema": "blocks", "schema-version": "2"}

    run(scenario())


def test_older_versions_are_converted_and_newer_ones_refused(run: Run) -> None:
    """A-342: who reads tells apart what it cannot know from what is damaged."""

    async def scenario() -> None:
        async with MemoryBackend().objects() as store:
            await put_typed(store, "bucket", "old", ("a", [1]), FIRST)
            await put_typed(store, "bucket", "new", ("a", [1]), SECOND)
            await store.put("bucket", "other", b"\x90")
            await store.put("bucket", "damaged", b"\x01", meta={"schema": "blocks", "schema-version": "2"})

            assert await get_typed(store, "bucket", "old", SECOND) == ("unnamed", [1])
            for name, schema, reason in [
                ("new", FIRST, "unsupported"),
                ("other", FIRST, "unsupported"),
                ("damaged", SECOND, "corrupt"),
                ("absent", SECOND, "missing"),
            ]:
                with pytest.raises(StoreError) as raised:
                    await get_typed(store, "bucket", name, schema)
                assert raised.value.reason == reason
            with pytest.raises(StoreError, match="blocks") as raised:
                await put_typed(store, "bucket", "name", ("a", [2**64]), SECOND)
            assert raised.value.reason == "unsupported"

    run(scenario())


def test_files_are_uploaded_and_downloaded(backend: Backend, run: Run, tmp_path: Path) -> None:
    """A-341: a file that is there already stays as it was unless all of the object has arrived."""
    here, there = tmp_path / "here", tmp_path / "folder" / "there"
    here.write_bytes(content(3 * MIB + 1))

    async def scenario() -> None:
        async with backend.objects() as store:
            info = await upload(store, "bucket", "name", here, meta={"kind": "model"})
            assert await download(store, "bucket", "name", there) == info
            assert there.read_bytes() == here.read_bytes()

            await backend.flip_byte("bucket", "name")
            with pytest.raises(StoreError, match="damaged"):
                await download(store, "bucket", "name", there)
            with pytest.raises(StoreError, match="no object"):
                await download(store, "bucket", "absent", there)
            with pytest.raises(StoreError, match="file system"):
                await upload(store, "bucket", "name", tmp_path / "absent")
            assert there.read_bytes() == here.read_bytes()
            assert [path.name for path in there.parent.iterdir()] == ["there"]

    run(scenario())


def test_reading_and_writing_take_little_memory(run: Run, tmp_path: Path) -> None:
    """A-341: whatever an object's length, some pieces of it are in memory."""
    pieces = 48

    async def written() -> AsyncIterator[bytes]:
        for number in range(pieces):
            yield bytes([number]) * MIB

    async def scenario() -> None:
        async with open_object_store(tmp_path.as_uri()) as store:
            tracemalloc.start()
            try:
                await store.put("bucket", "name", written())
                length = 0
                async with store.read("bucket", "name") as (info, found):
                    async for piece in found:
                        length += len(piece)
                _, most = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert length == info.size == pieces * MIB
            assert most < 12 * MIB

    run(scenario())


def test_a_bucket_is_cleaned_by_age_and_by_size(backend: Backend, run: Run) -> None:
    """A-343: what is too old goes, then the oldest until the rest is small enough."""

    async def scenario() -> None:
        async with backend.objects() as store:
            infos = []
            for number in range(5):
                infos.append(await store.put("bucket", f"object-{number}", bytes(100)))
                await asyncio.sleep(0.002)  # Times have milliseconds.
            now = infos[-1].modified

            assert await clean_bucket(store, "bucket", now=now, age_seconds_max=3600.0, bytes_max=500) == []
            assert await clean_bucket(store, "bucket", now=now, bytes_max=399) == ["object-0", "object-1"]
            age = now - infos[3].modified
            assert await clean_bucket(store, "bucket", now=now, age_seconds_max=age + 0.0005) == ["object-2"]
            assert await store.list("bucket") == ["object-3", "object-4"]
            assert await clean_bucket(store, "bucket", now=now + 3600.0, age_seconds_max=1.0) == [
                "object-3",
                "object-4",
            ]
            assert await clean_bucket(store, "unknown", now=now, bytes_max=0) == []

    run(scenario())


def test_buckets_are_made_listed_and_deleted(backend: Backend, run: Run) -> None:
    """A-343: an empty one is there too; one that was deleted is not."""

    async def scenario() -> None:
        async with backend.objects() as store, backend.objects() as other:
            assert await store.buckets() == []
            await store.create_bucket("empty")
            await store.put("full", "name", b"data")
            await store.create_bucket("full")

            assert await other.buckets() == ["empty", "full"]
            assert await other.get("full", "name") == b"data"
            await other.delete_bucket("full")
            assert await store.buckets() == ["empty"]
            assert await store.list("empty") == []

    run(scenario())


def test_a_bucket_is_listed_before_its_first_object_is_there(redis: RedisServer, run: Run) -> None:
    """A-343: a writer that ends between the two on Redis leaves an empty bucket, not a hidden one."""
    backend = RedisBackend(redis)
    writer = backend.url.replace("//", "//writer:secret@")

    async def scenario() -> None:
        admin = connect(redis.url)
        await admin.command("ACL", "SETUSER", "writer", "on", ">secret", "~*", "+@all", "-eval")
        await admin.close()
        async with backend.objects() as store, open_object_store(writer) as writing:
            with pytest.raises(StoreError, match="NoPermission"):
                await writing.put("bucket", "name", b"data")
            assert await store.buckets() == ["bucket"]
            assert await store.list("bucket") == []

    run(scenario())


def test_stores_on_nats_whose_prefixes_begin_alike_are_apart(nats: NatsServer, run: Run) -> None:
    """A-343: neither sees or changes a bucket of the other, though `c` of `a-b` has the name of `b-c` of `a`."""
    url = NatsBackend(nats).url

    async def scenario() -> None:
        async with open_object_store(url) as one, open_object_store(f"{url}-b") as other:
            await one.put("mine", "name", b"one")
            await other.put("c", "name", b"other")
            assert (await one.buckets(), await other.buckets()) == (["mine"], ["c"])
            for change in (one.put("b-c", "name", b"mixed"), one.create_bucket("b-c"), one.delete_bucket("b-c")):
                with pytest.raises(StoreError, match="another store") as refused:
                    await change
                assert refused.value.reason == "bad_name"
            assert await other.get("c", "name") == b"other"

    run(scenario())


def test_what_is_replaced_while_it_is_read_is_never_mixed(backend: Backend, run: Run) -> None:
    """A-341: the reader gets the old object to its end, or is told to begin anew."""
    old, new = content(4 * MIB, 1), content(4 * MIB, 2)

    async def scenario() -> None:
        async with backend.objects() as store, backend.objects() as other:
            await store.put("bucket", "name", old)
            async with store.read("bucket", "name") as (info, pieces):
                found = await anext(pieces)
                await other.put("bucket", "name", new)
                reason = "whole"
                try:
                    async for piece in pieces:
                        found += piece
                except StoreError as error:
                    reason = error.reason
            assert info.size == len(old)
            assert (reason, found) == ("whole", old) or (reason == "unavailable" and old.startswith(found))
            assert await store.get("bucket", "name") == new

    run(scenario())
