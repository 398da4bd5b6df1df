"""The answers to one request, as they come: bounded, and ended by the service, by a failure or by us.

No connection here: `nats_link.py` gives it messages, failures, and what is to be done at the end.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

from nats.aio.msg import Msg

from kvrouter.errors import DeadlineError, NoInstancesError, TransportError

__all__ = ["Reply", "ReplyStream", "is_no_responders"]

QUEUE_BYTES_MAX = 4 << 20
_NO_RESPONDERS = "503"


class Reply(NamedTuple):
    """What a service answered."""

    data: bytes
    headers: Mapping[str, str] | None


def is_no_responders(message: Msg) -> bool:
    """Whether this is the server's word that nobody listens."""
    return message.headers is not None and message.headers.get("Status") == _NO_RESPONDERS


async def _nothing() -> None:
    """Nothing is to be done at the end."""


class ReplyStream:
    """Messages in the order in which they came. One reader."""

    def __init__(self, *, queue_messages_max: int) -> None:
        self.closing: Callable[[], Awaitable[None]] = _nothing
        self._messages: deque[Reply] = deque()
        self._messages_max, self._bytes = queue_messages_max, 0
        self._failure: TransportError | None = None
        self._news, self._room = asyncio.Event(), asyncio.Event()
        self._closed = False

    async def heard(self, message: Msg) -> None:
        """Take a message; waits while there is no room, so that more stay with the client library, up to its bound."""
        if is_no_responders(message):
            self.fail(NoInstancesError("no service listens on the route's subject"))
        while self._is_full and not self._is_over:
            self._room.clear()
            await self._room.wait()
        if not self._is_over:
            self._messages.append(Reply(message.data, message.headers))
            self._bytes += len(message.data)
            self._news.set()

    def fail(self, error: TransportError) -> None:
        """Nothing comes any more, or something was lost. What came before is given first."""
        if self._failure is None:
            self._failure = error
            self._news.set()
            self._room.set()

    async def next(self, *, timeout_seconds: float) -> Reply:
        """Return the next message.

        Raises:
            TransportError: there is none: what `fail` was told, or a DeadlineError.
        """
        try:
            async with asyncio.timeout(timeout_seconds):
                while not self._messages:
                    if self._failure is not None:
                        raise self._failure
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise DeadlineError(f"the service sent nothing for {timeout_seconds:g} s") from None
        reply = self._messages.popleft()
        self._bytes -= len(reply.data)
        self._room.set()
        return reply

    async def aclose(self) -> None:
        """Take no more, and tell the server so. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._messages.clear()
        self._room.set()
        await self.closing()

    @property
    def _is_full(self) -> bool:
        return len(self._messages) >= self._messages_max or self._bytes >= QUEUE_BYTES_MAX

    @property
    def _is_over(self) -> bool:
        return self._closed or self._failure is not None
