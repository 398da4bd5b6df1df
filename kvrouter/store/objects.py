"""What an object store promises, whatever keeps the objects; and which one a URL means.

For whole things that are written once and read rarely: snapshots of an index, model files. Not for values that
change often or that somebody waits for: those are in `key_values`.
"""

from collections.abc import AsyncIterable, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, Self

from kvrouter.errors import SettingsError
from kvrouter.store.addresses import NO_OPTIONS, parse_store_url

__all__ = ["ObjectInfo", "ObjectStore", "Reading", "open_object_store"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo:
    """One stored object: `digest` is SHA-256 in hexadecimal, `modified` seconds of the epoch, as the writer knew it."""

    bucket: str
    name: str
    size: int
    digest: str
    chunks: int
    modified: float
    meta: Mapping[str, str] = field(default_factory=dict)


class Reading(NamedTuple):
    """An object that is being read: what is known about it, and its bytes, piece by piece."""

    info: ObjectInfo
    pieces: AsyncIterator[bytes]


class ObjectStore(Protocol):
    """Keeps objects by name in buckets, which come into being with their first object, or with `create_bucket`.

    Guarantee: an object is there wholly or not at all. `put` replaces in one step: whoever reads meanwhile, or after
    a crash at any point, gets the old object or the new one. What `get` returns has the digest that `put` computed.
    Of two writers of one name one wins wholly.

    Names are those of `kvrouter.store.names`. Any number of processes may share a store. A connection is made with
    the first call, and made again after it was lost.

    Every method raises `StoreError`, by `reason`: `unavailable` when the backend does not answer in time,
    `bad_name`, and what the method itself names. After `unavailable` a change may have been made or not.
    """

    async def put(
        self,
        bucket: str,
        name: str,
        data: bytes | AsyncIterable[bytes],
        *,
        meta: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        """Store `data` under `name`, durably. With an iterable, one chunk at a time is in memory.

        Raises:
            StoreError: `too_large`, and nothing was stored.
        """
        ...

    async def get(self, bucket: str, name: str) -> bytes:
        """Return the object.

        Raises:
            StoreError: `missing`, or `corrupt`: its bytes are not those that were put.
        """
        ...

    def read(self, bucket: str, name: str) -> AbstractAsyncContextManager[Reading]:
        """Read an object with one piece of it in memory at a time.

        The pieces are the object's only once their iterator has ended by itself: what is damaged shows at the end.

        Raises:
            StoreError: as `get`, when it is entered or by the iterator; `unavailable` as well where the object was
                replaced before its end was reached.
        """
        ...

    async def stat(self, bucket: str, name: str) -> ObjectInfo | None:
        """Return what is known about an object without reading it, None if there is none.

        Raises:
            StoreError: `corrupt`: not even this can be read.
        """
        ...

    async def create_bucket(self, bucket: str) -> None:
        """Make an empty bucket. One that is there stays as it is."""
        ...

    async def buckets(self) -> list[str]:
        """Return the names of all buckets, sorted."""
        ...

    async def list(self, bucket: str) -> list[str]:
        """Return the names of all objects of a bucket, sorted, damaged ones as well; none for an unknown bucket."""
        ...

    async def delete(self, bucket: str, name: str) -> bool:
        """Remove an object; returns whether it was there."""
        ...

    async def delete_bucket(self, bucket: str) -> None:
        """Remove a bucket with all its objects. An unknown one is gone already."""
        ...

    async def close(self) -> None:
        """Close the connection, if there is one. May be called again."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_: object) -> None: ...


def open_object_store(url: str, *, nats_options: Mapping[str, Any] = NO_OPTIONS) -> ObjectStore:
    """Return the store that `url` means; nothing is opened or connected yet.

    `file:///directory` or a path; `memory:`; `nats://host:port/PREFIX` (`tls://` with TLS);
    `redis://host:port/database/PREFIX` (`rediss://` with TLS); `http://host:port` (`https://` with TLS), a server of
    `kvrouter objects`. Prefixes keep several stores on one server apart. User and password stand before the host, the
    key of an object server as the password. `nats_options` are what the NATS client connects with beside the address:
    `tls`, and who we are.

    Raises:
        SettingsError: the URL has none of these forms.
        MissingExtraError: the backend's client is not installed.
    """
    address = parse_store_url(url)
    match address.kind:
        case "file":
            from kvrouter.store.local import LocalObjectStore  # noqa: PLC0415 - only the chosen backend is loaded

            return LocalObjectStore(address.prefix)
        case "memory":
            from kvrouter.store.memory_objects import MemoryObjectStore  # noqa: PLC0415 - as above

            return MemoryObjectStore()
        case "nats":
            from kvrouter.store.nats import NatsObjectStore  # noqa: PLC0415 - as above

            return NatsObjectStore(address.server, prefix=address.prefix, options=nats_options)
        case "redis":
            from kvrouter.store.redis import RedisObjectStore  # noqa: PLC0415 - as above

            return RedisObjectStore(address.server, prefix=address.prefix)
        case "http":
            from kvrouter.store.http_objects import HttpObjectStore  # noqa: PLC0415 - as above

            return HttpObjectStore(address.server)
    raise SettingsError(f"{address.kind} keeps small values only, no objects; name a directory, NATS, Redis or HTTP")
