"""Objects in this process's memory: for one process, for tests, and where nothing is to outlive it.

Passes the same contract as the others. Not shared by processes, and gone with the store.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from typing import Self

from kvrouter.errors import StoreError
from kvrouter.store.names import check_bucket, check_name
from kvrouter.store.objects import ObjectInfo, Reading
from kvrouter.store.pieces import Measure, damaged, missing, pieces

__all__ = ["MemoryObjectStore"]

_PIECE_BYTES = 1 << 20
_OBJECT_BYTES_MAX = 512 << 20
_META_CHARACTERS_MAX = 64 << 10


class MemoryObjectStore:
    """An `ObjectStore` in memory. Lives on one event loop."""

    def __init__(self, *, object_bytes_max: int = _OBJECT_BYTES_MAX) -> None:
        self._object_bytes_max = object_bytes_max
        self._buckets: dict[str, dict[str, tuple[ObjectInfo, bytes]]] = {}

    async def put(
        self,
        bucket: str,
        name: str,
        data: bytes | AsyncIterable[bytes],
        *,
        meta: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        """Store `data` under `name`; see `ObjectStore`."""
        check_bucket(bucket)
        check_name(name)
        if sum(len(key) + len(value) for key, value in (meta or {}).items()) > _META_CHARACTERS_MAX:
            raise StoreError(f"the meta data of an object exceed {_META_CHARACTERS_MAX} characters", reason="too_large")
        measure = Measure(bytes_max=self._object_bytes_max)
        content = bytearray()
        async for piece in pieces(data, size=_PIECE_BYTES):
            content += measure.add(piece)
        info = measure.info(bucket, name, meta)
        await asyncio.sleep(0)  # As everywhere else, others get their turn; who only reads and writes would keep it.
        self._buckets.setdefault(bucket, {})[name] = info, bytes(content)
        return info

    async def get(self, bucket: str, name: str) -> bytes:
        """Return the object; see `ObjectStore`."""
        await asyncio.sleep(0)
        info, content = self._find(bucket, name)
        if not _measured(content).agrees(info):
            raise damaged(bucket, name)
        return content

    @contextlib.asynccontextmanager
    async def read(self, bucket: str, name: str) -> AsyncIterator[Reading]:
        """Read an object piece by piece, that which it is now; see `ObjectStore`."""
        info, content = self._find(bucket, name)

        async def checked() -> AsyncIterator[bytes]:
            async for piece in pieces(content, size=_PIECE_BYTES):
                yield piece
            if not _measured(content).agrees(info):
                raise damaged(bucket, name)

        yield Reading(info, checked())

    async def stat(self, bucket: str, name: str) -> ObjectInfo | None:
        """Return what is known about an object; see `ObjectStore`."""
        found = self._buckets.get(check_bucket(bucket), {}).get(check_name(name))
        return None if found is None else found[0]

    async def create_bucket(self, bucket: str) -> None:
        """Make an empty bucket; see `ObjectStore`."""
        self._buckets.setdefault(check_bucket(bucket), {})

    async def buckets(self) -> list[str]:
        """Return the names of all buckets; see `ObjectStore`."""
        return sorted(self._buckets)

    async def list(self, bucket: str) -> list[str]:
        """Return the names of all objects of a bucket; see `ObjectStore`."""
        return sorted(self._buckets.get(check_bucket(bucket), {}))

    async def delete(self, bucket: str, name: str) -> bool:
        """Remove an object; see `ObjectStore`."""
        return self._buckets.get(check_bucket(bucket), {}).pop(check_name(name), None) is not None

    async def delete_bucket(self, bucket: str) -> None:
        """Remove a bucket with all its objects; see `ObjectStore`."""
        self._buckets.pop(check_bucket(bucket), None)

    async def close(self) -> None:
        """Do nothing: there is no connection."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _find(self, bucket: str, name: str) -> tuple[ObjectInfo, bytes]:
        found = self._buckets.get(check_bucket(bucket), {}).get(check_name(name))
        if found is None:
            raise missing(bucket, name)
        return found


def _measured(content: bytes) -> Measure:
    measure = Measure(bytes_max=len(content))
    measure.add(content)
    return measure
