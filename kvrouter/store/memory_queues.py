"""Message queues in this process's memory: for one process, for tests, and where nothing is to outlive it.

Pass the same contract as the others. Not shared by processes, and gone with their store.
"""

import asyncio
import contextlib
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import islice
from typing import Self

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

__all__ = ["MemoryConsumer", "MemoryMessageQueue", "MemoryMessageQueues"]


@dataclass(slots=True)
class _Group:
    """How far a consumer is: the last number delivered, and when and how often those were that are not done with."""

    ack_seconds: float
    orphan_seconds: float | None
    seen: float
    delivered: int = 0
    due: dict[int, tuple[float, int]] = field(default_factory=dict)


class MemoryMessageQueue:
    """A `MessageQueue` in memory. Lives on one event loop."""

    def __init__(self, limits: QueueLimits) -> None:
        self.limits = limits
        self._last = 0
        self._messages: OrderedDict[int, Message] = OrderedDict()
        self._ids: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._groups: dict[str, _Group] = {}
        self._changed = asyncio.Event()

    async def publish(self, data: bytes, *, message_id: str | None = None) -> Published:
        """Append a message; see `MessageQueue`."""
        check_message(data, self.limits)
        check_message_id(message_id)
        self._forget_old()
        if message_id is not None and message_id in self._ids:
            return Published(str(self._ids[message_id][0]), duplicate=True)
        if len(self._messages) >= self.limits.messages_max:
            if self.limits.retention == "work":
                raise StoreError(f"the queue holds {len(self._messages)} messages, as many as it may", reason="full")
            self._messages.popitem(last=False)
        self._last += 1
        self._messages[self._last] = Message(
            sequence=str(self._last), data=bytes(data), published=time.time(), id=message_id
        )
        if message_id is not None:
            self._ids[message_id] = self._last, time.monotonic()
        self._tell()
        return Published(str(self._last))

    async def worker_group(
        self, name: str = WORKER_GROUP, *, ack_seconds: float = 30.0, orphan_seconds: float | None = None
    ) -> "MemoryConsumer":
        """Join a group; see `MessageQueue`."""
        self._forget_orphans()
        if self.limits.retention == "work" and set(self._groups) - {check_bucket(name)}:
            raise StoreError("a work queue has one worker group, and another one is there", reason="unsupported")
        return self._consumer(name, 0, ack_seconds, orphan_seconds)

    async def broadcast(
        self, name: str, *, new_only: bool = False, ack_seconds: float = 30.0, orphan_seconds: float = 600.0
    ) -> "MemoryConsumer":
        """Take every message; see `MessageQueue`."""
        self._forget_orphans()
        if self.limits.retention == "work":
            raise StoreError("a work queue has one worker group and no other consumers", reason="unsupported")
        return self._consumer(name, self._last if new_only else 0, ack_seconds, orphan_seconds)

    async def depth(self) -> int:
        """Count the messages; see `MessageQueue`."""
        self._forget_old()
        return len(self._messages)

    async def get(self, sequence: str) -> Message | None:
        """Return a message; see `MessageQueue`."""
        self._forget_old()
        return self._messages.get(_number(sequence))

    async def browse(self, count: int = 100, *, after: str | None = None) -> list[Message]:
        """Return the oldest messages; see `MessageQueue`."""
        self._forget_old()
        behind = 0 if after is None else _number(after)
        return list(islice((message for number, message in self._messages.items() if number > behind), count))

    async def remove(self, sequence: str) -> bool:
        """Remove a message; see `MessageQueue`."""
        return self._messages.pop(_number(sequence), None) is not None

    async def purge(self) -> None:
        """Remove all messages; see `MessageQueue`."""
        self._messages.clear()

    async def consumers(self) -> list[ConsumerInfo]:
        """Return all consumers; see `MessageQueue`."""
        self._forget_orphans()
        self._forget_old()
        return [
            ConsumerInfo(
                name=name,
                waiting=sum(number > group.delivered for number in self._messages),
                pending=sum(number in self._messages for number in group.due),
            )
            for name, group in sorted(self._groups.items())
        ]

    async def delete_consumer(self, name: str) -> bool:
        """Forget a consumer; see `MessageQueue`."""
        return self._groups.pop(check_bucket(name), None) is not None

    async def delete(self) -> None:
        """Remove the queue; see `MessageQueue`."""
        self._messages.clear()
        self._groups.clear()
        self._ids.clear()

    def group(self, name: str, ack_seconds: float, orphan_seconds: float | None, *, delivered: int = 0) -> _Group:
        """Return what is known of a consumer, which is alive now."""
        now = time.monotonic()
        group = self._groups.setdefault(name, _Group(ack_seconds, orphan_seconds, now, delivered))
        group.seen, group.ack_seconds, group.orphan_seconds = now, ack_seconds, orphan_seconds
        return group

    def take(self, group: _Group, messages_max: int) -> list[Delivery]:
        """Deliver what is due again, then what is new."""
        self._forget_old()
        now = time.monotonic()
        group.due = {number: state for number, state in group.due.items() if number in self._messages}
        again = sorted((until, number) for number, (until, _) in group.due.items() if until <= now)
        numbers = [number for _, number in again][:messages_max]
        fresh = (number for number in self._messages if number > group.delivered)
        numbers += islice(fresh, messages_max - len(numbers))
        taken = []
        for number in numbers:
            deliveries = group.due.get(number, (0.0, 0))[1] + 1
            group.due[number] = now + group.ack_seconds, deliveries
            group.delivered = max(group.delivered, number)
            taken.append(Delivery(message=self._messages[number], deliveries=deliveries, token=str(number)))
        return taken

    def done(self, name: str, delivery: Delivery) -> None:
        """A message is done with."""
        number = int(delivery.token)
        if name in self._groups:
            self._groups[name].due.pop(number, None)
        if self.limits.retention == "work":
            self._messages.pop(number, None)

    def postpone(self, name: str, delivery: Delivery, seconds: float) -> None:
        """A message is delivered again after so long."""
        number, group = int(delivery.token), self._groups.get(name)
        if group is not None and number in group.due:
            group.due[number] = time.monotonic() + seconds, group.due[number][1]
            self._tell()

    async def changed(self, group: _Group, deadline: float) -> None:
        """Wait for a message, or until one is due, or the deadline."""
        until = min([deadline, *(until for until, _ in group.due.values())])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, until - time.monotonic())):
                await self._changed.wait()

    def _consumer(
        self, name: str, delivered: int, ack_seconds: float, orphan_seconds: float | None
    ) -> "MemoryConsumer":
        self.group(check_bucket(name), ack_seconds, orphan_seconds, delivered=delivered)
        return MemoryConsumer(self, name, ack_seconds, orphan_seconds)

    def _forget_old(self) -> None:
        limits = self.limits
        if limits.age_seconds_max is not None:
            oldest = time.time() - limits.age_seconds_max
            while self._messages and next(iter(self._messages.values())).published < oldest:
                self._messages.popitem(last=False)
        known_since = time.monotonic() - limits.duplicate_seconds
        while self._ids and next(iter(self._ids.values()))[1] < known_since:
            self._ids.popitem(last=False)

    def _forget_orphans(self) -> None:
        now = time.monotonic()
        for name, group in tuple(self._groups.items()):
            if group.orphan_seconds is not None and group.seen + group.orphan_seconds < now:
                del self._groups[name]

    def _tell(self) -> None:
        """Wake all that wait now."""
        self._changed.set()
        self._changed = asyncio.Event()


class MemoryConsumer:
    """A `QueueConsumer` in memory."""

    def __init__(self, queue: MemoryMessageQueue, name: str, ack_seconds: float, orphan_seconds: float | None) -> None:
        self.name = name
        self._queue, self._settings = queue, (name, ack_seconds, orphan_seconds)
        self._ack_seconds = ack_seconds

    async def fetch(self, messages_max: int = 16, *, wait_seconds: float = 1.0) -> list[Delivery]:
        """Return what there is; see `QueueConsumer`."""
        deadline = time.monotonic() + wait_seconds
        while True:
            group = self._queue.group(*self._settings)
            taken = self._queue.take(group, messages_max)
            if taken or time.monotonic() >= deadline:
                return taken
            await self._queue.changed(group, deadline)

    async def acknowledge(self, *deliveries: Delivery) -> None:
        """These are done with; see `QueueConsumer`."""
        for delivery in deliveries:
            self._queue.done(self.name, delivery)

    async def give_back(self, *deliveries: Delivery, delay_seconds: float = 0.0) -> None:
        """These shall be delivered again; see `QueueConsumer`."""
        for delivery in deliveries:
            self._queue.postpone(self.name, delivery, delay_seconds)

    async def extend(self, *deliveries: Delivery) -> None:
        """These are still worked on; see `QueueConsumer`."""
        await self.give_back(*deliveries, delay_seconds=self._ack_seconds)

    async def close(self) -> None:
        """Take nothing more; see `QueueConsumer`."""


class MemoryMessageQueues:
    """`MessageQueues` in memory: queues of one name are one queue."""

    def __init__(self) -> None:
        self._queues: dict[str, MemoryMessageQueue] = {}

    def queue(self, name: str, limits: QueueLimits | None = None) -> MemoryMessageQueue:
        """Return a queue; see `MessageQueues`."""
        return self._queues.setdefault(check_bucket(name), MemoryMessageQueue(limits or QueueLimits()))

    async def close(self) -> None:
        """Do nothing: there is no connection."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _number(sequence: str) -> int:
    return int(sequence) if sequence.isdecimal() and sequence.isascii() else 0
