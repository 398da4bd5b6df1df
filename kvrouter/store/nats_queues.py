"""Message queues on NATS JetStream: a stream for each queue, a durable pull consumer for each consumer.

The stream of queue `name` is `PREFIX-name` and takes the subjects `PREFIX-name.*`; we publish to `PREFIX-name.queue`.
No bound on deliveries is set at the server: it would leave messages behind that nobody is given and nobody is told of.
Who takes a message sees how often it was delivered, and decides.
"""

from typing import Any, Final, Self

from kvrouter.errors import StoreError
from kvrouter.store.names import check_bucket
from kvrouter.store.nats_connection import JetStreamContext, MaxPayloadError, NatsConnection, api, errors
from kvrouter.store.nats_pull import NatsConsumer
from kvrouter.store.queues import (
    WORKER_GROUP,
    ConsumerInfo,
    Message,
    Published,
    QueueLimits,
    check_message,
    check_message_id,
)

__all__ = ["NatsMessageQueue", "NatsMessageQueues"]

_HEADER_BYTES = 4 << 10
_NAME_IN_USE = 10058
_MESSAGES_FULL = 10077
_WORK_QUEUE_CONSUMER = (10098, 10099, 10100, 10101)
_CONSUMERS_PER_PAGE = 256
_TRIES: Final = 3


class NatsMessageQueue:
    """A `MessageQueue` on NATS, which knows it as the stream `name`."""

    def __init__(self, connection: NatsConnection, name: str, limits: QueueLimits) -> None:
        self.limits = limits
        self._connection, self._name = connection, name
        self._subject = f"{name}.queue"
        self._made = False

    async def publish(self, data: bytes, *, message_id: str | None = None) -> Published:
        """Append a message; see `MessageQueue`."""
        check_message(data, self.limits)
        headers: dict[str, Any] | None = None
        if check_message_id(message_id) is not None:
            headers = {api.Header.MSG_ID: message_id}
        async with self._connection.jetstream() as jetstream:
            for _ in range(_TRIES):
                await self._ensure(jetstream)
                try:
                    answer = await jetstream.publish(self._subject, data, headers=headers, stream=self._name)
                except errors.NoStreamResponseError:
                    self._made = False  # The server lost its data, or somebody deleted the queue.
                except MaxPayloadError as error:
                    message = f"a message of {len(data)} bytes exceeds the server's max_payload"
                    raise StoreError(message, reason="too_large") from error
                except errors.APIError as error:
                    raise _told(error, self.limits) from error
                else:
                    return Published(str(answer.seq), duplicate=bool(answer.duplicate))
        raise StoreError("NATS: the queue's stream is deleted again and again", reason="unavailable")

    async def worker_group(
        self, name: str = WORKER_GROUP, *, ack_seconds: float = 30.0, orphan_seconds: float | None = None
    ) -> NatsConsumer:
        """Join a group; see `MessageQueue`."""
        return await self._consumer(name, api.DeliverPolicy.ALL, ack_seconds, orphan_seconds)

    async def broadcast(
        self, name: str, *, new_only: bool = False, ack_seconds: float = 30.0, orphan_seconds: float = 600.0
    ) -> NatsConsumer:
        """Take every message; see `MessageQueue`."""
        if self.limits.retention == "work":
            raise StoreError("a work queue has one worker group and no other consumers", reason="unsupported")
        policy = api.DeliverPolicy.NEW if new_only else api.DeliverPolicy.ALL
        return await self._consumer(name, policy, ack_seconds, orphan_seconds)

    async def depth(self) -> int:
        """Count the messages; see `MessageQueue`."""
        async with self._connection.jetstream() as jetstream:
            try:
                return int((await jetstream.stream_info(self._name)).state.messages)
            except errors.NotFoundError:
                return 0

    async def get(self, sequence: str) -> Message | None:
        """Return a message; see `MessageQueue`."""
        number = _number(sequence)
        async with self._connection.jetstream() as jetstream:
            try:
                return _message(await jetstream.get_msg(self._name, number)) if number else None
            except errors.NotFoundError:
                return None

    async def browse(self, count: int = 100, *, after: str | None = None) -> list[Message]:
        """Return the oldest messages; see `MessageQueue`."""
        found: list[Message] = []
        number = 0 if after is None else _number(after)
        async with self._connection.jetstream() as jetstream:
            while len(found) < count:
                try:
                    raw = await jetstream.get_msg(self._name, number + 1, subject=f"{self._name}.*", next=True)
                except errors.NotFoundError:
                    break
                number = raw.seq or number + 1
                found.append(_message(raw))
        return found

    async def remove(self, sequence: str) -> bool:
        """Remove a message; see `MessageQueue`."""
        number = _number(sequence)
        if not number or await self.get(sequence) is None:
            return False
        async with self._connection.jetstream() as jetstream:
            try:
                return bool(await jetstream.delete_msg(self._name, number))
            except errors.APIError:
                if await self.get(sequence) is None:  # Somebody else removed it at the same moment.
                    return False
                raise

    async def purge(self) -> None:
        """Remove all messages; see `MessageQueue`."""
        async with self._connection.jetstream() as jetstream:
            try:
                await jetstream.purge_stream(self._name)
            except errors.NotFoundError:
                return

    async def consumers(self) -> list[ConsumerInfo]:
        """Return all consumers; see `MessageQueue`."""
        found: list[api.ConsumerInfo] = []
        async with self._connection.jetstream() as jetstream:
            try:
                while not len(found) % _CONSUMERS_PER_PAGE:
                    page = await jetstream.consumers_info(self._name, offset=len(found))
                    found += page
                    if not page:
                        break
            except errors.NotFoundError:
                return []
        infos = (
            ConsumerInfo(name=each.name, waiting=each.num_pending or 0, pending=each.num_ack_pending or 0)
            for each in found
        )
        return sorted(infos, key=lambda info: info.name)

    async def delete_consumer(self, name: str) -> bool:
        """Forget a consumer; see `MessageQueue`."""
        async with self._connection.jetstream() as jetstream:
            try:
                return bool(await jetstream.delete_consumer(self._name, check_bucket(name)))
            except errors.NotFoundError:
                return False

    async def delete(self) -> None:
        """Remove the queue; see `MessageQueue`."""
        self._made = False
        async with self._connection.jetstream() as jetstream:
            try:
                await jetstream.delete_stream(self._name)
            except errors.NotFoundError:
                return

    async def _consumer(
        self, name: str, policy: api.DeliverPolicy, ack_seconds: float, orphan_seconds: float | None
    ) -> NatsConsumer:
        config = api.ConsumerConfig(
            durable_name=check_bucket(name),
            deliver_policy=policy,
            ack_policy=api.AckPolicy.EXPLICIT,
            ack_wait=ack_seconds,
            max_deliver=-1,
            max_ack_pending=-1,
            inactive_threshold=orphan_seconds,
        )
        await self._ensure_consumer(config)
        config = config.evolve(deliver_policy=api.DeliverPolicy.ALL)

        async def again() -> None:
            """The consumer is gone; everything in a stream that was lost as well is new."""
            self._made = False
            await self._ensure_consumer(config)

        return NatsConsumer(self._connection, self._name, name, again)

    async def _ensure_consumer(self, config: api.ConsumerConfig) -> None:
        async with self._connection.jetstream() as jetstream:
            await self._ensure(jetstream)
            try:
                there = (await jetstream.consumer_info(self._name, config.durable_name or "")).config
            except errors.NotFoundError:
                await self._add_consumer(jetstream, config)
                return
            if there.ack_wait != config.ack_wait or (there.inactive_threshold or None) != config.inactive_threshold:
                # Where it began cannot be changed; the server compares all of that.
                changed = there.evolve(ack_wait=config.ack_wait, inactive_threshold=config.inactive_threshold)
                await self._add_consumer(jetstream, changed)

    async def _add_consumer(self, jetstream: JetStreamContext, config: api.ConsumerConfig) -> None:
        try:
            await jetstream.add_consumer(self._name, config)
        except errors.APIError as error:
            if error.err_code in _WORK_QUEUE_CONSUMER:
                message = "a work queue has one worker group, and another one is there"
                raise StoreError(message, reason="unsupported") from error
            raise

    async def _ensure(self, jetstream: JetStreamContext) -> None:
        """Make the stream if it is not there."""
        if self._made:
            return
        try:
            await jetstream.stream_info(self._name)
        except errors.NotFoundError:
            try:
                await jetstream.add_stream(self._stream())
            except errors.APIError as error:
                if error.err_code != _NAME_IN_USE:  # Somebody else made it at the same moment, with other limits.
                    raise
        self._made = True

    def _stream(self) -> api.StreamConfig:
        limits, is_work = self.limits, self.limits.retention == "work"
        ages = [seconds for seconds in (limits.age_seconds_max, limits.duplicate_seconds) if seconds is not None]
        return api.StreamConfig(
            name=self._name,
            subjects=[f"{self._name}.*"],
            retention=api.RetentionPolicy.WORK_QUEUE if is_work else api.RetentionPolicy.LIMITS,
            discard=api.DiscardPolicy.NEW if is_work else api.DiscardPolicy.OLD,
            storage=api.StorageType.FILE,
            max_msgs=limits.messages_max,
            max_msg_size=limits.message_bytes_max + _HEADER_BYTES,
            max_age=limits.age_seconds_max or 0,
            duplicate_window=min(ages),  # The server refuses one that is longer than messages live.
        )


class NatsMessageQueues:
    """`MessageQueues` on the server of the URL `server`, in streams whose names begin with `prefix`."""

    def __init__(self, server: str, *, prefix: str) -> None:
        self._connection = NatsConnection(server)
        self._prefix = prefix

    def queue(self, name: str, limits: QueueLimits | None = None) -> NatsMessageQueue:
        """Return a queue; see `MessageQueues`."""
        return NatsMessageQueue(self._connection, f"{self._prefix}-{check_bucket(name)}", limits or QueueLimits())

    async def close(self) -> None:
        """Close the connection, if there is one. May be called again."""
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _told(error: errors.APIError, limits: QueueLimits) -> StoreError:
    if error.err_code == _MESSAGES_FULL:
        return StoreError(f"the queue holds {limits.messages_max} messages, as many as it may", reason="full")
    return StoreError(f"NATS: {error}", reason="unavailable")


def _message(raw: api.RawStreamMsg) -> Message:
    published = 0.0 if raw.time is None else raw.time.timestamp()
    message_id = (raw.headers or {}).get(api.Header.MSG_ID)
    return Message(sequence=str(raw.seq), data=raw.data or b"", published=published, id=message_id)


def _number(sequence: str) -> int:
    return int(sequence) if sequence.isascii() and sequence.isdecimal() else 0
