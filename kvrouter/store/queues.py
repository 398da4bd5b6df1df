"""What a message queue promises: messages in order, kept until they are done with, and given again to whoever lives.

For work that must outlive the process that asked for it, and for events that several readers take at their own pace.
Not for values that have a name: those are in `key_values`.
"""

import re
from dataclasses import dataclass
from typing import Literal, Protocol, Self

from kvrouter.errors import SettingsError, StoreError
from kvrouter.store.addresses import parse_store_url

__all__ = [
    "MESSAGE_BYTES_MAX",
    "WORKER_GROUP",
    "ConsumerInfo",
    "Delivery",
    "Message",
    "MessageQueue",
    "MessageQueues",
    "Published",
    "QueueConsumer",
    "QueueLimits",
    "check_message",
    "check_message_id",
    "open_message_queues",
]

MESSAGE_BYTES_MAX = (1 << 20) - (16 << 10)
"""What every backend takes without being set up for it: a nats-server's limit is 1 MiB, headers and all."""
WORKER_GROUP = "worker-group"

_MESSAGE_ID = re.compile(r"[!-~]{1,256}")


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLimits:
    """What a queue keeps. All who use a queue name the same; where they do not, those may count that made it.

    `work` keeps a message until the one worker group has done with it, and takes no more than `messages_max`. `log`
    keeps the last `messages_max` for everybody. Both forget what is older than `age_seconds_max`, None: nothing. A
    message id is known for `duplicate_seconds`.
    """

    retention: Literal["work", "log"] = "work"
    message_bytes_max: int = MESSAGE_BYTES_MAX
    messages_max: int = 100_000
    age_seconds_max: float | None = None
    duplicate_seconds: float = 120.0


@dataclass(frozen=True, slots=True)
class Published:
    """The message is kept under `sequence`; a `duplicate` was so before."""

    sequence: str
    duplicate: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message. `sequence` names it in its queue; `published` is the time of the epoch, as the server knew it."""

    sequence: str
    data: bytes
    published: float
    id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A message that was given to a consumer, for the `deliveries`-th time; `token` is the backend's."""

    message: Message
    deliveries: int
    token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerInfo:
    """How far a consumer is: `waiting` messages were never delivered, `pending` were, and are not done with."""

    name: str
    waiting: int
    pending: int


class QueueConsumer(Protocol):
    """Takes messages of a queue. Any number of processes may take as one consumer: each message goes to one of them.

    Guarantee: every message is delivered at least once, new ones in the order in which they were published. What is
    neither acknowledged nor extended within `ack_seconds` is delivered again, as is what was given back; only an
    acknowledgement ends that. A consumer that is gone at the server, with its data or for being idle, is made anew by
    the next `fetch`. Methods raise `StoreError` (`unavailable`); what was to be acknowledged may come again then.
    """

    @property
    def name(self) -> str:
        """What the server knows it by."""
        ...

    async def fetch(self, messages_max: int = 16, *, wait_seconds: float = 1.0) -> list[Delivery]:
        """Return what there is, at most `messages_max`; wait so long for the first one. One call at a time."""
        ...

    async def acknowledge(self, *deliveries: Delivery) -> None:
        """These are done with. May be repeated."""
        ...

    async def give_back(self, *deliveries: Delivery, delay_seconds: float = 0.0) -> None:
        """These shall be delivered again, at the earliest after so long."""
        ...

    async def extend(self, *deliveries: Delivery) -> None:
        """These are still worked on: their `ack_seconds` begin anew."""
        ...

    async def close(self) -> None:
        """Take nothing more. The consumer stays at the server, with what it has not acknowledged. Idempotent."""
        ...


class MessageQueue(Protocol):
    """One queue, which comes into being with its first use. Who only publishes makes no consumer.

    A message that was taken is on the server's disk as far as the server's settings promise. Methods raise
    `StoreError`: `unavailable` (a message may have been taken or not: publish again with the same id), and what they
    name themselves.
    """

    @property
    def limits(self) -> QueueLimits:
        """What it keeps."""
        ...

    async def publish(self, data: bytes, *, message_id: str | None = None) -> Published:
        """Append a message. One whose id was published within `duplicate_seconds` is not appended again.

        Raises:
            StoreError: `full`, `too_large`, or `bad_name` for an id that is not 1 to 256 printable ASCII characters.
        """
        ...

    async def worker_group(
        self, name: str = WORKER_GROUP, *, ack_seconds: float = 30.0, orphan_seconds: float | None = None
    ) -> QueueConsumer:
        """Join the group `name`: its members share the messages, from the oldest that is kept.

        With `orphan_seconds` the group is forgotten when no member has fetched for so long.

        Raises:
            StoreError: `unsupported`: a `work` queue has another group already.
        """
        ...

    async def broadcast(
        self, name: str, *, new_only: bool = False, ack_seconds: float = 30.0, orphan_seconds: float = 600.0
    ) -> QueueConsumer:
        """Take every message, beside other consumers: all that are kept, or `new_only` those to come.

        Raises:
            StoreError: `unsupported`: a `work` queue has no such consumers.
        """
        ...

    async def depth(self) -> int:
        """Count the messages that are kept."""
        ...

    async def get(self, sequence: str) -> Message | None:
        """Return a message without taking it, None if it is not kept."""
        ...

    async def browse(self, count: int = 100, *, after: str | None = None) -> list[Message]:
        """Return the oldest messages, behind `after`, without taking them."""
        ...

    async def remove(self, sequence: str) -> bool:
        """Remove a message, whoever may have it in work; returns whether it was there."""
        ...

    async def purge(self) -> None:
        """Remove all messages; consumers stay."""
        ...

    async def consumers(self) -> list[ConsumerInfo]:
        """Return all consumers, sorted by name."""
        ...

    async def delete_consumer(self, name: str) -> bool:
        """Forget a consumer and how far it was; returns whether it was there."""
        ...

    async def delete(self) -> None:
        """Remove the queue with all that is in it. An unknown one is gone already."""
        ...


class MessageQueues(Protocol):
    """Queues on one backend. A connection is made with the first call, and made again after it was lost."""

    def queue(self, name: str, limits: QueueLimits | None = None) -> MessageQueue:
        """Return a queue.

        Raises:
            StoreError: `bad_name`.
        """
        ...

    async def close(self) -> None:
        """Close the connection, if there is one. May be called again."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_: object) -> None: ...


def open_message_queues(url: str) -> MessageQueues:
    """Return the queues that `url` means: `nats://`, `redis://` or `memory:`, by the rules of `open_object_store`.

    Raises:
        SettingsError: the URL has no known form, or names a backend that keeps no queues.
        MissingExtraError: the backend's client is not installed.
    """
    address = parse_store_url(url)
    if address.kind == "memory":
        from kvrouter.store.memory_queues import MemoryMessageQueues  # noqa: PLC0415 - only the chosen one is loaded

        return MemoryMessageQueues()
    if address.kind == "nats":
        from kvrouter.store.nats_queues import NatsMessageQueues  # noqa: PLC0415 - as above

        return NatsMessageQueues(address.server, prefix=address.prefix)
    if address.kind == "redis":
        from kvrouter.store.redis_queues import RedisMessageQueues  # noqa: PLC0415 - as above

        return RedisMessageQueues(address.server, prefix=address.prefix)
    raise SettingsError(f"{address.kind} keeps no message queues; name NATS, Redis or memory:")


def check_message(data: bytes, limits: QueueLimits) -> bytes:
    """Return `data` if it is short enough for a queue.

    Raises:
        StoreError: it is not (`too_large`).
    """
    if len(data) > limits.message_bytes_max:
        message = f"a message of {len(data)} bytes exceeds the queue's limit of {limits.message_bytes_max}"
        raise StoreError(message, reason="too_large")
    return data


def check_message_id(message_id: str | None) -> str | None:
    """Return `message_id` if every backend can hold it.

    Raises:
        StoreError: it cannot (`bad_name`).
    """
    if message_id is not None and _MESSAGE_ID.fullmatch(message_id) is None:
        raise StoreError(f"a message id may not be {message_id[:64]!r}", reason="bad_name")
    return message_id
