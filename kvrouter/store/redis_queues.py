"""Message queues on Redis Streams: a stream for each queue, a consumer group for each consumer.

When a message is delivered again is kept beside each group, in a sorted set of times, and changed with the group by
scripts in one step: XAUTOCLAIM alone knows one time for all messages, and none in the future, as a message has that was
given back with a delay. All members of a group read as one consumer of Redis, so that those that die leave nothing
behind. Keys of a queue share a hash tag, so that a Redis cluster keeps them together.
"""

import math
import re
import time
from collections.abc import Mapping
from typing import Any, Final, Self

from kvrouter.errors import StoreError
from kvrouter.store.names import check_bucket
from kvrouter.store.queues import (
    WORKER_GROUP,
    ConsumerInfo,
    Delivery,
    Message,
    Published,
    QueueLimits,
    check_message,
    check_message_id,
)
from kvrouter.store.redis_connection import connect, redis_errors
from kvrouter.store.redis_queue_scripts import CONSUMERS, DONE, FETCH, FORGET, JOIN, LATER, PUBLISH, PURGE, TRIM

__all__ = ["RedisConsumer", "RedisMessageQueue", "RedisMessageQueues"]

_BLOCK_SECONDS: Final = 0.5
"""How long one wait for new messages is at most: nobody tells what became due again meanwhile."""
_SEQUENCE = re.compile(r"[0-9]{1,20}-[0-9]{1,20}")


class RedisMessageQueue:
    """A `MessageQueue` on Redis."""

    def __init__(self, queues: "RedisMessageQueues", name: str, limits: QueueLimits) -> None:
        self.limits = limits
        self.redis = queues.redis
        self.tag = f"{{{queues.prefix}:{check_bucket(name)}}}:queue"
        self.stream, self.groups = f"{self.tag}:stream", f"{self.tag}:groups"
        self._ids = f"{self.tag}:ids", f"{self.tag}:known"
        self.age_ms = _milliseconds(limits.age_seconds_max)

    async def publish(self, data: bytes, *, message_id: str | None = None) -> Published:
        """Append a message; see `MessageQueue`."""
        check_message(data, self.limits)
        check_message_id(message_id)
        limits = self.limits
        seconds = _milliseconds(limits.duplicate_seconds)
        arguments = (data, message_id or "", seconds, limits.retention, limits.messages_max, self.age_ms)
        sequence, duplicate = await self.run(PUBLISH, (self.stream, *self._ids), *arguments)
        if not sequence:
            raise StoreError(f"the queue holds {limits.messages_max} messages, as many as it may", reason="full")
        return Published(sequence.decode(), duplicate=bool(duplicate))

    async def worker_group(
        self, name: str = WORKER_GROUP, *, ack_seconds: float = 30.0, orphan_seconds: float | None = None
    ) -> "RedisConsumer":
        """Join a group; see `MessageQueue`."""
        return await self._join(name, "0", ack_seconds, orphan_seconds)

    async def broadcast(
        self, name: str, *, new_only: bool = False, ack_seconds: float = 30.0, orphan_seconds: float = 600.0
    ) -> "RedisConsumer":
        """Take every message; see `MessageQueue`."""
        if self.limits.retention == "work":
            raise StoreError("a work queue has one worker group and no other consumers", reason="unsupported")
        return await self._join(name, "$" if new_only else "0", ack_seconds, orphan_seconds)

    async def depth(self) -> int:
        """Count the messages; see `MessageQueue`."""
        return int(await self.run(TRIM, (self.stream,), self.age_ms))

    async def get(self, sequence: str) -> Message | None:
        """Return a message; see `MessageQueue`."""
        found = await self._range(sequence, sequence, 1) if _SEQUENCE.fullmatch(sequence) else []
        return found[0] if found else None

    async def browse(self, count: int = 100, *, after: str | None = None) -> list[Message]:
        """Return the oldest messages; see `MessageQueue`."""
        behind = "-" if after is None or _SEQUENCE.fullmatch(after) is None else f"({after}"
        return await self._range(behind, "+", count)

    async def remove(self, sequence: str) -> bool:
        """Remove a message; see `MessageQueue`."""
        if _SEQUENCE.fullmatch(sequence) is None:
            return False
        with redis_errors():
            return bool(await self.redis.command("XDEL", self.stream, sequence))

    async def purge(self) -> None:
        """Remove all messages; see `MessageQueue`."""
        await self.run(PURGE, (self.stream, self.groups), self.tag)

    async def consumers(self) -> list[ConsumerInfo]:
        """Return all consumers; see `MessageQueue`."""
        found = await self.run(CONSUMERS, (self.stream, self.groups), self.tag, self.limits.retention)
        infos = (ConsumerInfo(name=name.decode(), waiting=waiting, pending=due) for name, waiting, due in found)
        return sorted(infos, key=lambda info: info.name)

    async def delete_consumer(self, name: str) -> bool:
        """Forget a consumer; see `MessageQueue`."""
        return bool(await self.run(FORGET, (self.stream, self.groups, self.due(check_bucket(name))), name))

    async def delete(self) -> None:
        """Remove the queue; see `MessageQueue`."""
        due = [self.due(info.name) for info in await self.consumers()]
        with redis_errors():
            await self.redis.command("DEL", self.stream, self.groups, *self._ids, *due)

    def due(self, name: str) -> str:
        """The key that holds when a group's messages are delivered again."""
        return f"{self.tag}:due:{name}"

    async def run(self, script: str, keys: tuple[str, ...], *arguments: object) -> Any:
        """Run a script."""
        with redis_errors():
            return await self.redis.command("EVAL", script, len(keys), *keys, *arguments)

    async def _join(self, name: str, start: str, ack_seconds: float, orphan_seconds: float | None) -> "RedisConsumer":
        keys = (self.stream, self.groups, self.due(check_bucket(name)))
        orphan_ms = _milliseconds(orphan_seconds)
        joined = await self.run(JOIN, keys, name, start, orphan_ms, self.limits.retention, self.tag)
        if not joined:
            raise StoreError("a work queue has one worker group, and another one is there", reason="unsupported")
        return RedisConsumer(self, name, ack_ms=_milliseconds(ack_seconds), orphan_ms=orphan_ms)

    async def _range(self, first: str, last: str, count: int) -> list[Message]:
        await self.depth()
        with redis_errors():
            found = await self.redis.command("XRANGE", self.stream, first, last, "COUNT", count)
        return [_message(sequence, fields) for sequence, fields in found]


class RedisConsumer:
    """A `QueueConsumer` on Redis."""

    def __init__(self, queue: RedisMessageQueue, name: str, *, ack_ms: int, orphan_ms: int) -> None:
        self.name = name
        self._queue, self._ack_ms, self._orphan_ms = queue, ack_ms, orphan_ms
        self._keys = (queue.stream, queue.groups, queue.due(name))

    async def fetch(self, messages_max: int = 16, *, wait_seconds: float = 1.0) -> list[Delivery]:
        """Return what there is; see `QueueConsumer`."""
        deadline = time.monotonic() + wait_seconds
        while True:
            arguments = (self.name, messages_max, self._ack_ms, self._orphan_ms, self._queue.age_ms)
            found, last, due_ms = await self._queue.run(FETCH, self._keys, *arguments)
            remaining = deadline - time.monotonic()
            if found or remaining <= 0.0:
                return [_delivery(*each) for each in found]
            wait = min(remaining, _BLOCK_SECONDS) if due_ms < 0 else min(remaining, _BLOCK_SECONDS, due_ms / 1000)
            await self._wait(last.decode(), wait)

    async def acknowledge(self, *deliveries: Delivery) -> None:
        """These are done with; see `QueueConsumer`."""
        if deliveries:
            tokens = (delivery.token for delivery in deliveries)
            await self._queue.run(DONE, self._keys, self.name, self._queue.limits.retention, *tokens)

    async def give_back(self, *deliveries: Delivery, delay_seconds: float = 0.0) -> None:
        """These shall be delivered again; see `QueueConsumer`."""
        await self._postpone(deliveries, _milliseconds(delay_seconds))

    async def extend(self, *deliveries: Delivery) -> None:
        """These are still worked on; see `QueueConsumer`."""
        await self._postpone(deliveries, self._ack_ms)

    async def close(self) -> None:
        """Take nothing more; see `QueueConsumer`."""

    async def _postpone(self, deliveries: tuple[Delivery, ...], milliseconds: int) -> None:
        if deliveries:
            tokens = (delivery.token for delivery in deliveries)
            await self._queue.run(LATER, (self._keys[2],), milliseconds, *tokens)

    async def _wait(self, last: str, seconds: float) -> None:
        """Wait for a message behind `last`, without taking it."""
        milliseconds = max(1, math.ceil(seconds * 1000))
        command = ("XREAD", "COUNT", 1, "BLOCK", milliseconds, "STREAMS", self._queue.stream, last)
        with redis_errors():
            await self._queue.redis.command(*command, wait_seconds=seconds)


class RedisMessageQueues:
    """`MessageQueues` on the server of the URL `server`, under keys that begin with `prefix`."""

    def __init__(self, server: str, *, prefix: str) -> None:
        self.redis, self.prefix = connect(server), prefix

    def queue(self, name: str, limits: QueueLimits | None = None) -> RedisMessageQueue:
        """Return a queue; see `MessageQueues`."""
        return RedisMessageQueue(self, name, limits or QueueLimits())

    async def close(self) -> None:
        """Close the connections. May be called again."""
        await self.redis.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _message(sequence: bytes, named: Mapping[bytes, bytes]) -> Message:
    """Read an entry of a stream; one that others wrote may lack everything."""
    text = sequence.decode()
    message_id = named.get(b"id", b"").decode("ascii", "replace") or None
    published = int(text.partition("-")[0]) / 1000
    return Message(sequence=text, data=named.get(b"data", b""), published=published, id=message_id)


def _delivery(sequence: bytes, fields: list[bytes], deliveries: int) -> Delivery:
    named = dict(zip(fields[::2], fields[1::2], strict=True))
    return Delivery(message=_message(sequence, named), deliveries=deliveries, token=sequence.decode())


def _milliseconds(seconds: float | None) -> int:
    """Whole milliseconds; 0 where there is no bound."""
    return 0 if seconds is None else max(0, math.ceil(seconds * 1000))
