"""Objects on Redis, in chunks.

An object's chunks are a hash of their own, named by a random number; a bucket's index says which one an object's name
means. Writers fill a hash that nobody knows and then change the index in one step, so that readers see one object or
the other. A hash that is being filled expires unless it is finished; one that was replaced stays for the readers that
are in the middle of it. Keys of a bucket share a hash tag, so that a Redis cluster keeps them together.
"""

import contextlib
import secrets
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from typing import Self, cast

import msgpack

from kvrouter.errors import StoreError
from kvrouter.store.names import check_bucket, check_name
from kvrouter.store.objects import ObjectInfo, Reading
from kvrouter.store.pieces import Measure, damaged, missing, pieces
from kvrouter.store.redis_connection import connect, redis_errors

__all__ = ["RedisObjectStore"]

_CHUNK_BYTES = 512 << 10
_OBJECT_BYTES_MAX = 512 << 20
_META_BYTES_MAX = 64 << 10
_UPLOAD_SECONDS = 600
"""A writer that sends no chunk for so long has died; what it sent expires."""
_REPLACED_SECONDS = 60
"""How long a reader may take for what was replaced under it, before it must begin anew."""
_READS = 5

# KEYS: index, new chunks, prefix of all chunks. ARGV: name, record, seconds that the replaced chunks stay.
_COMMIT = """
if redis.call('EXISTS', KEYS[2]) == 0 then return 0 end
local old = redis.call('HGET', KEYS[1], ARGV[1])
redis.call('PERSIST', KEYS[2])
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
if old then redis.call('EXPIRE', KEYS[3] .. string.sub(old, 1, 32), ARGV[3]) end
return 1
"""
_DELETE = """
local old = redis.call('HGET', KEYS[1], ARGV[1])
if not old then return 0 end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[2] .. string.sub(old, 1, 32), ARGV[2])
return 1
"""


class RedisObjectStore:
    """An `ObjectStore` on the server of the URL `server`, under keys that begin with `prefix`."""

    def __init__(self, server: str, *, prefix: str, object_bytes_max: int = _OBJECT_BYTES_MAX) -> None:
        self._redis = connect(server)
        self._prefix, self._object_bytes_max = prefix, object_bytes_max
        self._buckets = f"{{{prefix}:}}buckets"

    async def put(
        self,
        bucket: str,
        name: str,
        data: bytes | AsyncIterable[bytes],
        *,
        meta: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        """Store `data` under `name`; see `ObjectStore`."""
        index, chunks = self._keys(bucket)
        check_name(name)
        version = secrets.token_hex(16)
        with redis_errors():
            info = (await self._upload(chunks + version, data)).info(bucket, name, meta)
            record = version.encode() + _packed(info)
            keys = (index, chunks + version, chunks)
            # Before the object is there, or a writer that dies now would hide its bucket.
            await self._redis.command("SADD", self._buckets, bucket)
            if not await self._redis.command("EVAL", _COMMIT, 3, *keys, name, record, _REPLACED_SECONDS):
                raise StoreError("what was sent had expired before its end", reason="unavailable")
            # And again, for whoever has deleted the bucket in between.
            await self._redis.command("SADD", self._buckets, bucket)
        return info

    async def get(self, bucket: str, name: str) -> bytes:
        """Return the object; see `ObjectStore`."""
        index, chunks = self._keys(bucket)
        check_name(name)
        last = None
        for _ in range(_READS):
            with redis_errors():
                record = cast("bytes | None", await self._redis.command("HGET", index, name))
                if record is None:
                    raise missing(bucket, name)
                if record == last:
                    break  # It did not change while we read it: it is damaged.
                info, last = _unpacked(record, bucket, name), record
                data = await self._download(chunks + _version(record), info)
            if data is not None:
                return data
        raise damaged(bucket, name)

    @contextlib.asynccontextmanager
    async def read(self, bucket: str, name: str) -> AsyncIterator[Reading]:
        """Read an object piece by piece; see `ObjectStore`. Once it is replaced there is a minute left for the rest."""
        index, chunks = self._keys(bucket)
        with redis_errors():
            record = cast("bytes | None", await self._redis.command("HGET", index, check_name(name)))
        if record is None:
            raise missing(bucket, name)
        info = _unpacked(record, bucket, name)
        yield Reading(info, self._pieces_of(index, chunks + _version(record), info))

    async def stat(self, bucket: str, name: str) -> ObjectInfo | None:
        """Return what is known about an object; see `ObjectStore`."""
        index, _ = self._keys(bucket)
        with redis_errors():
            record = cast("bytes | None", await self._redis.command("HGET", index, check_name(name)))
        return None if record is None else _unpacked(record, bucket, name)

    async def create_bucket(self, bucket: str) -> None:
        """Make an empty bucket; see `ObjectStore`."""
        with redis_errors():
            await self._redis.command("SADD", self._buckets, check_bucket(bucket))

    async def buckets(self) -> list[str]:
        """Return the names of all buckets; see `ObjectStore`."""
        with redis_errors():
            names = cast("list[bytes]", await self._redis.command("SMEMBERS", self._buckets))
        return sorted(name.decode() for name in names)

    async def list(self, bucket: str) -> list[str]:
        """Return the names of all objects of a bucket; see `ObjectStore`."""
        index, _ = self._keys(bucket)
        with redis_errors():
            names = cast("list[bytes]", await self._redis.command("HKEYS", index))
        return sorted(name.decode() for name in names)

    async def delete(self, bucket: str, name: str) -> bool:
        """Remove an object; see `ObjectStore`."""
        index, chunks = self._keys(bucket)
        with redis_errors():
            removed = await self._redis.command("EVAL", _DELETE, 2, index, chunks, check_name(name), _REPLACED_SECONDS)
        return bool(removed)

    async def delete_bucket(self, bucket: str) -> None:
        """Remove a bucket with all its objects; see `ObjectStore`. What is being written to it stays."""
        with redis_errors():
            await self._redis.command("SREM", self._buckets, check_bucket(bucket))
        for name in await self.list(bucket):
            await self.delete(bucket, name)

    async def close(self) -> None:
        """Close the connections. May be called again."""
        await self._redis.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _keys(self, bucket: str) -> tuple[str, str]:
        tag = f"{{{self._prefix}:{check_bucket(bucket)}}}"
        return f"{tag}:objects", f"{tag}:chunks:"

    async def _upload(self, key: str, data: bytes | AsyncIterable[bytes]) -> Measure:
        """Fill the hash `key`; field 0 is there even if there is nothing to store, or no hash would be."""
        measure = Measure(bytes_max=self._object_bytes_max)
        await self._send(key, 0, b"")
        async for piece in pieces(data, size=_CHUNK_BYTES):
            await self._send(key, measure.pieces + 1, measure.add(piece))
        return measure

    async def _send(self, key: str, field: int, piece: bytes) -> None:
        await self._redis.transaction(("HSET", key, field, piece), ("EXPIRE", key, _UPLOAD_SECONDS))

    async def _download(self, key: str, info: ObjectInfo) -> bytes | None:
        """Return what the hash `key` holds, None if it is not what `info` says."""
        data, measure = bytearray(), Measure(bytes_max=info.size)
        for field in range(1, info.chunks + 1):
            piece = await self._chunk(key, field)
            if piece is None or measure.size + len(piece) > info.size:
                return None
            data += measure.add(piece)
        return bytes(data) if measure.agrees(info) else None

    async def _pieces_of(self, index: str, key: str, info: ObjectInfo) -> AsyncIterator[bytes]:
        measure = Measure(bytes_max=info.size)
        for field in range(1, info.chunks + 1):
            with redis_errors():
                piece = await self._chunk(key, field)
                replaced = piece is None and _version(await self._redis.command("HGET", index, info.name)) != key[-32:]
            if replaced:
                raise StoreError(f"object {info.bucket}/{info.name} was replaced meanwhile", reason="unavailable")
            if piece is None or measure.size + len(piece) > info.size:
                break
            yield measure.add(piece)
        if not measure.agrees(info):
            raise damaged(info.bucket, info.name)

    async def _chunk(self, key: str, field: int) -> bytes | None:
        return cast("bytes | None", await self._redis.command("HGET", key, field))


def _version(record: bytes | None) -> str:
    return "" if record is None else record[:32].decode("ascii", "replace")


def _packed(info: ObjectInfo) -> bytes:
    fields = [info.name, info.size, info.digest, info.chunks, info.modified, dict(info.meta)]
    record = cast("bytes", msgpack.packb(fields))
    if len(record) > _META_BYTES_MAX:
        raise StoreError(f"the meta data of an object exceed {_META_BYTES_MAX} bytes", reason="too_large")
    return record


def _unpacked(record: bytes, bucket: str, name: str) -> ObjectInfo:
    try:
        _, size, digest, chunks, modified, meta = msgpack.unpackb(record[32:])
        return ObjectInfo(
            bucket=bucket, name=name, size=size, digest=digest, chunks=chunks, modified=modified, meta=meta
        )
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise StoreError(f"object {bucket}/{name} is damaged: its record is not whole", reason="corrupt") from error
