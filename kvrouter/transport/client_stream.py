"""The requester's side of a stream: the answer as it comes, and control over the work."""

import asyncio
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Self

from kvrouter.errors import DeadlineError, TransportError
from kvrouter.transport.context import Context
from kvrouter.transport.duplex import Duplex, StreamLimits
from kvrouter.transport.messages import Kind, Request, Wire, decode_error

__all__ = ["ClientStream"]


class ClientStream(Duplex):
    """An answer: iterate over its items. Stopping or killing the context stops or kills the work at the peer.

    Leaving `async with`, or `aclose`, kills what has not ended. Items are bytes, in the request's codec.
    """

    def __init__(self, wire: Wire, context: Context, limits: StreamLimits, *, many_in: bool) -> None:
        super().__init__(wire, context, limits)
        self._accepted = self._started = False
        self._outbound.ended = not many_in
        self._unlisten = context.listen(self._context_changed)
        self._when_closed: list[Callable[[], None]] = []
        self._pump: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        if context.deadline is not None:
            self._timer = asyncio.get_running_loop().call_at(context.deadline, self._expire)

    # -- what the transport tells -------------------------------------------------------------------------------------

    def on_ack(self, refusal: bytes | memoryview) -> None:
        """The peer has taken the request, or with a refusal has not."""
        if refusal:
            self.on_error(decode_error(refusal, refused=True))
        else:
            self._accepted = True
            self._changed.wake()

    def on_end(self) -> None:
        """The answer is whole; further items of the request are not wanted any more."""
        self._outbound.ended = True
        super().on_end()

    def on_error(self, error: TransportError) -> None:
        """The stream has failed. A worker that gives up at the requester's deadline may say so before our own timer."""
        deadline = self.context.deadline
        if error.code == DeadlineError.code and deadline is not None and _now() >= deadline:
            error = DeadlineError(str(error))
        super().on_error(error)

    def on_prologue(self, failure: bytes | memoryview) -> None:
        """The peer's handler has begun to answer, or has failed before that."""
        if failure:
            self.on_error(decode_error(failure))
        else:
            self._accepted = self._started = True
            self._changed.wake()

    # -- what the application does ------------------------------------------------------------------------------------

    async def accepted(self) -> None:
        """Wait until the peer has taken the request; raises TransportError if it has not."""
        while not self._accepted and not self._inbound.ended:
            await self._changed.wait()
        if self._inbound.error is not None and not self._accepted:
            raise self._inbound.error

    async def taken(self, request: Request) -> Self:
        """Wait until the peer has taken `request`, and begin to send its further items; closed if it has not."""
        try:
            await self.accepted()
        except BaseException:
            await self.aclose()
            raise
        if request.many_in:
            self.pump(request.items)
        return self

    async def started(self) -> None:
        """Wait until the answer begins; raises TransportError if the handler failed before that."""
        while not self._started and not self._inbound.ended:
            await self._changed.wait()
        if self._inbound.error is not None and not self._started:
            raise self._inbound.error

    def when_closed(self, act: Callable[[], None]) -> None:
        """Call `act` once both directions have ended; at once if they have."""
        if self._forgotten:
            act()
        else:
            self._when_closed.append(act)

    def pump(self, items: AsyncIterator[bytes]) -> None:
        """Send the request's further items in the background, then the end; what they raise kills the work."""
        self._pump = asyncio.create_task(self._send_items(items), name=f"items of {self.context.id}")

    async def collect(self) -> list[bytes]:
        """Every item to the end."""
        return [item async for item in self]

    async def aclose(self) -> None:
        """Kill what has not ended. Idempotent."""
        self._abandon()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._abandon()

    # -- inside -------------------------------------------------------------------------------------------------------

    def _expire(self) -> None:
        self.reset(DeadlineError(f"request {self.context.id} took longer than its deadline"), kind=Kind.KILL)

    def _abandon(self) -> None:
        if not self._inbound.ended or not self._outbound.ended:
            self.reset(_killed(self.context), kind=Kind.KILL)
        self._inbound.drop()

    def _context_changed(self, context: Context) -> None:
        if context.killed:
            self.reset(_killed(context), kind=Kind.KILL)
        else:
            self._wire.transmit(Kind.STOP)

    async def _send_items(self, items: AsyncIterator[bytes]) -> None:
        try:
            await self.send_all(items)
        except TransportError:
            pass  # the stream has failed, and its reader is told why
        except Exception as error:  # noqa: BLE001 - the caller's iterator may raise anything; the reader is told
            failure = TransportError(f"the request's items failed: {type(error).__name__}", code="CANCELLED")
            failure.__cause__ = error
            self.reset(failure, kind=Kind.KILL)

    def _closed(self) -> None:
        self._unlisten()
        if self._pump is not None and self._pump is not asyncio.current_task():
            self._pump.cancel()
        if self._timer is not None:
            self._timer.cancel()
        acts, self._when_closed = self._when_closed, []
        for act in acts:
            act()


def _now() -> float:
    return asyncio.get_running_loop().time()


def _killed(context: Context) -> TransportError:
    return TransportError(f"request {context.id} was killed by its requester", code="CANCELLED")
