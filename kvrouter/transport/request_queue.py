"""Requests that wait in a message queue until a worker has time for them, and answers that wait for their requester.

For work that must outlive the process that asks for it. A queued request is worked on at least once, and its answer
comes whole, in one message, or not at all: who wants it item by item sends the request over a request plane.
"""

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Final

import msgspec

from kvrouter.errors import HandlerError, TransportError, WireError
from kvrouter.store.queues import MESSAGE_BYTES_MAX, Message, MessageQueue, MessageQueues, Published, QueueLimits
from kvrouter.transport.context import Context
from kvrouter.transport.dead_letters import RECORD_BYTES, DeadLetters
from kvrouter.transport.messages import DecodedRequest, Request, decode_request, encode_request

__all__ = ["REPLY_TO", "Answer", "QueuedRequest", "RequestQueue", "read_queued"]

REPLY_TO: Final = "kvrouter-reply-to"
"""The header that names the queue for the answer."""
QUEUED_BYTES_MAX: Final = MESSAGE_BYTES_MAX - RECORD_BYTES
"""Of one request, so that its dead letter is not too long."""
_FETCH_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer to the request `id`: all its items, or the error with which it was given up."""

    id: str
    items: tuple[bytes, ...] = ()
    error: TransportError | None = None


class _AnswerRecord(msgspec.Struct, omit_defaults=True):
    id: str
    items: list[bytes] = []
    code: str = ""
    message: str = ""


_encode_answer = msgspec.msgpack.Encoder().encode
_decode_answer = msgspec.msgpack.Decoder(_AnswerRecord).decode


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedRequest:
    """A request as it was queued; `reply_to` is empty if nobody waits for the answer."""

    decoded: DecodedRequest
    reply_to: str


class RequestQueue:
    """Requests for the workers of the queue `name`, usually that of an endpoint, and its dead letters.

    Lives on one event loop. Methods raise `StoreError`.
    """

    def __init__(
        self, queues: MessageQueues, name: str, *, requests_max: int = 100_000, letters_max: int = 10_000
    ) -> None:
        self.name = name
        self.queue: MessageQueue = queues.queue(
            name, QueueLimits(messages_max=requests_max, message_bytes_max=QUEUED_BYTES_MAX)
        )
        self.dead_letters = DeadLetters(queues, name, letters_max=letters_max)
        self._queues = queues

    async def send(self, request: Request, context: Context, *, now: float, reply_to: str = "") -> Published:
        """Queue a request, once for each id of a context; the answer goes to the queue `reply_to`, if it is named.

        `now` is the time of the context's deadline (the loop's). The deadline counts from here on, while it waits too.

        Raises:
            WireError: it is too large, or has further items, which nobody could queue.
            StoreError: the queue is `full`, or the store `unavailable`: send it again, under the same id. `bad_name`:
                the context's id is no message id, or `reply_to` no queue.
        """
        if request.many_in:
            raise WireError("a request with further items cannot be queued", reason="unsupported")
        headers = context.headers
        if reply_to:
            self.answers_queue(reply_to)  # Raises here rather than at the worker if there can be none.
            headers = {**headers, REPLY_TO: reply_to}
        remaining = context.remaining_seconds(now)
        data = encode_request(
            request, id=context.id, headers=headers, remaining_seconds=remaining, bytes_max=QUEUED_BYTES_MAX
        )
        return await self.queue.publish(data, message_id=context.id)

    async def depth(self) -> int:
        """How many requests wait or are worked on."""
        return await self.queue.depth()

    async def replay(self, ids: Iterable[str]) -> list[str]:
        """Put the requests of dead letters back, with all their attempts before them; returns which were there.

        A deadline counts anew.
        """
        return await self.dead_letters.put_back(ids, self.queue)

    def answers_queue(self, reply_to: str) -> MessageQueue:
        """The queue in which answers wait for who asked."""
        return self._queues.queue(reply_to, QueueLimits())

    async def answer(self, reply_to: str, answer: Answer, *, message_id: str) -> None:
        """Put an answer where its requester looks; once for each `message_id`, however often this is repeated.

        Raises:
            StoreError: `too_large`, `full`, or as ever.
        """
        error = answer.error
        record = _AnswerRecord(answer.id, list(answer.items))
        if error is not None:
            record.code, record.message = error.code, str(error)
        await self.answers_queue(reply_to).publish(_encode_answer(record), message_id=message_id)

    async def answers(self, reply_to: str) -> AsyncIterator[Answer]:
        """Yield answers as they come, for ever. One comes again unless the next one was asked for.

        Close it (`aclosing`) to end it. Messages that are no answers are dropped.
        """
        consumer = await self.answers_queue(reply_to).worker_group()
        try:
            while True:
                for delivery in await consumer.fetch(1, wait_seconds=_FETCH_SECONDS):
                    answer = _read_answer(delivery.message)
                    if answer is not None:
                        yield answer
                    await consumer.acknowledge(delivery)
        finally:
            await consumer.close()


def read_queued(message: Message, *, now: float) -> QueuedRequest:
    """Read a queued request; of its deadline, what is left after its time in the queue. `now`: seconds of the epoch.

    The clocks of server and worker should agree as well as deadlines are to be kept.

    Raises:
        WireError: it is no request that can be worked on.
    """
    decoded = decode_request(message.data)
    if decoded.request.many_in:
        raise WireError("a queued request has no further items", reason="unsupported")
    headers = dict(decoded.headers)
    reply_to = headers.pop(REPLY_TO, "")
    remaining = decoded.remaining_seconds
    if remaining is not None:
        remaining -= max(0.0, now - message.published)
    left = DecodedRequest(decoded.id, headers, remaining, decoded.request)
    return QueuedRequest(decoded=left, reply_to=reply_to)


def _read_answer(message: Message) -> Answer | None:
    try:
        record = _decode_answer(message.data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    error = HandlerError(record.message, code=record.code) if record.code else None
    return Answer(id=record.id, items=tuple(record.items), error=error)
