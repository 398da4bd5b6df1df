"""Answers on their way out of a worker over HTTP: what waits to be sent, who fetches it, and until when.

An answer is the wire of its stream: the handler's items wait in it, at most `ITEMS_MAX` or about a MiB of them, until a
response has taken them. One that is fetched by a request of its own (`attached`) is known by its subject; one consumer
may have it, within `attach_seconds`. With `resume_seconds` a consumer that was cut off may come back for what it has
not seen, as long as the last items are kept; without, its loss kills the work. No HTTP here.
"""

import asyncio
import re
from collections import OrderedDict, deque

from kvrouter.errors import RefusedError
from kvrouter.transport.duplex import Wakeups
from kvrouter.transport.http_errors import HttpRefusedError
from kvrouter.transport.messages import Codec, Kind
from kvrouter.transport.server_stream import ServerStream

__all__ = ["ITEMS_MAX", "HttpAnswer", "HttpAnswers"]

ITEMS_MAX = 64
_WAITING_BYTES_MAX = 1 << 20
_GONE_MAX = 4096
_SUBJECT = re.compile(r"[A-Za-z0-9_-]{1,128}")


class HttpAnswer:
    """One answer. `changed` wakes whoever sends it; positions count items from 0."""

    def __init__(self, subject: str, codec: Codec, *, kept_max: int = 0) -> None:
        self.subject, self.codec = subject, codec
        self.stream: ServerStream
        self.changed = Wakeups()
        self.is_begun = self.is_over = False
        """Whether the handler has begun to answer; whether nothing more will come."""
        self.failure: bytes | None = None
        """Why the handler failed before its first item."""
        self.final: bytes | None = None
        """How the answer ended, once it has: empty, or the error."""
        self.is_taken = self.was_taken = False
        """Whether somebody fetches it now, or ever did."""
        self.timer: asyncio.TimerHandle | None = None
        self.kept_max = kept_max
        self._items: deque[bytes] = deque()
        self._first = self._next = self._delivered = 0
        self._waiting_bytes = self._kept_bytes = 0
        self._room = Wakeups()
        self._held = 0
        self._taken = Wakeups()

    # -- the wire of the stream --------------------------------------------------------------------------------------

    def transmit(self, kind: Kind, payload: bytes | memoryview = b"", *, more: bool = False) -> None:
        """See `Wire`."""
        assert not more, "items are never cut here"
        if kind is Kind.DATA:
            self._items.append(bytes(payload))
            self._next += 1
            self._waiting_bytes += len(payload)
        elif kind is Kind.PROLOGUE:
            self.is_begun = not payload
            self.failure = bytes(payload) or None
        elif kind is Kind.END:
            self.final = b""
        elif kind is Kind.RESET:
            self.final = bytes(payload)
        elif kind is Kind.WINDOW:
            self._held -= int.from_bytes(payload, "big")
            self._taken.wake()
        self.changed.wake()

    async def writable(self) -> None:
        """See `Wire`: wait while enough waits to be sent."""
        while not self.is_over and (
            self._next - self._delivered >= ITEMS_MAX or self._waiting_bytes >= _WAITING_BYTES_MAX
        ):
            await self._room.wait()

    def forget(self) -> None:
        """See `Wire`."""
        self.is_over = True
        self.changed.wake()
        self._room.wake()
        self._taken.wake()

    # -- whoever sends it --------------------------------------------------------------------------------------------

    @property
    def is_cut(self) -> bool:
        """Whether nothing more comes, and no end either: it was killed."""
        return self.is_over and self.final is None and self.failure is None

    def item(self, position: int) -> bytes | None:
        """The item at a position, if it is there."""
        return self._items[position - self._first] if self._first <= position < self._next else None

    def has(self, position: int) -> bool:
        """Whether the answer can be sent from there on."""
        return self._first <= position <= self._next

    def delivered(self, position: int) -> None:
        """Items before `position` have left; the last of them are kept for those who come back."""
        while self._delivered < position:
            length = len(self._items[self._delivered - self._first])
            self._waiting_bytes -= length
            self._kept_bytes += length
            self._delivered += 1
        while self._first < self._delivered and (
            self._delivered - self._first > self.kept_max or self._kept_bytes > _WAITING_BYTES_MAX
        ):
            self._kept_bytes -= len(self._items.popleft())
            self._first += 1
        self._room.wake()

    def kill(self) -> None:
        """Nobody wants it any more."""
        if not self.is_over:
            self.stream.on_kill()

    # -- further items of the request --------------------------------------------------------------------------------

    def hold(self, cost: int) -> None:
        """So much was handed to the handler's stream."""
        self._held += cost

    async def wants_more(self, held_max: int) -> None:
        """Wait while the handler has more than that before it."""
        while self._held > held_max and not self.is_over:
            await self._taken.wait()


class HttpAnswers:
    """The answers of one worker, by subject. Those that come inline are known for control alone."""

    def __init__(self, *, attach_seconds: float = 10.0, resume_seconds: float = 0.0, answers_max: int = 4096) -> None:
        self.expired = 0
        """Answers that nobody has fetched in time."""
        self._attach_seconds, self._resume_seconds, self._answers_max = attach_seconds, resume_seconds, answers_max
        self._answers: dict[str, HttpAnswer] = {}
        self._gone: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        """Answers that are under way or wait."""
        return len(self._answers)

    def check(self, subject: str) -> None:
        """Raise RefusedError if there cannot be an answer of that name."""
        if not _SUBJECT.fullmatch(subject):
            raise HttpRefusedError(400, "Invalid message: the subject is no name of letters, digits, - and _")
        if subject in self._answers or subject in self._gone:
            raise HttpRefusedError(409, f"subject {subject} was used before")
        if len(self._answers) >= self._answers_max:
            message = f"{self._answers_max} answers are under way, as many as this worker keeps"
            raise RefusedError(message, code="RESOURCE_EXHAUSTED", retry_after_seconds=1.0)

    def add_inline(self, answer: HttpAnswer) -> None:
        """An answer that its own request fetches."""
        answer.is_taken = True
        self._answers[answer.subject] = answer

    def add(self, answer: HttpAnswer) -> None:
        """An answer that is to be fetched; killed if that does not happen in time."""
        self._answers[answer.subject] = answer
        self._expire_in(answer, self._attach_seconds)

    def kept_max(self) -> int:
        """How many items answers to be fetched keep after they have left."""
        return ITEMS_MAX if self._resume_seconds else 0

    def attach(self, subject: str, position: int) -> HttpAnswer:
        """Take an answer, to send it from `position` on.

        Raises:
            HttpRefusedError: it is unknown (404), somebody has it (409), or it is over or not kept so far back (410).
        """
        answer = self.find(subject)
        if answer.is_taken:
            raise HttpRefusedError(409, f"answer {subject} is fetched by somebody already")
        if not answer.has(position):
            raise HttpRefusedError(410, f"answer {subject} is not kept from item {position} on")
        answer.is_taken = answer.was_taken = True
        _cancel(answer)
        return answer

    def find(self, subject: str) -> HttpAnswer:
        """The answer of a subject; raises HttpRefusedError as `attach`."""
        answer = self._answers.get(subject)
        if answer is None:
            if subject in self._gone:
                raise HttpRefusedError(410, f"answer {subject} is over")
            raise HttpRefusedError(404, f"no answer {subject[:128]!r} is known here")
        return answer

    def leave(self, answer: HttpAnswer) -> None:
        """Whoever fetched it is gone, with all of it or not."""
        answer.is_taken = False
        if self._resume_seconds and answer.kept_max:
            self._expire_in(answer, self._resume_seconds)
        else:
            self.drop(answer)

    def drop(self, answer: HttpAnswer) -> None:
        """Forget an answer, and kill its work if that goes on. Idempotent."""
        _cancel(answer)
        if self._answers.pop(answer.subject, None) is not None:
            self._gone[answer.subject] = None
            if len(self._gone) > _GONE_MAX:
                self._gone.popitem(last=False)
        answer.kill()

    def close(self) -> None:
        """Forget all of them."""
        for answer in tuple(self._answers.values()):
            self.drop(answer)

    def _expire_in(self, answer: HttpAnswer, seconds: float) -> None:
        _cancel(answer)
        answer.timer = asyncio.get_running_loop().call_later(seconds, self._expire, answer)

    def _expire(self, answer: HttpAnswer) -> None:
        self.expired += not answer.was_taken
        self.drop(answer)


def _cancel(answer: HttpAnswer) -> None:
    if answer.timer is not None:
        answer.timer.cancel()
        answer.timer = None
