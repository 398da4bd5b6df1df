"""Files into an object store and out of it, with one piece in memory; and buckets that do not grow for ever."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Final

from kvrouter.errors import StoreError
from kvrouter.store.files import HalfWritten, in_thread
from kvrouter.store.objects import ObjectInfo, ObjectStore

__all__ = ["clean_bucket", "download", "upload"]

_PIECE_BYTES: Final = 1 << 20


async def upload(
    store: ObjectStore, bucket: str, name: str, path: str | Path, *, meta: Mapping[str, str] | None = None
) -> ObjectInfo:
    """Store a file's content.

    Raises:
        StoreError: as `put`; `unavailable` where the file cannot be read.
    """
    return await store.put(bucket, name, _content(Path(path)), meta=meta)


async def download(store: ObjectStore, bucket: str, name: str, path: str | Path) -> ObjectInfo:
    """Write an object into a file, which is there wholly and verified, or stays as it was.

    Raises:
        StoreError: as `read`; `unavailable` where the file cannot be written.
    """
    async with store.read(bucket, name) as (info, pieces):
        half = await in_thread(HalfWritten, Path(path))
        try:
            async for piece in pieces:
                await in_thread(half.file.write, piece)
            await in_thread(half.commit)
        except BaseException:
            await asyncio.shield(in_thread(half.abandon))  # Also when we are cancelled.
            raise
    return info


async def clean_bucket(
    store: ObjectStore,
    bucket: str,
    *,
    now: float,
    age_seconds_max: float | None = None,
    bytes_max: int | None = None,
) -> list[str]:
    """Remove what is older than `age_seconds_max`, then the oldest until at most `bytes_max` are left.

    `now` is the time of the epoch. For buckets whose objects are written once: one that is replaced just now may be
    removed with what it replaces. Damaged objects whose age nobody can tell stay.

    Returns:
        The names of what was removed, the oldest first.
    """
    known = [await _known(store, bucket, name) for name in await store.list(bucket)]
    infos = sorted((info for info in known if info is not None), key=lambda info: (info.modified, info.name))
    left, removed = sum(info.size for info in infos), []
    for info in infos:
        too_old = age_seconds_max is not None and now - info.modified > age_seconds_max
        if not too_old and (bytes_max is None or left <= bytes_max):
            break
        left -= info.size
        if await store.delete(bucket, info.name):
            removed.append(info.name)
    return removed


async def _known(store: ObjectStore, bucket: str, name: str) -> ObjectInfo | None:
    try:
        return await store.stat(bucket, name)
    except StoreError as error:
        if error.reason != "corrupt":
            raise
        return None


async def _content(path: Path) -> AsyncIterator[bytes]:
    file = await in_thread(path.open, "rb")
    try:
        while piece := await in_thread(file.read, _PIECE_BYTES):
            yield piece
    finally:
        file.close()
