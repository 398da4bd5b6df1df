"""Small values with revisions in etcd: keys `PREFIX/bucket/key`, or `bucket/key` where there is no prefix.

A revision is etcd's own `mod_revision`. A value with a lifetime hangs on a lease of its own; etcd counts leases in
whole seconds and gives none under about two. Connections are plain: put a proxy in front where that is not enough.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final, Self
from urllib.parse import unquote, urlsplit

from kvrouter.errors import MissingExtraError, StoreError
from kvrouter.store.key_values import Change, Conflict, Entry, Exists, Synced, check_value
from kvrouter.store.names import check_bucket, check_name
from kvrouter.store.watching import Followed, watched

try:
    import aetcd
    from aetcd import rpc
    from aetcd.exceptions import ClientError, InvalidArgumentError, UnauthenticatedError
    from aetcd.rtypes import EventKind
except ImportError as error:
    raise MissingExtraError("a store on etcd", "etcd") from error

__all__ = ["EtcdKeyValueBucket", "EtcdKeyValueStore"]

_ANSWER_SECONDS: Final = 5
_TOKEN_SECONDS: Final = 60.0
"""For so long an unused token is surely known; etcd forgets it after five minutes, and when it is started anew."""
_CHANNEL: Final = {
    # A server that is silent is noticed, also by those who only follow.
    "grpc.keepalive_time_ms": 5000,
    "grpc.keepalive_timeout_ms": 5000,
    "grpc.keepalive_permit_without_calls": 1,
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 1000,
}


class EtcdKeyValueBucket:
    """A `KeyValueBucket` in etcd; its keys begin with `prefix`."""

    def __init__(self, store: "EtcdKeyValueStore", prefix: str) -> None:
        self._store, self._prefix = store, prefix

    async def get(self, key: str) -> Entry | None:
        """Return the value now; see `KeyValueBucket`."""
        path = self._path(key)
        async with self._store.client() as client:
            found = await client.get(path)
        return None if found is None else Entry(found.value, found.mod_revision)

    async def create(self, key: str, value: bytes, *, ttl_seconds: float | None = None) -> int | Exists:
        """Write a value where there is none; see `KeyValueBucket`."""
        done, revision = await self._write(key, value, 0, ttl_seconds)
        return revision if done else Exists(revision)

    async def update(
        self, key: str, value: bytes, *, expected: int, ttl_seconds: float | None = None
    ) -> int | Conflict:
        """Replace the value of revision `expected`; see `KeyValueBucket`."""
        done, revision = await self._write(key, value, expected, ttl_seconds)
        return revision if done else Conflict(revision or None)

    async def put(self, key: str, value: bytes, *, ttl_seconds: float | None = None) -> int:
        """Write a value whatever is there; see `KeyValueBucket`."""
        _, revision = await self._write(key, value, None, ttl_seconds)
        return revision

    async def delete(self, key: str, *, expected: int | None = None) -> Conflict | None:
        """Remove a value; see `KeyValueBucket`."""
        path = self._path(key)
        async with self._store.client() as client:
            operations = client.transactions
            compare = [] if expected is None else [operations.mod(path) == expected]
            done, answers = await client.transaction(compare, [operations.delete(path)], [operations.get(path)])
        present = None if done else _present(answers)
        return Conflict(present) if present else None

    async def entries(self, prefix: str = "") -> dict[str, Entry]:
        """Return every key with its value; see `KeyValueBucket`."""
        async with self._store.client() as client:
            state, _ = await self._state(client, prefix)
        return state

    def watch(self, prefix: str = "") -> AsyncIterator[Change | Synced]:
        """Follow keys; see `KeyValueBucket`."""
        return watched(lambda: self._following(prefix))

    @contextlib.asynccontextmanager
    async def _following(self, prefix: str) -> AsyncIterator[Followed]:
        async with self._store.client() as client:
            state, revision = await self._state(client, prefix)
            # A revision that etcd has compacted meanwhile fails here, and all is read again.
            watch = await client.watch_prefix((self._prefix + prefix).encode(), start_revision=revision + 1)
            try:
                yield Followed(state, self._changes(watch))
            finally:
                with contextlib.suppress(Exception):  # the connection is lost, and its watches with it
                    await watch.cancel()

    async def _changes(self, watch: Any) -> AsyncIterator[tuple[str, Entry | None]]:
        async for event in watch:
            found = event.kv
            gone = event.kind == EventKind.DELETE
            yield self._name(found.key), None if gone else Entry(found.value, found.mod_revision)
        raise StoreError("etcd: the watch has ended", reason="unavailable")

    async def _state(self, client: Any, prefix: str) -> tuple[dict[str, Entry], int]:
        found = await client.get_prefix((self._prefix + prefix).encode())
        return {self._name(each.key): Entry(each.value, each.mod_revision) for each in found}, found.header.revision

    async def _write(self, key: str, value: bytes, expected: int | None, ttl_seconds: float | None) -> tuple[bool, int]:
        path = self._path(key)
        check_value(value)
        async with self._store.client() as client:
            lease = None if ttl_seconds is None else await client.lease(max(1, math.ceil(ttl_seconds)))
            operations = client.transactions
            compare = [] if expected is None else [operations.mod(path) == expected]
            done, answers = await client.transaction(
                compare, [operations.put(path, value, lease)], [operations.get(path)]
            )
            if not done:
                if lease is not None:
                    await lease.revoke()
                return False, _present(answers)
        return True, answers[0].response_put.header.revision

    def _path(self, key: str) -> bytes:
        return (self._prefix + check_name(key)).encode()

    def _name(self, path: bytes) -> str:
        return path.decode().removeprefix(self._prefix)


class EtcdKeyValueStore:
    """A `KeyValueStore` on the etcd of the URL `server`, under keys that begin with `prefix`."""

    def __init__(self, server: str, *, prefix: str) -> None:
        parts = urlsplit(server)
        self._prefix = prefix
        self._options = {
            "host": parts.hostname,
            "port": parts.port or 2379,
            "username": None if parts.username is None else unquote(parts.username),
            "password": None if parts.password is None else unquote(parts.password),
        }
        self._client: Any = None
        self._opening = asyncio.Lock()
        self._used = 0.0

    def bucket(self, name: str) -> EtcdKeyValueBucket:
        """Return a bucket; see `KeyValueStore`."""
        begins = f"{self._prefix}/" if self._prefix else ""
        return EtcdKeyValueBucket(self, f"{begins}{check_bucket(name)}/")

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Any]:
        """Give the connected client; what fails inside is a `StoreError`."""
        with _etcd_errors():
            async with self._opening:
                if self._client is None:
                    client = aetcd.Client(**self._options, timeout=_ANSWER_SECONDS, options=_CHANNEL)
                    await client.connect()
                    self._client = client
                elif time.monotonic() - self._used > _TOKEN_SECONDS:
                    await self._authenticate(self._client)
            self._used = time.monotonic()
            try:
                yield self._client
            except (UnauthenticatedError, InvalidArgumentError):  # The latter where the users were changed.
                await self._authenticate(self._client)  # For the next call.
                raise

    async def _authenticate(self, client: Any) -> None:
        """Have calls and watches that begin from now on show a new token; where there is none, they tell why."""
        if client is None or self._options["username"] is None:
            return
        request = rpc.AuthenticateRequest(name=self._options["username"], password=self._options["password"])
        with contextlib.suppress(rpc.AioRpcError):
            answer = await client.auth_stub.Authenticate(request, timeout=_ANSWER_SECONDS)
            client.metadata = client._watcher._metadata = (("token", answer.token),)  # noqa: SLF001 - it has no other way

    async def close(self) -> None:
        """Close the connection, if there is one. May be called again."""
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(ClientError):
                await client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


@contextlib.contextmanager
def _etcd_errors() -> Iterator[None]:
    try:
        yield
    except (ClientError, OSError) as error:
        raise StoreError(f"etcd: {type(error).__name__}: {error}", reason="unavailable") from error


def _present(answers: Any) -> int:
    """The revision that a failed comparison found; 0 for no value."""
    return int(answers[0][0][1].mod_revision) if answers and answers[0] else 0
