"""What a key-value store promises: small values, each with a revision, changed only by who knows the last one.

For pointers, locks and records of a few kilobytes. Not for whole snapshots: those are in `objects`.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self

from kvrouter.errors import SettingsError, StoreError
from kvrouter.store.addresses import NO_OPTIONS, parse_store_url

__all__ = [
    "VALUE_BYTES_MAX",
    "Change",
    "Conflict",
    "Entry",
    "Exists",
    "KeyValueBucket",
    "KeyValueStore",
    "Synced",
    "check_value",
    "open_key_value_store",
]

VALUE_BYTES_MAX = 256 << 10


class Entry(NamedTuple):
    """A value and the revision under which it was written."""

    value: bytes
    revision: int


@dataclass(frozen=True, slots=True)
class Exists:
    """Nothing was created: the key has a value of this `revision`."""

    revision: int


@dataclass(frozen=True, slots=True)
class Conflict:
    """Nothing was changed: the key has the revision `current`, None if it has no value."""

    current: int | None


class Change(NamedTuple):
    """What a key has now; None: nothing any more."""

    key: str
    entry: Entry | None


@dataclass(frozen=True, slots=True)
class Synced:
    """Everything that was there is told. Comes once at the beginning, and again after each lost connection."""


class KeyValueBucket(Protocol):
    """Keys of one purpose, with the names of `kvrouter.store.names`; values up to `VALUE_BYTES_MAX` bytes.

    Guarantee: each change is one step; of several at once on one key, exactly one finds the revision that it expects.
    A revision is never given twice in a bucket, not even after a key was deleted and created again. With
    `ttl_seconds` a value is gone so long after it was last written; it may be seen up to a second longer.

    Every method raises `StoreError`: `unavailable` (then a change may have been made or not: read before trying
    again), `bad_name`, `too_large`, `unsupported` where the server is too old for `ttl_seconds`.
    """

    async def get(self, key: str) -> Entry | None:
        """Return the value now, None if there is none."""
        ...

    async def create(self, key: str, value: bytes, *, ttl_seconds: float | None = None) -> int | Exists:
        """Write a value where there is none; returns its revision."""
        ...

    async def update(
        self, key: str, value: bytes, *, expected: int, ttl_seconds: float | None = None
    ) -> int | Conflict:
        """Replace the value of revision `expected`, and its lifetime with it; returns the new revision."""
        ...

    async def put(self, key: str, value: bytes, *, ttl_seconds: float | None = None) -> int:
        """Write a value whatever is there; returns its revision. For keys that only one writes."""
        ...

    async def delete(self, key: str, *, expected: int | None = None) -> Conflict | None:
        """Remove a value, or only that of revision `expected`. What is not there is gone already."""
        ...

    async def entries(self, prefix: str = "") -> dict[str, Entry]:
        """Return every key that begins with `prefix`, with its value."""
        ...

    def watch(self, prefix: str = "") -> AsyncIterator[Change | Synced]:
        """Follow the keys that begin with `prefix`: those that there are, `Synced`, then what changes, for ever.

        Of several changes in a row at least the last one is told, and that a key is gone always is, also when it
        happened while there was no connection. A lost connection is made again and never raised; close the iterator
        (`aclosing`) to end it.
        """
        ...


class KeyValueStore(Protocol):
    """Buckets on one backend. A connection is made with the first call, and made again after it was lost."""

    def bucket(self, name: str) -> KeyValueBucket:
        """Return a bucket, which comes into being with its first key.

        Raises:
            StoreError: `bad_name`.
        """
        ...

    async def close(self) -> None:
        """Close the connection, if there is one. May be called again."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_: object) -> None: ...


def open_key_value_store(url: str, *, nats_options: Mapping[str, Any] = NO_OPTIONS) -> KeyValueStore:
    """Return the store that `url` means, by the rules of `open_object_store`; both may share a URL.

    `nats_options` are what the NATS client connects with beside the address: `tls`, and who we are.

    Raises:
        SettingsError: the URL has no known form.
        MissingExtraError: the backend's client is not installed.
    """
    address = parse_store_url(url)
    if address.kind == "file":
        from kvrouter.store.local_keys import LocalKeyValueStore  # noqa: PLC0415 - only the chosen backend is loaded

        return LocalKeyValueStore(address.prefix)
    if address.kind == "memory":
        from kvrouter.store.memory_keys import MemoryKeyValueStore  # noqa: PLC0415 - as above

        return MemoryKeyValueStore()
    if address.kind == "etcd":
        from kvrouter.store.etcd_keys import EtcdKeyValueStore  # noqa: PLC0415 - as above

        return EtcdKeyValueStore(address.server, prefix=address.prefix)
    if address.kind == "nats":
        from kvrouter.store.nats_keys import NatsKeyValueStore  # noqa: PLC0415 - as above

        return NatsKeyValueStore(address.server, prefix=address.prefix, options=nats_options)
    if address.kind == "redis":
        from kvrouter.store.redis_keys import RedisKeyValueStore  # noqa: PLC0415 - as above

        return RedisKeyValueStore(address.server, prefix=address.prefix)
    raise SettingsError(f"{address.kind} keeps objects only, no small values; name a directory, etcd, NATS or Redis")


def check_value(value: bytes) -> bytes:
    """Return `value` if it is short enough for a key-value store.

    Raises:
        StoreError: it is not (`too_large`).
    """
    if len(value) > VALUE_BYTES_MAX:
        raise StoreError(f"a value of {len(value)} bytes exceeds {VALUE_BYTES_MAX}", reason="too_large")
    return value
