"""Small values with revisions in this process's memory: for one process, for tests, and where nothing is to outlive it.

Passes the same contract as the others. Not shared by processes, and gone with the store.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from itertools import count
from typing import Self

from kvrouter.store.key_values import Change, Conflict, Entry, Exists, Synced, check_value
from kvrouter.store.names import check_bucket, check_name
from kvrouter.store.watching import Followed, watched

__all__ = ["MemoryKeyValueBucket", "MemoryKeyValueStore"]

_EXPIRY_SECONDS = 0.2


class MemoryKeyValueBucket:
    """A `KeyValueBucket` in memory. Lives on one event loop."""

    def __init__(self) -> None:
        self._values: dict[str, tuple[Entry, float | None]] = {}
        self._revisions = count(1)
        self._changed = asyncio.Event()

    async def get(self, key: str) -> Entry | None:
        """Return the value now; see `KeyValueBucket`."""
        return self._now(check_name(key))

    async def create(self, key: str, value: bytes, *, ttl_seconds: float | None = None) -> int | Exists:
        """Write a value where there is none; see `KeyValueBucket`."""
        entry = self._now(check_name(key))
        return self._write(key, value, ttl_seconds) if entry is None else Exists(entry.revision)

    async def update(
        self, key: str, value: bytes, *, expected: int, ttl_seconds: float | None = None
    ) -> int | Conflict:
        """Replace the value of revision `expected`; see `KeyValueBucket`."""
        entry = self._now(check_name(key))
        if entry is None or entry.revision != expected:
            return Conflict(None if entry is None else entry.revision)
        return self._write(key, value, ttl_seconds)

    async def put(self, key: str, value: bytes, *, ttl_seconds: float | None = None) -> int:
        """Write a value whatever is there; see `KeyValueBucket`."""
        return self._write(check_name(key), value, ttl_seconds)

    async def delete(self, key: str, *, expected: int | None = None) -> Conflict | None:
        """Remove a value; see `KeyValueBucket`."""
        entry = self._now(check_name(key))
        if entry is not None and expected is not None and entry.revision != expected:
            return Conflict(entry.revision)
        self._values.pop(key, None)
        self._tell()
        return None

    async def entries(self, prefix: str = "") -> dict[str, Entry]:
        """Return every key with its value; see `KeyValueBucket`."""
        return self._all(prefix)

    def watch(self, prefix: str = "") -> AsyncIterator[Change | Synced]:
        """Follow keys; see `KeyValueBucket`."""
        return watched(lambda: self._following(prefix))

    @contextlib.asynccontextmanager
    async def _following(self, prefix: str) -> AsyncIterator[Followed]:
        async def changes() -> AsyncIterator[dict[str, Entry]]:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_EXPIRY_SECONDS):
                        await self._changed.wait()
                yield self._all(prefix)

        yield Followed(self._all(prefix), changes())

    def _now(self, key: str) -> Entry | None:
        entry, until = self._values.get(key, (None, None))
        if until is not None and until <= time.monotonic():
            del self._values[key]
            return None
        return entry

    def _all(self, prefix: str) -> dict[str, Entry]:
        return {
            key: entry
            for key in tuple(self._values)
            if key.startswith(prefix) and (entry := self._now(key)) is not None
        }

    def _write(self, key: str, value: bytes, ttl_seconds: float | None) -> int:
        until = None if ttl_seconds is None else time.monotonic() + ttl_seconds
        entry = Entry(check_value(value), next(self._revisions))
        self._values[key] = entry, until
        self._tell()
        return entry.revision

    def _tell(self) -> None:
        """Wake all followers that wait now."""
        self._changed.set()
        self._changed = asyncio.Event()


class MemoryKeyValueStore:
    """A `KeyValueStore` in memory: buckets of one name are one bucket."""

    def __init__(self) -> None:
        self._buckets: dict[str, MemoryKeyValueBucket] = {}

    def bucket(self, name: str) -> MemoryKeyValueBucket:
        """Return a bucket; see `KeyValueStore`."""
        return self._buckets.setdefault(check_bucket(name), MemoryKeyValueBucket())

    async def close(self) -> None:
        """Do nothing: there is no connection."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
