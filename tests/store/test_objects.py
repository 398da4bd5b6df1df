"""One contract for every object store, against real directories and real servers."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import pytest

from kvrouter.errors import SettingsError, StoreError
from kvrouter.store import Entry, open_key_value_store, open_object_store
from tests.servers import NatsServer, RedisServer
from tests.store.backends import Backend, LocalBackend, NatsBackend
from tests.store.conftest import Run

Result = TypeVar("Result")

MIB = 1 << 20
SIZES = [0, 1, (128 << 10) - 1, 128 << 10, (128 << 10) + 1, 512 << 10, MIB, 5 * MIB + 3]
HOSTILE = [
    "", ".", "..", "../escape", "a/../../b", "/absolute", "a//b", "a/", ".hidden", "a/.hidden", "a.", "a..b",
    "nul\0", "a\nb", "space here", "ünï", "a*b", "a>b", "a%b", "a\\b", "x" * 201,
]  # fmt: skip


def content(size: int, seed: int = 1) -> bytes:
    """Bytes that repeat nowhere near each other."""
    return hashlib.shake_128(seed.to_bytes(4)).digest(size)


@pytest.mark.parametrize("size", SIZES)
def test_an_object_comes_back_as_it_went_in(backend: Backend, run: Run, size: int) -> None:
    """A-301, A-306, A-390: at every length around the bounds of pieces; another process finds it too."""

    async def scenario() -> None:
        data = content(size)
        async with backend.objects() as store, backend.objects() as other:
            info = await store.put("bucket", "name", data, meta={"schema": "1"})

            assert await other.get("bucket", "name") == data
            assert await other.stat("bucket", "name") == info
            assert (info.size, info.digest) == (size, hashlib.sha256(data).hexdigest())
            assert info.meta == {"schema": "1"}

    run(scenario())


def test_an_object_may_come_in_pieces_of_any_size(backend: Backend, run: Run) -> None:
    """A snapshot is written as it is made; how it was cut does not matter."""
    data = content(3 * MIB + 7)
    cuts = [0, 0, 1, 130_000, 130_001, 2 * MIB, len(data)]

    async def stream() -> AsyncIterator[bytes]:
        for start, end in pairwise(cuts):
            yield data[start:end]

    async def scenario() -> None:
        async with backend.objects() as store:
            info = await store.put("bucket", "name", stream())

            assert info.size == len(data)
            assert await store.get("bucket", "name") == data

    run(scenario())


def test_a_reader_sees_the_old_object_or_the_new_one(backend: Backend, run: Run) -> None:
    """Never half of one, and never an error, while somebody replaces it again and again."""
    versions = [content(700_000 + 1000 * seed, seed) for seed in range(12)]

    async def scenario() -> None:
        async with backend.objects() as writer, backend.objects() as reader:
            await writer.put("bucket", "name", versions[0])
            seen = []

            async def read() -> None:
                while True:
                    seen.append(versions.index(await reader.get("bucket", "name")))

            reading = asyncio.create_task(read())
            for version in versions[1:]:
                await writer.put("bucket", "name", version)
            await asyncio.sleep(0)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

            assert reading.cancelled(), "the reader failed"
            assert seen == sorted(seen)
            assert await reader.get("bucket", "name") == versions[-1]
            assert await backend.leftovers("bucket") == 0

    run(scenario())


def test_of_two_writers_one_wins_wholly(backend: Backend, run: Run) -> None:
    """Their pieces never mix, and the other's are not left behind."""
    versions = [content(300_000, seed) for seed in range(6)]

    async def scenario() -> None:
        async with backend.objects() as first, backend.objects() as second:
            for _ in range(3):
                puts = [
                    store.put("bucket", "name", version)
                    for store, version in zip([first, second] * 3, versions, strict=True)
                ]
                await asyncio.gather(*puts)

                assert await first.get("bucket", "name") in versions
            assert await backend.leftovers("bucket") == 0

    run(scenario())


def test_a_writer_that_dies_between_pieces_changes_nothing(backend: Backend, run: Run) -> None:
    """The old object stays, under its name and in the listing."""

    async def dies() -> AsyncIterator[bytes]:
        yield content(MIB)
        raise ConnectionAbortedError("the source is gone")

    async def scenario() -> None:
        async with backend.objects() as store:
            await store.put("bucket", "name", b"old")
            for name in ("name", "other"):
                with pytest.raises((ConnectionAbortedError, StoreError)):
                    await store.put("bucket", name, dies())

            assert await store.get("bucket", "name") == b"old"
            assert await store.list("bucket") == ["name"]
            assert await backend.leftovers("bucket") == 0

    run(scenario())


def test_a_writer_that_is_cancelled_changes_nothing(backend: Backend, run: Run) -> None:
    """A router that stops does not wait for its snapshot."""
    started = asyncio.Event()

    async def stalls() -> AsyncIterator[bytes]:
        yield content(MIB)
        started.set()
        await asyncio.sleep(3600)

    async def scenario() -> None:
        async with backend.objects() as store:
            await store.put("bucket", "name", b"old")
            putting = asyncio.create_task(store.put("bucket", "name", stalls()))
            await started.wait()
            putting.cancel()
            await asyncio.gather(putting, return_exceptions=True)

            assert putting.cancelled()
            assert await store.get("bucket", "name") == b"old"
            assert await backend.leftovers("bucket") == 0

    run(scenario())


@pytest.mark.parametrize("damage", ["flip_byte", "lose_piece"])
def test_damaged_bytes_are_never_returned(backend: Backend, run: Run, damage: str) -> None:
    """Whatever happened to them; and a damaged object can be replaced and removed."""

    async def scenario() -> None:
        async with backend.objects() as store:
            await store.put("bucket", "name", content(MIB))
            await getattr(backend, damage)("bucket", "name")

            with pytest.raises(StoreError, match="damaged") as raised:
                await store.get("bucket", "name")
            assert raised.value.reason == "corrupt"
            assert await store.list("bucket") == ["name"]

            await store.put("bucket", "name", b"sound again")
            assert await store.get("bucket", "name") == b"sound again"
            assert await store.delete("bucket", "name")

    run(scenario())


def test_what_is_missing_is_told_apart_from_what_is_empty(backend: Backend, run: Run) -> None:
    """An empty object is there; a missing one, or a bucket that never was, is not."""

    async def scenario() -> None:
        async with backend.objects() as store:
            assert await store.stat("bucket", "name") is None
            assert await store.list("bucket") == []
            assert not await store.delete("bucket", "name")
            await store.delete_bucket("bucket")
            await store.put("bucket", "empty", b"")

            assert await store.get("bucket", "empty") == b""
            with pytest.raises(StoreError, match="no object") as raised:
                await store.get("bucket", "name")
            assert raised.value.reason == "missing"

    run(scenario())


def test_deleted_objects_are_gone_and_others_stay(backend: Backend, run: Run) -> None:
    """By name or by bucket; a bucket that was deleted can be used again."""

    async def scenario() -> None:
        async with backend.objects() as store:
            names = ["a", "a-b", "a/b", "a.b", "b/c/d"]
            for name in names:
                await store.put("bucket", name, name.encode())
            await store.put("other", "a", b"other")
            assert await store.list("bucket") == sorted(names)

            assert await store.delete("bucket", "a/b")
            assert not await store.delete("bucket", "a/b")
            assert await store.list("bucket") == sorted(set(names) - {"a/b"})
            assert await store.get("bucket", "a.b") == b"a.b"

            await store.delete_bucket("bucket")
            assert await store.list("bucket") == []
            assert await store.stat("bucket", "a") is None
            assert await store.get("other", "a") == b"other"
            await store.put("bucket", "a", b"again")
            assert await store.get("bucket", "a") == b"again"

    run(scenario())


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_hostile_names_are_refused(backend: Backend, run: Run, name: str) -> None:
    """By every method, before anything is touched, on every backend alike."""

    async def scenario() -> None:
        async with backend.objects() as store:
            calls = [
                store.put("bucket", name, b""),
                store.get("bucket", name),
                store.stat("bucket", name),
                store.delete("bucket", name),
                store.put(name, "name", b""),
                store.list(name),
                store.delete_bucket(name),
            ]
            for call in calls:
                with pytest.raises(StoreError, match="may not be called") as raised:
                    await call
                assert raised.value.reason == "bad_name"

    run(scenario())


def test_the_longest_names_are_taken(backend: Backend, run: Run) -> None:
    """The bound is one that every backend can hold."""

    async def scenario() -> None:
        async with backend.objects() as store:
            bucket, name = "b" * 64, "/".join(["n" * 9] * 20)
            await store.put(bucket, name, b"data")

            assert await store.get(bucket, name) == b"data"

    run(scenario())


def test_an_object_beyond_the_bound_is_refused(backend: Backend, run: Run) -> None:
    """And what was there stays."""

    async def scenario() -> None:
        async with backend.objects() as store:
            store._object_bytes_max = MIB  # type: ignore[attr-defined]
            await store.put("bucket", "name", content(MIB))
            with pytest.raises(StoreError, match="exceeds") as raised:
                await store.put("bucket", "name", content(MIB + 1))

            assert raised.value.reason == "too_large"
            assert (await store.get("bucket", "name")) == content(MIB)
            with pytest.raises(StoreError, match="meta data") as raised:
                await store.put("bucket", "name", b"", meta={"key": "x" * (64 << 10)})
            assert raised.value.reason == "too_large"

    run(scenario())


@pytest.mark.parametrize("url", ["nats://127.0.0.1:1/prefix", "redis://:secret@127.0.0.1:1/0/prefix"])
def test_a_server_that_does_not_answer_is_told_without_its_password(
    url: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller may try again later; a log may show the text."""
    monkeypatch.setattr("kvrouter.store.nats_connection._CONNECT_SECONDS", 0.3)

    async def scenario() -> None:
        async with open_object_store(url) as store:
            with pytest.raises(StoreError) as raised:
                await store.get("bucket", "name")

            assert raised.value.reason == "unavailable"
            assert "secret" not in str(raised.value)

    run(scenario())


@pytest.mark.parametrize("where", ["file", "file/below", "dangling"])
def test_what_is_no_directory_is_no_store(where: str, tmp_path: Path) -> None:
    """Told when it is opened, for objects and small values: a server would begin, and refuse everything later."""
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "dangling").symlink_to(tmp_path / "absent")
    for open_store in (open_object_store, open_key_value_store):
        with pytest.raises(SettingsError, match="is not a directory"):
            open_store(str(tmp_path / where))
        open_store(str(tmp_path / "absent" / "below"))


@pytest.mark.parametrize(
    "url",
    ["", "s3://bucket", "nats://host", "nats://host/a/b", "redis://host/prefix", "redis://host/0", "redis://u:secret@host/x/y",
     "file://host/path", "file:relative", "nats://:4222/p", "redis://host:99999/0/p", "redis://host/0/p?x=1"],
)  # fmt: skip
def test_other_urls_are_refused_without_their_password(url: str) -> None:
    """One line that says what a store's URL looks like."""
    with pytest.raises(SettingsError, match="must look like") as raised:
        open_object_store(url)

    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("kind", ["nats", "redis"])
def test_a_store_survives_its_server(kind: str, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed, it is unavailable; back with its data, it is as it was; back without, everything is missing."""
    monkeypatch.setattr("kvrouter.store.nats_connection.ANSWER_SECONDS", 2.0)  # What a dead socket swallows.

    async def scenario() -> None:
        server: NatsServer | RedisServer
        server = NatsServer(tmp_path) if kind == "nats" else RedisServer(tmp_path, "--appendfsync", "always")
        url = f"{server.url}/prefix" if kind == "nats" else f"{server.url}/0/prefix"
        try:
            server.start()
            async with open_object_store(url) as store, open_key_value_store(url) as keys:
                bucket = keys.bucket("pointers")
                await store.put("bucket", "name", b"data")
                revision = await bucket.create("current", b"value")
                assert isinstance(revision, int)
                server.restart()
                assert await eventually(lambda: store.get("bucket", "name")) == b"data"
                assert await eventually(lambda: bucket.get("current")) == Entry(b"value", revision)

                server.restart(keep_data=False)
                assert await eventually(lambda: store.list("bucket")) == []
                assert await eventually(lambda: bucket.get("current")) is None
                assert isinstance(await eventually(lambda: bucket.create("current", b"new")), int)
                await eventually(lambda: store.put("bucket", "name", b"again"))
                assert await store.get("bucket", "name") == b"again"
        finally:
            server.stop()

    run(scenario())


async def eventually(attempt: Callable[[], Awaitable[Result]]) -> Result:
    """Try again as long as the server is unavailable."""
    deadline = time.monotonic() + 60.0
    while True:
        try:
            return await attempt()
        except StoreError as error:
            if error.reason != "unavailable" or time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("kind", ["local", "nats"])
def test_what_dead_writers_left_is_removed_after_a_while(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the next one that writes into the bucket; what is young may still be written. On Redis it expires."""
    backend: LocalBackend | NatsBackend
    backend = LocalBackend(tmp_path) if kind == "local" else NatsBackend(request.getfixturevalue("nats"))

    async def scenario() -> None:
        async with backend.objects() as store:
            await store.put("bucket", "name", b"data")
            await backend.leave_behind("bucket")
            await store.put("bucket", "name", b"data")
            assert await backend.leftovers("bucket") == 1

            monkeypatch.setattr("kvrouter.store.files._ABANDONED_SECONDS", -1.0)
            monkeypatch.setattr("kvrouter.store.nats_stream._ABANDONED_SECONDS", -1.0)
            await store.put("bucket", "name", b"data")
            assert await backend.leftovers("bucket") == 0
            assert await store.list("bucket") == ["name"]
            assert await store.get("bucket", "name") == b"data"

    run(scenario())
