"""The places where a store can keep things, each with a way to damage what it keeps behind the store's back."""

import asyncio
import base64
import json
import secrets
import shutil
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import nats
from redis.asyncio import Redis

from kvrouter.store import KeyValueStore, ObjectStore, open_key_value_store, open_object_store
from kvrouter.store.memory_keys import MemoryKeyValueStore
from kvrouter.store.memory_objects import MemoryObjectStore
from tests.servers import EtcdServer, NatsServer, RedisServer, Server, greets, nats_server, redis_server

__all__ = [
    "Backend",
    "EtcdBackend",
    "HttpBackend",
    "LocalBackend",
    "MemoryBackend",
    "NatsBackend",
    "ObjectServer",
    "Place",
    "RedisBackend",
    "mortal_server",
    "queue_url",
]

WAIT_SECONDS = 60.0


class Place:
    """One place; `url` means it, and stores are opened on it as often as one likes."""

    url: str

    def objects(self) -> ObjectStore:
        """Another store of objects, as another process would open it."""
        return open_object_store(self.url)

    def key_values(self) -> KeyValueStore:
        """Another store of small values."""
        return open_key_value_store(self.url)


class Backend(Place, ABC):
    """A place for objects."""

    @abstractmethod
    async def flip_byte(self, bucket: str, name: str) -> None:
        """Change one byte in the middle of an object's data."""

    @abstractmethod
    async def lose_piece(self, bucket: str, name: str) -> None:
        """Lose part of an object's data."""

    @abstractmethod
    async def leftovers(self, bucket: str) -> int:
        """Count what is stored of objects that no name means."""


class LocalBackend(Backend):
    """A directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / secrets.token_hex(4)
        self.url = self.folder.as_uri()

    def file(self, bucket: str, name: str) -> Path:
        """The file of an object."""
        return self.folder / bucket / name.replace("/", "%")

    async def flip_byte(self, bucket: str, name: str) -> None:
        content = bytearray(self.file(bucket, name).read_bytes())
        content[len(content) // 3] ^= 1
        self.file(bucket, name).write_bytes(content)

    async def lose_piece(self, bucket: str, name: str) -> None:
        content = self.file(bucket, name).read_bytes()
        self.file(bucket, name).write_bytes(content[: len(content) // 2])

    async def lose_middle(self, bucket: str, name: str) -> None:
        """Change a byte as late in an object's data as a reader's second piece."""
        content = bytearray(self.file(bucket, name).read_bytes())
        content[len(content) // 2] ^= 1
        self.file(bucket, name).write_bytes(content)

    async def leftovers(self, bucket: str) -> int:
        return len(list((self.folder / bucket).glob(".half-*")))

    async def leave_behind(self, bucket: str) -> None:
        """Leave what a writer leaves that dies."""
        (self.folder / bucket / ".half-0123").write_bytes(b"half")


class ObjectServer(Server):
    """`kvrouter objects` over a directory; `options` are added to its command line."""

    def __init__(self, folder: Path, *options: str, secure: bool = False) -> None:
        super().__init__(folder)
        self._options, self._secure = options, secure

    @property
    def url(self) -> str:
        return f"{'https' if self._secure else 'http'}://:key@127.0.0.1:{self.port}"

    def _command(self) -> list[str]:
        where = ["--port", str(self.port), "--api-key", "key", *self._options]
        return [sys.executable, "-m", "kvrouter", "objects", str(self.data), *where]

    def _answers(self) -> bool:
        if self._secure:
            return b"objects are served" in self.log.read_bytes()
        return greets(self.port, b"GET /livez HTTP/1.0\r\n\r\n", b"200 OK")


class HttpBackend(LocalBackend):
    """The directory of an object server, which was emptied."""

    def __init__(self, server: ObjectServer) -> None:
        self.folder, self.url = server.data, server.url
        for bucket in self.folder.iterdir():
            shutil.rmtree(bucket)

    async def leftovers(self, bucket: str) -> int:
        """The server hears a moment later that a writer has gone."""
        deadline = time.monotonic() + WAIT_SECONDS
        while (left := await super().leftovers(bucket)) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        return left


class MemoryBackend(Backend):
    """The memory of this process: whoever opens it has the same store."""

    def __init__(self) -> None:
        self._objects, self._key_values = MemoryObjectStore(), MemoryKeyValueStore()

    def objects(self) -> ObjectStore:
        return self._objects

    def key_values(self) -> KeyValueStore:
        return self._key_values

    async def flip_byte(self, bucket: str, name: str) -> None:
        info, content = self._objects._buckets[bucket][name]
        self._objects._buckets[bucket][name] = info, b"X" + content[1:]

    async def lose_piece(self, bucket: str, name: str) -> None:
        info, content = self._objects._buckets[bucket][name]
        self._objects._buckets[bucket][name] = info, content[: len(content) // 2]

    async def leftovers(self, bucket: str) -> int:
        return 0


class NatsBackend(Backend):
    """A prefix on a nats-server."""

    def __init__(self, server: NatsServer) -> None:
        self.server, self.prefix = server, f"test{secrets.token_hex(4)}"
        self.url = f"{server.url}/{self.prefix}"

    async def flip_byte(self, bucket: str, name: str) -> None:
        await self._rewrite(bucket, name, lose=False)

    async def lose_piece(self, bucket: str, name: str) -> None:
        await self._rewrite(bucket, name, lose=True)

    async def leftovers(self, bucket: str) -> int:
        client = await nats.connect(self.server.url)
        stream = f"OBJ_{self.prefix}-{bucket}"
        jetstream = client.jetstream()
        chunks = await jetstream.stream_info(stream, subjects_filter=f"$O.{self.prefix}-{bucket}.C.>")
        named = set()
        records = await jetstream.stream_info(stream, subjects_filter=f"$O.{self.prefix}-{bucket}.M.>")
        for subject in records.state.subjects or ():
            message = await jetstream.get_last_msg(stream, subject)
            named.add(json.loads(message.data or b"{}")["nuid"])
        await client.close()
        return sum(subject.rpartition(".")[2] not in named for subject in chunks.state.subjects or ())

    async def leave_behind(self, bucket: str) -> None:
        """Leave what a writer leaves that dies."""
        client = await nats.connect(self.server.url)
        await client.jetstream().publish(f"$O.{self.prefix}-{bucket}.C.NOBODY", b"half")
        await client.close()

    async def _rewrite(self, bucket: str, name: str, *, lose: bool) -> None:
        client = await nats.connect(self.server.url)
        jetstream, full = client.jetstream(), f"{self.prefix}-{bucket}"
        record = f"$O.{full}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"
        version = json.loads((await jetstream.get_last_msg(f"OBJ_{full}", record)).data or b"")["nuid"]
        chunk = bytearray((await jetstream.get_last_msg(f"OBJ_{full}", f"$O.{full}.C.{version}")).data or b"")
        chunk[len(chunk) // 2] ^= 1
        await jetstream.purge_stream(f"OBJ_{full}", subject=f"$O.{full}.C.{version}")
        if not lose:
            await jetstream.publish(f"$O.{full}.C.{version}", bytes(chunk))
        await client.close()


class RedisBackend(Backend):
    """A prefix on a redis-server."""

    def __init__(self, server: RedisServer) -> None:
        self.server, self.prefix = server, f"test{secrets.token_hex(4)}"
        self.url = f"{server.url}/0/{self.prefix}"

    async def flip_byte(self, bucket: str, name: str) -> None:
        async with Redis.from_url(self.server.url) as redis:
            key = await self._chunks(redis, bucket, name)
            chunk = bytearray(as_bytes(await redis.hget(key, "1")))
            chunk[len(chunk) // 2] ^= 1
            await redis.hset(key, "1", bytes(chunk))

    async def lose_piece(self, bucket: str, name: str) -> None:
        async with Redis.from_url(self.server.url) as redis:
            await redis.hdel(await self._chunks(redis, bucket, name), "1")

    async def leftovers(self, bucket: str) -> int:
        """Count what will never expire."""
        async with Redis.from_url(self.server.url) as redis:
            tag = f"{{{self.prefix}:{bucket}}}"
            records = await redis.hvals(f"{tag}:objects")
            named = {f"{tag}:chunks:{as_bytes(record)[:32].decode()}" for record in records}
            keys = [as_bytes(key).decode() async for key in redis.scan_iter(f"{tag}:chunks:*")]
            return sum([key not in named and await redis.ttl(key) < 0 for key in keys])

    async def _chunks(self, redis: "Redis", bucket: str, name: str) -> str:
        tag = f"{{{self.prefix}:{bucket}}}"
        record = as_bytes(await redis.hget(f"{tag}:objects", name))
        return f"{tag}:chunks:{record[:32].decode()}"


@contextmanager
def mortal_server(kind: str, folder: Path) -> Iterator[Server]:
    """A server with queues of one test alone, which may kill it; `kind` is `nats` or `redis`."""
    running: AbstractContextManager[NatsServer | RedisServer]
    running = nats_server(folder) if kind == "nats" else redis_server(folder)
    with running as started:
        yield started


def queue_url(server: Server) -> str:
    """A URL for queues on a server, where there are none yet."""
    prefix = f"test{secrets.token_hex(4)}"
    return f"{server.url}/{prefix}" if isinstance(server, NatsServer) else f"{server.url}/0/{prefix}"


class EtcdBackend(Place):
    """A prefix on an etcd; small values only."""

    def __init__(self, server: EtcdServer) -> None:
        self.server = server
        self.url = f"{server.url}/test{secrets.token_hex(4)}"


def as_bytes(value: bytes | str | None) -> bytes:
    """What a client without decoding returns is bytes."""
    assert isinstance(value, bytes)
    return value
