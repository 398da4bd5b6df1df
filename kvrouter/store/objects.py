"""What an object store promises, whatever keeps the objects; and which one a URL means.

For whole things that are written once and read rarely: snapshots of an index, model files. Not for values that
change often or that somebody waits for: those are in `key_values`.
"""

from collections.abc import AsyncIterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, Self

from kvrouter.errors import SettingsError
from kvrouter.store.addresses import StoreAddress, parse_store_url

__all__ = ["ObjectInfo", "ObjectStore", "open_object_store"]


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


class ObjectStore(Protocol):
    """Keeps objects by name in buckets, which come into being with their first object.

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

    async def stat(self, bucket: str, name: str) -> ObjectInfo | None:
        """Return what is known about an object without reading it, None if there is none.

        Raises:
            StoreError: `corrupt`: not even this can be read.
        """
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


def open_object_store(url: str) -> ObjectStore:
    """Return the store that `url` means; nothing is opened or connected yet.

    `file:///directory` or a path; `nats://host:port/PREFIX` (`tls://` with TLS); `redis://host:port/database/PREFIX`
    (`rediss://` with TLS). Prefixes keep several stores on one server apart. User and password stand before the host.

    Raises:
        SettingsError: the URL has none of these forms.
        MissingExtraError: the backend's client is not installed.
    """
    address = parse_store_url(url)
    if address.kind in ("etcd", "memory"):
        raise SettingsError(f"{address.kind} keeps small values only, no objects; name a directory, NATS or Redis")
    return _open(address)


def _open(address: StoreAddress) -> ObjectStore:
    if address.kind == "file":
        from kvrouter.store.local import LocalObjectStore  # noqa: PLC0415 - only the chosen backend is loaded

        return LocalObjectStore(address.prefix)
    if address.kind == "nats":
        from kvrouter.store.nats import NatsObjectStore  # noqa: PLC0415 - as above

        return NatsObjectStore(address.server, prefix=address.prefix)
    from kvrouter.store.redis import RedisObjectStore  # noqa: PLC0415 - as above

    return RedisObjectStore(address.server, prefix=address.prefix)
