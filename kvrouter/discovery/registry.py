"""Telling that one is there, for as long as one is: records with a lifetime that is renewed.

A process that dies without a word is forgotten when the lifetime of its records ends. One that was stopped for longer
finds its records gone and writes them again.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import msgspec

from kvrouter.discovery.records import BUCKET, Health, Instance, decode_instance, encode_instance, instances_prefix
from kvrouter.errors import StoreError, WireError
from kvrouter.store.key_values import Change, KeyValueBucket, KeyValueStore, Synced

__all__ = ["Discovery", "DiscoveryCounters", "Registration"]

LEASE_SECONDS = 10.0
_RETRY_SECONDS = 0.5


@dataclass(slots=True)
class DiscoveryCounters:
    """What happened since the start."""

    registrations: int = 0
    renewals: int = 0
    failed_renewals: int = 0
    malformed: int = 0


class Registration:
    """One record in the store, renewed until `close`."""

    def __init__(
        self, bucket: KeyValueBucket, instance: Instance, lease_seconds: float, counters: DiscoveryCounters
    ) -> None:
        self.instance = instance
        self.last_error: str | None = None
        self._bucket, self._lease_seconds, self._counters = bucket, lease_seconds, counters
        self._changed = asyncio.Event()
        self._renewing: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Write the record for the first time; raises StoreError or WireError."""
        await self._write()
        self._counters.registrations += 1
        self._renewing = asyncio.create_task(self._renew(), name=f"renew {self.instance.key}")

    def set_health(self, health: Health, reason: str | None = None) -> None:
        """Tell how the worker is; written at once."""
        self.instance = msgspec.structs.replace(self.instance, health=health, health_reason=reason)
        self._changed.set()

    async def close(self) -> None:
        """Take the record away. Idempotent; what cannot be removed now ends with its lifetime."""
        renewing, self._renewing = self._renewing, None
        if renewing is None:
            return
        renewing.cancel()
        await asyncio.gather(renewing, return_exceptions=True)
        with contextlib.suppress(StoreError):
            await self._bucket.delete(self.instance.key)

    async def _write(self) -> None:
        record = encode_instance(self.instance)
        await self._bucket.put(self.instance.key, record, ttl_seconds=self._lease_seconds)

    async def _renew(self) -> None:
        pause = self._lease_seconds / 3
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._changed.wait()
            self._changed.clear()
            try:
                await self._write()
            except StoreError as error:
                self._counters.failed_renewals += 1
                self.last_error = str(error)
                pause = min(_RETRY_SECONDS, self._lease_seconds / 3)
            else:
                self._counters.renewals += 1
                self.last_error, pause = None, self._lease_seconds / 3


class Discovery:
    """Registers and follows instances in a key-value store. Closes the store when it is closed."""

    def __init__(self, store: KeyValueStore, *, lease_seconds: float = LEASE_SECONDS) -> None:
        self.counters = DiscoveryCounters()
        self._store, self._lease_seconds = store, lease_seconds
        self._bucket = store.bucket(BUCKET)
        self._registrations: list[Registration] = []

    async def register(self, instance: Instance) -> Registration:
        """Tell that an instance is there, until its registration or this is closed.

        Raises:
            StoreError: the store cannot be reached.
            WireError: the record has a name or an id that cannot be.
        """
        registration = Registration(self._bucket, instance, self._lease_seconds, self.counters)
        await registration.begin()
        self._registrations.append(registration)
        return registration

    async def instances(self, namespace: str = "", component: str = "", endpoint: str = "") -> list[Instance]:
        """Who is there now; raises StoreError."""
        entries = await self._bucket.entries(instances_prefix(namespace, component, endpoint))
        found = [self._read(entry.value) for entry in entries.values()]
        return [instance for instance in found if instance is not None]

    async def watch(
        self, namespace: str = "", component: str = "", endpoint: str = ""
    ) -> AsyncIterator[tuple[str, Instance | None] | Synced]:
        """Follow who is there: key and instance, or None when it is gone; see `KeyValueBucket.watch`.

        A record that cannot be read counts as gone, and in `counters.malformed`.
        """
        news = self._bucket.watch(instances_prefix(namespace, component, endpoint))
        try:
            async for each in news:
                match each:
                    case Change(key, entry):
                        yield key, None if entry is None else self._read(entry.value)
                    case Synced():
                        yield each
        finally:
            await news.aclose()  # type: ignore[attr-defined] # a generator, whatever the backend

    async def close(self) -> None:
        """Take all records away and close the store. Idempotent."""
        registrations, self._registrations = self._registrations, []
        await asyncio.gather(*(registration.close() for registration in registrations))
        await self._store.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _read(self, data: bytes) -> Instance | None:
        try:
            return decode_instance(data)
        except WireError:
            self.counters.malformed += 1
            return None
