"""Small values with revisions in NATS key-value buckets, readable by the `nats` command and by other clients.

A revision is a sequence number of the bucket's stream. Where a value was deleted or has expired, a marker stays for a
while, so that those who watch the bucket see it go. Lifetimes are the server's own, of version 2.11 and later.
"""

import contextlib
import math
from collections.abc import AsyncIterator, Mapping
from typing import Any, Self

from kvrouter.errors import StoreError
from kvrouter.store.addresses import NO_OPTIONS
from kvrouter.store.key_values import Change, Conflict, Entry, Exists, Synced, check_value
from kvrouter.store.names import check_bucket, check_name
from kvrouter.store.nats_connection import (
    JetStreamContext,
    Msg,
    NatsConnection,
    NatsError,
    NatsTimeoutError,
    PushSubscription,
    api,
    errors,
)
from kvrouter.store.watching import Followed, watched

__all__ = ["NatsKeyValueBucket", "NatsKeyValueStore"]

_MARKER_SECONDS = 60
_INACTIVE_SECONDS = 30.0
_SNAPSHOT_SECONDS = 5.0
_IDLE_SECONDS = 2.0
_OPERATION = "KV-Operation"
_MARKER_REASON = "Nats-Marker-Reason"
_WRONG_LAST_SEQUENCE = (10071, 10164)
_NAME_IN_USE = 10058


class NatsKeyValueBucket:
    """A `KeyValueBucket` on NATS, which knows it as `name`."""

    def __init__(self, connection: NatsConnection, name: str) -> None:
        self._connection, self._name = connection, name
        self._stream = f"KV_{name}"
        self._lifetimes: bool | None = None  # Whether the server ends them; None before it was asked.

    async def get(self, key: str) -> Entry | None:
        """Return the value now; see `KeyValueBucket`."""
        check_name(key)
        async with self._connection.jetstream() as jetstream:
            entry, _ = await self._read(jetstream, key)
            return entry

    async def create(self, key: str, value: bytes, *, ttl_seconds: float | None = None) -> int | Exists:
        """Write a value where there is none; see `KeyValueBucket`."""
        check_name(key)
        async with self._connection.jetstream() as jetstream:
            while True:
                entry, last = await self._read(jetstream, key)
                if entry is not None:
                    return Exists(entry.revision)
                revision = await self._write(
                    jetstream, key, check_value(value), expected=last, seconds=self._seconds(ttl_seconds)
                )
                if revision is not None:
                    return revision

    async def update(
        self, key: str, value: bytes, *, expected: int, ttl_seconds: float | None = None
    ) -> int | Conflict:
        """Replace the value of revision `expected`; see `KeyValueBucket`."""
        check_name(key)
        async with self._connection.jetstream() as jetstream:
            await self._ensure(jetstream)
            entry, _ = await self._read(jetstream, key)  # A marker has a revision too, which nobody may expect.
            if entry is not None and entry.revision == expected:
                revision = await self._write(
                    jetstream, key, check_value(value), expected=expected, seconds=self._seconds(ttl_seconds)
                )
                if revision is not None:
                    return revision
                entry, _ = await self._read(jetstream, key)
            return Conflict(None if entry is None else entry.revision)

    async def delete(self, key: str, *, expected: int | None = None) -> Conflict | None:
        """Remove a value; see `KeyValueBucket`."""
        check_name(key)
        async with self._connection.jetstream() as jetstream:
            while True:
                entry, _ = await self._read(jetstream, key)
                if entry is None:
                    return None
                if expected is not None and entry.revision != expected:
                    return Conflict(entry.revision)
                headers = {_OPERATION: "PURGE", api.Header.ROLLUP: "sub"}
                seconds = _MARKER_SECONDS if self._lifetimes else None
                revision = await self._write(
                    jetstream, key, b"", expected=entry.revision, seconds=seconds, headers=headers
                )
                if revision is not None:
                    return None

    async def put(self, key: str, value: bytes, *, ttl_seconds: float | None = None) -> int:
        """Write a value whatever is there; see `KeyValueBucket`."""
        check_name(key)
        async with self._connection.jetstream() as jetstream:
            await self._ensure(jetstream)
            seconds = self._seconds(ttl_seconds)
            revision = await self._write(jetstream, key, check_value(value), expected=None, seconds=seconds)
            assert revision is not None, "nothing was expected"
            return revision

    async def entries(self, prefix: str = "") -> dict[str, Entry]:
        """Return every key with its value; see `KeyValueBucket`."""
        async with self._following(prefix) as (state, _):
            return dict(state)

    def watch(self, prefix: str = "") -> AsyncIterator[Change | Synced]:
        """Follow keys; see `KeyValueBucket`."""
        return watched(lambda: self._following(prefix))

    @contextlib.asynccontextmanager
    async def _following(self, prefix: str) -> AsyncIterator[Followed]:
        async with self._connection.jetstream() as jetstream:
            await self._ensure(jetstream)
            consumer = api.ConsumerConfig(
                deliver_policy=api.DeliverPolicy.LAST_PER_SUBJECT,
                ack_policy=api.AckPolicy.NONE,
                inactive_threshold=_INACTIVE_SECONDS,
                mem_storage=True,
            )
            try:
                subscription = await jetstream.subscribe(
                    self._subject(">"), stream=self._stream, config=consumer, manual_ack=True
                )
            except errors.NotFoundError:
                self._lifetimes = None  # As in `_write`: who only reads must not wait for somebody who writes.
                raise
            try:
                reader = _Reader(subscription, self._subject(""), prefix)
                yield Followed(await reader.state(), reader.changes())
            finally:
                await _end(subscription)

    async def _read(self, jetstream: JetStreamContext, key: str) -> tuple[Entry | None, int]:
        """Return the value now, and the last revision of the key, be it a marker's; 0 if it never had any."""
        await self._ensure(jetstream)
        try:
            message = await jetstream.get_last_msg(self._stream, self._subject(key))
        except errors.NotFoundError:
            return None, 0
        revision, headers = message.seq or 0, message.headers or {}
        if _OPERATION in headers or _MARKER_REASON in headers:
            return None, revision
        return Entry(message.data or b"", revision), revision

    async def _write(
        self,
        jetstream: JetStreamContext,
        key: str,
        value: bytes,
        *,
        expected: int | None,
        seconds: int | None,
        headers: dict[str, Any] | None = None,
    ) -> int | None:
        """Write if the key's last revision is `expected` (None: any); returns the new one, None if it is not."""
        if expected is not None:
            headers = {**(headers or {}), api.Header.EXPECTED_LAST_SUBJECT_SEQUENCE: str(expected)}
        try:
            answer = await jetstream.publish(self._subject(key), value, headers=headers, msg_ttl=seconds)
        except errors.NoStreamResponseError:
            self._lifetimes = None  # The bucket is gone, as after a server lost its data: the next call makes it anew.
            raise
        except errors.APIError as error:
            if error.err_code in _WRONG_LAST_SEQUENCE:
                return None
            raise
        return int(answer.seq)

    async def _ensure(self, jetstream: JetStreamContext) -> None:
        """Make the bucket if it is not there, and learn what the server can do."""
        if self._lifetimes is not None:
            return
        try:
            information = await jetstream.stream_info(self._stream)
        except errors.NotFoundError:
            await self._make(jetstream)
            information = await jetstream.stream_info(self._stream)
        self._lifetimes = bool(information.config.allow_msg_ttl)

    async def _make(self, jetstream: JetStreamContext) -> None:
        settings = api.KeyValueConfig(bucket=self._name, history=1)
        try:
            await jetstream.create_key_value(settings.evolve(limit_marker_ttl=_MARKER_SECONDS))
        except errors.KeyValueLimitMarkerTTLNotSupportedError:
            await jetstream.create_key_value(settings)
        except errors.APIError as error:
            if error.err_code != _NAME_IN_USE:  # Somebody else made it at the same moment.
                raise

    def _seconds(self, ttl_seconds: float | None) -> int | None:
        if ttl_seconds is not None and not self._lifetimes:
            raise StoreError("a value with a lifetime needs nats-server 2.11 or later", reason="unsupported")
        return None if ttl_seconds is None else max(1, math.ceil(ttl_seconds))

    def _subject(self, key: str) -> str:
        return f"$KV.{self._name}.{key}"


class _Reader:
    """Reads a bucket's messages as a consumer delivers them: the last one of every key, then each new one."""

    def __init__(self, subscription: PushSubscription, begins: str, prefix: str) -> None:
        self._subscription, self._begins, self._prefix = subscription, begins, prefix
        self._number = 0

    async def state(self) -> dict[str, Entry]:
        """Every key with its value when the consumer was made, or a moment later."""
        state: dict[str, Entry] = {}
        begun = await self._subscription.consumer_info()
        if not begun.num_pending and not (begun.delivered and begun.delivered.consumer_seq):
            return state
        while True:
            message = await self._subscription.next_msg(timeout=_SNAPSHOT_SECONDS)
            key, entry = self._read(message)
            if entry is None:
                state.pop(key, None)
            elif key.startswith(self._prefix):
                state[key] = entry
            if message.metadata.num_pending == 0:
                return state

    async def changes(self) -> AsyncIterator[tuple[str, Entry | None]]:
        """Each change; raises NatsError when the consumer is gone."""
        while True:
            try:
                message = await self._subscription.next_msg(timeout=_IDLE_SECONDS)
            except NatsTimeoutError:
                await self._subscription.consumer_info()  # Is it there still?
                continue
            key, entry = self._read(message)
            if key.startswith(self._prefix):
                yield key, entry

    def _read(self, message: Msg) -> tuple[str, Entry | None]:
        sequence, self._number = message.metadata.sequence, self._number + 1
        if sequence.consumer != self._number:
            raise ConnectionError(
                f"messages {self._number} to {sequence.consumer - 1} of a bucket's consumer were lost"
            )
        headers = message.headers or {}
        is_marker = _OPERATION in headers or _MARKER_REASON in headers
        key = message.subject.removeprefix(self._begins)
        return key, None if is_marker else Entry(message.data, sequence.stream)


async def _end(subscription: PushSubscription) -> None:
    """Stop a consumer's deliveries; the server removes it soon after."""
    with contextlib.suppress(NatsError, OSError):
        await subscription.unsubscribe()


class NatsKeyValueStore:
    """A `KeyValueStore` on the server of the URL `server`, in buckets whose names begin with `prefix`."""

    def __init__(self, server: str, *, prefix: str, options: Mapping[str, Any] = NO_OPTIONS) -> None:
        self._connection = NatsConnection(server, options)
        self._prefix = prefix

    def bucket(self, name: str) -> NatsKeyValueBucket:
        """Return a bucket; see `KeyValueStore`."""
        return NatsKeyValueBucket(self._connection, f"{self._prefix}-{check_bucket(name)}")

    async def close(self) -> None:
        """Close the connection, if there is one. May be called again."""
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
