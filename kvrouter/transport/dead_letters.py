"""Requests that were given up: kept with the reason until somebody looks at them, puts them back, or throws them away.

A dead letter holds the whole request, as it was queued. Nothing here works on requests or decides about them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import msgspec

from kvrouter.store.queues import MESSAGE_BYTES_MAX, Message, MessageQueue, MessageQueues, QueueLimits

__all__ = ["DeadLetter", "DeadLetters"]

RECORD_BYTES: Final = 16 << 10
"""What a dead letter may have beside the request."""
_TEXT_MAX = 4096
_NAME_MAX = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """One request that was given up after `attempts` deliveries, at `died`, in seconds of the epoch.

    `reason` is the code of the last failure (`INTERNAL`, `DEADLINE_EXCEEDED`, ...), `malformed` for what is no request,
    or `abandoned` for one whose workers all died of it; `text` says more. `queued` is when it came into the queue.
    """

    id: str
    request_id: str
    endpoint: str
    reason: str
    text: str
    attempts: int
    queued: float
    died: float
    message: bytes


class _Record(msgspec.Struct):
    request_id: str
    endpoint: str
    reason: str
    text: str
    attempts: int
    queued: float
    died: float
    message: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Record).decode


class DeadLetters:
    """The dead letters of the queue `name`, in a queue of their own beside it.

    It is never emptied by itself. When it is full, a request stays in its queue and is tried again until there is
    room: nothing is lost.
    """

    def __init__(self, queues: MessageQueues, name: str, *, letters_max: int = 10_000) -> None:
        limits = QueueLimits(messages_max=letters_max, message_bytes_max=MESSAGE_BYTES_MAX)
        self._letters = queues.queue(f"{name}-dead", limits)

    async def bury(
        self, message: Message, *, request_id: str, endpoint: str, reason: str, text: str, attempts: int, died: float
    ) -> None:
        """Keep what was given up; once, however often this is repeated.

        Raises:
            StoreError: `full`, or `unavailable`.
        """
        record = _Record(
            request_id=request_id[:_NAME_MAX],
            endpoint=endpoint[:_NAME_MAX],
            reason=reason[:_NAME_MAX],
            text=text[:_TEXT_MAX],
            attempts=attempts,
            queued=message.published,
            died=died,
            message=message.data,
        )
        await self._letters.publish(_encode(record), message_id=f"{message.sequence}@{message.published:.6f}")

    async def count(self) -> int:
        """How many there are."""
        return await self._letters.depth()

    async def browse(self, count: int = 100, *, after: str | None = None) -> list[DeadLetter]:
        """Return the oldest ones, behind the one whose `id` is `after`."""
        return [_letter(message) for message in await self._letters.browse(count, after=after)]

    async def get(self, id: str) -> DeadLetter | None:  # noqa: A002 - the field's name
        """Return one, None if it is not there any more."""
        message = await self._letters.get(id)
        return None if message is None else _letter(message)

    async def discard(self, ids: Iterable[str]) -> int:
        """Throw these away; returns how many there were."""
        return sum([await self._letters.remove(each) for each in ids])

    async def put_back(self, ids: Iterable[str], queue: MessageQueue) -> list[str]:
        """Append the requests of these to `queue`; returns the ids of those that were there.

        One that is put back twice, as after a lost answer, is queued once.

        Raises:
            StoreError: `full`, or `unavailable`; what was not put back is kept.
        """
        done = []
        for each in ids:
            letter = await self.get(each)
            if letter is None:
                continue
            await queue.publish(letter.message, message_id=f"replay@{each}@{letter.died:.6f}")
            await self._letters.remove(each)
            done.append(each)
        return done


def _letter(message: Message) -> DeadLetter:
    try:
        record = _decode(message.data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        # Somebody else wrote it; it can be seen and thrown away.
        record = _Record("", "", "malformed", "not a dead letter", 0, 0.0, message.published, message.data)
    return DeadLetter(
        id=message.sequence,
        request_id=record.request_id,
        endpoint=record.endpoint,
        reason=record.reason,
        text=record.text,
        attempts=record.attempts,
        queued=record.queued,
        died=record.died,
        message=record.message,
    )
