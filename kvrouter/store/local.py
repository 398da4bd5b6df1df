"""Objects as files of a directory, which may be a file system that several machines share.

One file holds one object: its bytes, a trailer in msgpack (what `stat` tells), and 16 bytes that find and check the
trailer. Blocking work runs in threads.

A slash in a name becomes `%`, which names cannot have. On a file system that ignores case, two names that differ by
case only are one file: then the trailer tells whose it is, and the other is missing.
"""

import asyncio
import contextlib
import os
import zlib
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Mapping
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import IO, Self, cast

import msgpack

from kvrouter.errors import StoreError
from kvrouter.store.files import HalfWritten, in_thread, make_folder, store_folder, sync_folder
from kvrouter.store.names import check_bucket, check_name, is_bucket
from kvrouter.store.objects import ObjectInfo, Reading
from kvrouter.store.pieces import Measure, damaged, missing, pieces

__all__ = ["LocalObjectStore"]

_MAGIC = b"kvobject"
_FOOT_BYTES = 4 + 4 + len(_MAGIC)  # The trailer's length, its CRC-32, and what the file is.
_TRAILER_BYTES_MAX = 64 << 10
_PIECE_BYTES = 1 << 20
_OBJECT_BYTES_MAX = 8 << 30


class LocalObjectStore:
    """An `ObjectStore` in `folder`, with one directory per bucket."""

    def __init__(self, folder: str | Path, *, object_bytes_max: int = _OBJECT_BYTES_MAX) -> None:
        self._folder = store_folder(folder)
        self._object_bytes_max = object_bytes_max

    async def put(
        self,
        bucket: str,
        name: str,
        data: bytes | AsyncIterable[bytes],
        *,
        meta: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        """Store `data` under `name`; see `ObjectStore`."""
        writing = await in_thread(_Writing, self._path(bucket, name), self._object_bytes_max)
        try:
            async for piece in pieces(data, size=_PIECE_BYTES):
                await in_thread(writing.write, piece)
            return await in_thread(writing.commit, bucket, name, meta)
        except BaseException:
            await asyncio.shield(in_thread(writing.half.abandon))  # Also when we are cancelled.
            raise

    async def get(self, bucket: str, name: str) -> bytes:
        """Return the object; see `ObjectStore`."""
        data = await in_thread(_read, self._path(bucket, name), bucket, name)
        if data is None:
            raise missing(bucket, name)
        return data

    @contextlib.asynccontextmanager
    async def read(self, bucket: str, name: str) -> AsyncIterator[Reading]:
        """Read an object piece by piece, that which it is now; see `ObjectStore`."""
        opened = await in_thread(_open, self._path(bucket, name), bucket, name)
        if opened is None:
            raise missing(bucket, name)
        file, info = opened
        try:
            yield Reading(info, _pieces_of(file, info))
        finally:
            file.close()

    async def stat(self, bucket: str, name: str) -> ObjectInfo | None:
        """Return what is known about an object; see `ObjectStore`."""
        return await in_thread(_stat, self._path(bucket, name), bucket, name)

    async def create_bucket(self, bucket: str) -> None:
        """Make an empty bucket; see `ObjectStore`."""
        await in_thread(make_folder, self._folder / check_bucket(bucket))

    async def buckets(self) -> list[str]:
        """Return the names of all buckets; see `ObjectStore`."""
        return await in_thread(_buckets, self._folder)

    async def list(self, bucket: str) -> list[str]:
        """Return the names of all objects of a bucket; see `ObjectStore`."""
        return await in_thread(_names, self._folder / check_bucket(bucket))

    async def delete(self, bucket: str, name: str) -> bool:
        """Remove an object; see `ObjectStore`."""
        return await in_thread(_remove, self._path(bucket, name))

    async def delete_bucket(self, bucket: str) -> None:
        """Remove a bucket with all its objects; see `ObjectStore`."""
        await in_thread(_remove_folder, self._folder / check_bucket(bucket))

    async def close(self) -> None:
        """Do nothing: no file is open between calls."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _path(self, bucket: str, name: str) -> Path:
        return self._folder / check_bucket(bucket) / check_name(name).replace("/", "%")


class _Writing:
    """One object on its way to the disk."""

    def __init__(self, path: Path, bytes_max: int) -> None:
        self.half = HalfWritten(path)
        self._measure = Measure(bytes_max=bytes_max)

    def write(self, piece: bytes) -> None:
        self.half.file.write(self._measure.add(piece))

    def commit(self, bucket: str, name: str, meta: Mapping[str, str] | None) -> ObjectInfo:
        info = self._measure.info(bucket, name, meta)
        trailer = cast("bytes", msgpack.packb(asdict(info)))
        if len(trailer) > _TRAILER_BYTES_MAX:
            raise StoreError(f"the meta data of an object exceed {_TRAILER_BYTES_MAX} bytes", reason="too_large")
        self.half.file.write(trailer + len(trailer).to_bytes(4) + zlib.crc32(trailer).to_bytes(4) + _MAGIC)
        self.half.commit()
        return info


def _read(path: Path, bucket: str, name: str) -> bytes | None:
    with _opened(path) as file:
        info = None if file is None else _trailer(file, bucket, name)
        if file is None or info is None:
            return None
        file.seek(0)
        data = file.read(info.size)
    if sha256(data).hexdigest() != info.digest:
        raise damaged(bucket, name)
    return data


def _open(path: Path, bucket: str, name: str) -> tuple[IO[bytes], ObjectInfo] | None:
    """Open an object to be read from its beginning."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    try:
        info = _trailer(file, bucket, name)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    if info is None:
        file.close()
        return None
    return file, info


async def _pieces_of(file: IO[bytes], info: ObjectInfo) -> AsyncIterator[bytes]:
    measure = Measure(bytes_max=info.size)
    while measure.size < info.size:
        piece = await in_thread(file.read, min(_PIECE_BYTES, info.size - measure.size))
        if not piece:
            break
        yield await in_thread(measure.add, piece)
    if not measure.agrees(info):
        raise damaged(info.bucket, info.name)


def _stat(path: Path, bucket: str, name: str) -> ObjectInfo | None:
    with _opened(path) as file:
        return None if file is None else _trailer(file, bucket, name)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes] | None]:
    try:
        file = path.open("rb")
    except FileNotFoundError:
        yield None
        return
    with file:
        yield file


def _trailer(file: IO[bytes], bucket: str, name: str) -> ObjectInfo | None:
    """Read what stands behind an object's bytes; None if the file is another name's."""
    total = file.seek(0, os.SEEK_END)
    file.seek(max(0, total - _FOOT_BYTES - _TRAILER_BYTES_MAX))
    end = file.read()
    foot, length = end[-_FOOT_BYTES:], int.from_bytes(end[-_FOOT_BYTES : 4 - _FOOT_BYTES])
    trailer = end[: len(end) - len(foot)][-length:] if length else b""
    sound = foot.endswith(_MAGIC) and len(trailer) == length and zlib.crc32(trailer) == int.from_bytes(foot[4:8])
    if not sound:
        raise StoreError(f"object {bucket}/{name} is damaged: its end is not whole", reason="corrupt")
    info = ObjectInfo(**msgpack.unpackb(trailer))
    if total != info.size + length + _FOOT_BYTES:
        raise StoreError(f"object {bucket}/{name} is damaged: its length differs", reason="corrupt")
    return info if (info.bucket, info.name) == (bucket, name) else None


def _names(folder: Path) -> list[str]:
    try:
        return sorted(path.name.replace("%", "/") for path in folder.iterdir() if not path.name.startswith("."))
    except FileNotFoundError:
        return []


def _buckets(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir() if is_bucket(path.name) and path.is_dir())
    except FileNotFoundError:
        return []


def _remove(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    sync_folder(path.parent)
    return True


def _remove_folder(folder: Path) -> None:
    try:
        for path in folder.iterdir():
            path.unlink(missing_ok=True)
        folder.rmdir()
    except FileNotFoundError:
        return
    sync_folder(folder.parent)
