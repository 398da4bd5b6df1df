"""The worker's side of a stream: runs the handler of one request and sends what it yields."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias, TypeVar

from kvrouter.errors import DeadlineError, TransportError
from kvrouter.transport.context import Context
from kvrouter.transport.duplex import Duplex, StreamLimits
from kvrouter.transport.messages import Kind, Request, Wire, encode_error

__all__ = ["Handler", "ServerStream", "answering", "closing"]

Item = TypeVar("Item")

_GRACE_SECONDS = 1.0
"""After a deadline the requester kills its request itself; the worker does where that does not arrive."""

Handler: TypeAlias = Callable[[Request, Context], AsyncIterator[bytes] | Awaitable[AsyncIterator[bytes]]]
"""Answers one request with items: an async generator, or a coroutine that returns an async iterator.

What it raises before its first item fails the request, later the stream. It looks at `context.stopped` to end early;
when the context is killed it is cancelled.
"""


class ServerStream(Duplex):
    """One request being worked on. `run` is its task's body, and never raises but CancelledError."""

    def __init__(
        self, wire: Wire, context: Context, limits: StreamLimits, request: Request, *, on_failure: Callable[[], None]
    ) -> None:
        super().__init__(wire, context, limits)
        self._request = request
        self._prologue_sent = False
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._on_failure = on_failure
        if request.many_in:
            self._request = _with_items(request, self)
        else:
            self._inbound.ended = True

    def start(self, handler: Handler) -> "asyncio.Task[None]":
        """Run the handler in a task of its own."""
        self._task = asyncio.create_task(self.run(handler), name=f"handler {self.context.id}")
        if self.context.deadline is not None:
            at = self.context.deadline + _GRACE_SECONDS
            self._timer = asyncio.get_running_loop().call_at(at, self._expire)
        return self._task

    def on_stop(self) -> None:
        """The requester wants no more than what is on its way."""
        self.context.stop()

    def on_kill(self) -> None:
        """The requester is gone: nothing is sent any more, and the handler is cancelled."""
        self.on_error(TransportError(f"request {self.context.id} was killed by its requester", code="CANCELLED"))

    def on_error(self, error: TransportError) -> None:
        """The stream has failed: the handler has nobody to work for."""
        super().on_error(error)
        self._inbound.drop()
        self._give_up()

    def reset(self, error: TransportError, *, kind: Kind = Kind.RESET) -> None:
        """End the stream from this side: nobody gets what the handler would still do."""
        super().reset(error, kind=kind)
        self._give_up()

    async def run(self, handler: Handler) -> None:
        """Answer the request."""
        items: AsyncIterator[bytes] | None = None
        try:
            answer = handler(self._request, self.context)
            items = await answer if inspect.isawaitable(answer) else answer
            async for item in items:
                self._begin()
                await self.send(item)
            self._begin()
            self._finish()
        except asyncio.CancelledError:
            if not self.context.killed:  # the server is stopping
                self._fail(TransportError("the worker was stopped before the answer was complete", code="UNAVAILABLE"))
                raise
        except Exception as error:  # noqa: BLE001 - a handler may raise anything; the peer is told, and it counts
            if not self.context.killed:
                self._on_failure()
                self._fail(error)
        finally:
            close = getattr(items, "aclose", None)
            if close is not None:
                await close()

    def _expire(self) -> None:
        """Nobody waits any more, and nobody has said so."""
        self._fail(DeadlineError(f"request {self.context.id} took longer than its deadline"))
        self._give_up()

    def _give_up(self) -> None:
        self.context.kill()
        if self._task is not None and self._task is not _current_task():
            self._task.cancel()

    def _closed(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _begin(self) -> None:
        if not self._prologue_sent:
            self._prologue_sent = True
            self._wire.transmit(Kind.PROLOGUE)

    def _finish(self) -> None:
        """The answer is whole; what the requester still sends is not wanted."""
        self.end()
        if not self._inbound.ended:
            self._inbound.drop()
            self._end_inbound(None)

    def _fail(self, error: BaseException) -> None:
        told = error if isinstance(error, TransportError) else TransportError(_public_text(error), code="INTERNAL")
        if self._prologue_sent:
            self.reset(told)
            return
        self._prologue_sent = True
        self._wire.transmit(Kind.PROLOGUE, encode_error(told))
        self._outbound.ended = True
        self._inbound.drop()
        self._end_inbound(told)


@asynccontextmanager
async def answering(handler: Handler, request: Request, context: Context) -> AsyncIterator[AsyncIterator[bytes]]:
    """The items of a handler's answer, for whoever wraps it; closed at the end."""
    answer = handler(request, context)
    async with closing(await answer if inspect.isawaitable(answer) else answer) as items:
        yield items


@asynccontextmanager
async def closing(iterator: AsyncIterator[Item]) -> AsyncIterator[AsyncIterator[Item]]:
    """Close a generator that nobody reads to its end, now and not when it is collected."""
    try:
        yield iterator
    finally:
        close = getattr(iterator, "aclose", None)
        if close is not None:
            await close()


def _with_items(request: Request, items: AsyncIterator[bytes]) -> Request:
    return Request(
        endpoint=request.endpoint,
        body=request.body,
        codec=request.codec,
        many_in=True,
        metadata=request.metadata,
        items=items,
    )


def _public_text(error: BaseException) -> str:
    """What a requester may read: an exception's text may hold anything, so only its type."""
    return f"the handler failed: {type(error).__name__}"


def _current_task() -> "asyncio.Task[object] | None":
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None
