"""Small values with revisions as files of a directory: each key a file, each bucket a directory with a lock file.

Whoever changes a bucket holds the lock on its lock file meanwhile (a few milliseconds), so that comparing and
writing are one step for all processes, also of several machines where the shared file system carries locks (NFS 4
does). The lock file holds the last revision that was given. Lifetimes are by the wall clock: machines that share a
bucket need clocks that agree within a fraction of its lifetimes.
"""

import asyncio
import contextlib
import fcntl
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Self, cast

import msgpack

from kvrouter.errors import StoreError
from kvrouter.store.files import HalfWritten, in_thread, make_folder, store_folder, sync_folder
from kvrouter.store.key_values import Change, Conflict, Entry, Exists, Synced, check_value
from kvrouter.store.names import check_bucket, check_name
from kvrouter.store.watching import Followed, watched

__all__ = ["LocalKeyValueBucket", "LocalKeyValueStore"]

_LOCK = ".revision"
_LOCK_SECONDS_MAX = 5.0
_LOCK_POLL_SECONDS = 0.002
_REVISION_BYTES = 8
_WATCH_POLL_SECONDS = 0.2
_ANY = -1
"""Expected where any revision will do."""


class LocalKeyValueBucket:
    """A `KeyValueBucket` in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def get(self, key: str) -> Entry | None:
        """Return the value now; see `KeyValueBucket`."""
        return await in_thread(_read, self._path(key))

    async def create(self, key: str, value: bytes, *, ttl_seconds: float | None = None) -> int | Exists:
        """Write a value where there is none; see `KeyValueBucket`."""
        done, revision = await in_thread(self._write, self._path(key), check_value(value), None, ttl_seconds)
        return revision if done else Exists(revision)

    async def update(
        self, key: str, value: bytes, *, expected: int, ttl_seconds: float | None = None
    ) -> int | Conflict:
        """Replace the value of revision `expected`; see `KeyValueBucket`."""
        done, revision = await in_thread(self._write, self._path(key), check_value(value), expected, ttl_seconds)
        return revision if done else Conflict(revision or None)

    async def delete(self, key: str, *, expected: int | None = None) -> Conflict | None:
        """Remove a value; see `KeyValueBucket`."""
        return await in_thread(self._remove, self._path(key), expected)

    async def put(self, key: str, value: bytes, *, ttl_seconds: float | None = None) -> int:
        """Write a value whatever is there; see `KeyValueBucket`."""
        _, revision = await in_thread(self._write, self._path(key), check_value(value), _ANY, ttl_seconds)
        return revision

    async def entries(self, prefix: str = "") -> dict[str, Entry]:
        """Return every key with its value; see `KeyValueBucket`."""
        return await in_thread(_Listing(self._folder, prefix).read)

    def watch(self, prefix: str = "") -> AsyncIterator[Change | Synced]:
        """Follow keys, by looking at the directory again and again; see `KeyValueBucket`."""
        return watched(lambda: self._following(prefix))

    @contextlib.asynccontextmanager
    async def _following(self, prefix: str) -> AsyncIterator[Followed]:
        listing = _Listing(self._folder, prefix)

        async def changes() -> AsyncIterator[dict[str, Entry]]:
            while True:
                await asyncio.sleep(_WATCH_POLL_SECONDS)
                yield await in_thread(listing.read)

        yield Followed(await in_thread(listing.read), changes())

    def _path(self, key: str) -> Path:
        return self._folder / check_name(key).replace("/", "%")

    def _write(self, path: Path, value: bytes, expected: int | None, ttl_seconds: float | None) -> tuple[bool, int]:
        """Write if the revision now is `expected` (None: no value); returns whether, and the revision then."""
        with _locked(self._folder) as lock:
            entry = _read(path)
            now = 0 if entry is None else entry.revision
            if expected != _ANY and now != (expected or 0):
                return False, now
            revision = _next_revision(lock)
            until = None if ttl_seconds is None else time.time() + ttl_seconds
            half = HalfWritten(path)
            try:
                half.file.write(cast("bytes", msgpack.packb([revision, until, value])))
                half.commit()
            except BaseException:
                half.abandon()
                raise
            return True, revision

    def _remove(self, path: Path, expected: int | None) -> Conflict | None:
        with _locked(self._folder):
            entry = _read(path)
            if entry is not None and expected is not None and entry.revision != expected:
                return Conflict(entry.revision)
            path.unlink(missing_ok=True)
            sync_folder(self._folder)
            return None


class _Listing:
    """The keys of a folder; reads again only what has changed since the last time."""

    def __init__(self, folder: Path, prefix: str) -> None:
        self._folder, self._prefix = folder, prefix.replace("/", "%")
        self._seen: dict[str, tuple[tuple[int, int, int], Entry, float | None]] = {}

    def read(self) -> dict[str, Entry]:
        """Return every key with its value."""
        seen, now = {}, time.time()
        for name, stamp in self._files():
            known = self._seen.get(name)
            if known is None or known[0] != stamp:
                found = _read_whole(self._folder / name)
                if found is None:
                    continue
                known = stamp, *found
            seen[name] = known
        self._seen = seen
        return {
            name.replace("%", "/"): entry for name, (_, entry, until) in seen.items() if until is None or until > now
        }

    def _files(self) -> Iterator[tuple[str, tuple[int, int, int]]]:
        try:
            with os.scandir(self._folder) as files:
                for file in files:
                    if file.name.startswith(self._prefix) and not file.name.startswith("."):
                        with contextlib.suppress(FileNotFoundError):
                            status = file.stat()
                            yield file.name, (status.st_ino, status.st_mtime_ns, status.st_size)
        except FileNotFoundError:
            return


class LocalKeyValueStore:
    """A `KeyValueStore` in `folder`; its buckets are beside those of objects, and may not share their names."""

    def __init__(self, folder: str | Path) -> None:
        self._folder = store_folder(folder)

    def bucket(self, name: str) -> LocalKeyValueBucket:
        """Return a bucket; see `KeyValueStore`."""
        return LocalKeyValueBucket(self._folder / f"{check_bucket(name)}.keys")

    async def close(self) -> None:
        """Do nothing: no file is open between calls."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _read(path: Path) -> Entry | None:
    found = _read_whole(path)
    if found is None:
        return None
    entry, until = found
    return None if until is not None and until <= time.time() else entry


def _read_whole(path: Path) -> tuple[Entry, float | None] | None:
    """A value and when it ends, be it over or not."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        revision, until, value = msgpack.unpackb(content)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise StoreError(f"key {path.name.replace('%', '/')!r} is damaged", reason="corrupt") from error
    return Entry(value, revision), until


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """Hold the lock of a bucket; yields the descriptor of its lock file."""
    make_folder(folder)
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _wait_for(lock)
        yield lock
    finally:
        os.close(lock)  # Which gives the lock back.


def _wait_for(lock: int) -> None:
    deadline = time.monotonic() + _LOCK_SECONDS_MAX
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise StoreError("a bucket is locked by somebody who does not go on", reason="unavailable") from error
            time.sleep(_LOCK_POLL_SECONDS)
        else:
            return


def _next_revision(lock: int) -> int:
    """Count up, on the disk before anybody can see the number."""
    revision = int.from_bytes(os.pread(lock, _REVISION_BYTES, 0)) + 1
    os.pwrite(lock, revision.to_bytes(_REVISION_BYTES), 0)
    os.fsync(lock)
    return revision
