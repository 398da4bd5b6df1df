"""Objects in NATS object stores, with digests that are verified.

Not by the client library's own `get` and `put`: those join all chunks one by one, wait for ever for chunks that were
replaced meanwhile, and leave chunks behind where two writers of one name replace the same version.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from typing import Any, Self

from kvrouter.errors import StoreError
from kvrouter.store.addresses import NO_OPTIONS
from kvrouter.store.names import check_bucket, check_name, is_bucket
from kvrouter.store.nats_connection import NatsConnection
from kvrouter.store.nats_stream import CHUNK_BYTES, ObjectStream, Record, bucket_names
from kvrouter.store.objects import ObjectInfo, Reading
from kvrouter.store.pieces import Measure, damaged, missing, pieces

__all__ = ["NatsObjectStore"]

_OBJECT_BYTES_MAX = 2 << 30
_READS = 5


class NatsObjectStore:
    """An `ObjectStore` on the server of the URL `server`, in buckets whose names begin with `prefix`."""

    def __init__(
        self,
        server: str,
        *,
        prefix: str,
        object_bytes_max: int = _OBJECT_BYTES_MAX,
        options: Mapping[str, Any] = NO_OPTIONS,
    ) -> None:
        self._connection = NatsConnection(server, options)
        self._prefix, self._object_bytes_max = prefix, object_bytes_max

    async def put(
        self,
        bucket: str,
        name: str,
        data: bytes | AsyncIterable[bytes],
        *,
        meta: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        """Store `data` under `name`; see `ObjectStore`."""
        async with self._stream(bucket) as stream:
            check_name(name)
            await stream.ensure()
            version = self._connection.unique()
            info = (await self._upload(stream, version, data)).info(bucket, name, meta)
            # If the answer to this is lost, nobody knows whether the chunks are in use: `sweep` finds out later.
            replaced = await stream.commit(info, version)
            if replaced is not None:
                await stream.drop(replaced)
            await stream.sweep()
        return info

    async def get(self, bucket: str, name: str) -> bytes:
        """Return the object; see `ObjectStore`."""
        async with self._stream(bucket) as stream:
            check_name(name)
            last = 0
            for _ in range(_READS):
                record = await stream.record(name)
                if record is None:
                    raise missing(bucket, name)
                if record.revision == last:
                    break  # It was not replaced while we read it: it is damaged.
                last = record.revision
                data = await _download(stream, record)
                if data is not None:
                    return data
        raise damaged(bucket, name)

    @contextlib.asynccontextmanager
    async def read(self, bucket: str, name: str) -> AsyncIterator[Reading]:
        """Read an object piece by piece; see `ObjectStore`."""
        async with self._stream(bucket) as stream:
            record = await stream.record(check_name(name))
        if record is None:
            raise missing(bucket, name)
        yield Reading(record.info, self._pieces_of(record))

    async def stat(self, bucket: str, name: str) -> ObjectInfo | None:
        """Return what is known about an object; see `ObjectStore`."""
        async with self._stream(bucket) as stream:
            record = await stream.record(check_name(name))
        return None if record is None else record.info

    async def create_bucket(self, bucket: str) -> None:
        """Make an empty bucket; see `ObjectStore`."""
        async with self._stream(bucket) as stream:
            await stream.ensure()

    async def buckets(self) -> list[str]:
        """Return the names of all buckets; see `ObjectStore`."""
        async with self._connection.jetstream() as jetstream:
            names = [name async for name in bucket_names(jetstream, self._prefix)]
        return sorted(filter(is_bucket, names))

    async def list(self, bucket: str) -> list[str]:
        """Return the names of all objects of a bucket; see `ObjectStore`."""
        async with self._stream(bucket) as stream:
            return await stream.names()

    async def delete(self, bucket: str, name: str) -> bool:
        """Remove an object; see `ObjectStore`."""
        async with self._stream(bucket) as stream:
            return await stream.forget(check_name(name))

    async def delete_bucket(self, bucket: str) -> None:
        """Remove a bucket with all its objects; see `ObjectStore`."""
        async with self._stream(bucket) as stream:
            await stream.remove()

    async def close(self) -> None:
        """Close the connection, if there is one. May be called again."""
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @contextlib.asynccontextmanager
    async def _stream(self, bucket: str) -> AsyncIterator[ObjectStream]:
        check_bucket(bucket)
        async with self._connection.jetstream() as jetstream:
            yield ObjectStream(jetstream, bucket, self._prefix)

    async def _upload(self, stream: ObjectStream, version: str, data: bytes | AsyncIterable[bytes]) -> Measure:
        measure = Measure(bytes_max=self._object_bytes_max)
        try:
            async for piece in pieces(data, size=CHUNK_BYTES):
                await stream.add_chunk(version, measure.add(piece))
        except BaseException:
            with contextlib.suppress(Exception):  # What cannot be removed now, `sweep` removes later.
                await asyncio.shield(stream.drop(version))
            raise
        return measure

    async def _pieces_of(self, record: Record) -> AsyncIterator[bytes]:
        info, after, measure = record.info, 0, Measure(bytes_max=record.info.size)
        for _ in range(info.chunks):
            async with self._stream(info.bucket) as stream:
                found = await stream.chunk(record.version, after)
                if found is None and await stream.record(info.name) != record:
                    raise StoreError(f"object {info.bucket}/{info.name} was replaced meanwhile", reason="unavailable")
            if found is None or measure.size + len(found[1]) > info.size:
                break
            after, piece = found
            yield measure.add(piece)
        if not measure.agrees(info):
            raise damaged(info.bucket, info.name)


async def _download(stream: ObjectStream, record: Record) -> bytes | None:
    """Return the bytes of a version, None if they are not what its record says."""
    data, after, measure = bytearray(), 0, Measure(bytes_max=record.info.size)
    for _ in range(record.info.chunks):
        found = await stream.chunk(record.version, after)
        if found is None or measure.size + len(found[1]) > record.info.size:
            return None
        after, piece = found
        data += measure.add(piece)
    return bytes(data) if measure.agrees(record.info) else None
