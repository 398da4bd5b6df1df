"""One side of one stream: what both sides have in common, whatever carries it.

A transport feeds it with what arrives (`on_...`) and gives it a `Wire` to send on; the application reads and writes
items. Exactly one of END, KILL and an error ends a direction; what arrives after it is a fault of that stream only.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Self

from kvrouter.errors import DisconnectedError, ProtocolError, RefusedError, TransportError
from kvrouter.transport.context import Context
from kvrouter.transport.flow import WINDOW_BYTES, CreditError, Inbound, Outbound
from kvrouter.transport.messages import Kind, Wire, encode_error
from kvrouter.transport.two_part import MESSAGE_BYTES_MAX

__all__ = ["Duplex", "StreamLimits", "Wakeups"]


class StreamLimits:
    """Bounds of one stream, in bytes: the windows of both directions, one message on the wire, one item.

    Not `enforced` is for transports that hold up the sender by other means; WINDOW tells their wire what was taken.
    """

    __slots__ = ("enforced", "frame_bytes_max", "item_bytes_max", "peer_window_bytes", "window_bytes")

    def __init__(
        self,
        *,
        window_bytes: int = WINDOW_BYTES,
        peer_window_bytes: int = WINDOW_BYTES,
        frame_bytes_max: int = 1 << 20,
        item_bytes_max: int = MESSAGE_BYTES_MAX,
        enforced: bool = True,
    ) -> None:
        self.enforced = enforced
        self.window_bytes, self.peer_window_bytes = window_bytes, peer_window_bytes
        self.frame_bytes_max, self.item_bytes_max = frame_bytes_max, item_bytes_max


class Wakeups:
    """Lets coroutines wait for something to change. A waiter looks again after each wake-up."""

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: list[asyncio.Future[None]] = []

    def wake(self) -> None:
        """Wake all that wait now."""
        if self._waiters:
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    async def wait(self) -> None:
        """Wait for the next wake-up."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter


class Duplex:
    """The items of a stream in both directions, its context, and how it ends. Lives on one event loop."""

    def __init__(self, wire: Wire, context: Context, limits: StreamLimits) -> None:
        self.context = context
        self._wire = wire
        self._inbound = Inbound(
            window_bytes=limits.window_bytes, item_bytes_max=limits.item_bytes_max, enforced=limits.enforced
        )
        self._outbound = Outbound(window_bytes=limits.peer_window_bytes, frame_bytes_max=limits.frame_bytes_max)
        self._changed = Wakeups()
        self._forgotten = False
        self.items_in = 0

    @property
    def error(self) -> TransportError | None:
        """Why the stream failed; None while it has not."""
        return self._inbound.error

    @property
    def is_whole(self) -> bool:
        """Everything has arrived, and has been taken; the stream has not failed."""
        return self._inbound.ended and self._inbound.error is None and not len(self._inbound)

    @property
    def waiting(self) -> int:
        """Items that can be taken without waiting."""
        return len(self._inbound)

    # -- what the transport tells -------------------------------------------------------------------------------------

    def on_data(self, piece: bytes, *, more: bool = False) -> None:
        """A piece of an item has arrived. Raises CreditError where the peer had no credit for it."""
        try:
            self._inbound.put(piece, more=more)
        except CreditError as error:
            self.reset(error)
            raise
        except (ProtocolError, RefusedError) as error:
            self.reset(error)
            return
        if more:
            self._grant()
        else:
            self.items_in += 1
            self._changed.wake()

    def on_end(self) -> None:
        """The peer has sent its last item."""
        self._end_inbound(None)

    def on_window(self, credit: int) -> None:
        """The peer takes so many bytes more."""
        self._outbound.credit += credit
        self._changed.wake()

    def on_error(self, error: TransportError) -> None:
        """The stream has failed, at the peer or on the way."""
        self._outbound.ended = True
        self._end_inbound(error)

    def on_lost(self, reason: str) -> None:
        """The connection is gone."""
        if not self._inbound.ended or not self._outbound.ended:
            self.on_error(DisconnectedError(reason, retryable=self.items_in == 0))

    # -- what the application does ------------------------------------------------------------------------------------

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """The next item from the peer; raises TransportError where the stream has failed."""
        inbound = self._inbound
        while not len(inbound):
            if inbound.ended:
                if inbound.error is not None:
                    raise inbound.error
                raise StopAsyncIteration
            await self._changed.wait()
        item = inbound.take()
        self._grant()
        return item

    async def send(self, item: bytes | memoryview) -> None:
        """Send an item; waits while the peer has no room for it.

        Raises:
            TransportError: the stream has failed, or this direction has ended.
        """
        outbound = self._outbound
        for piece, more in outbound.pieces(item):
            while not outbound.ended and not outbound.spend(piece):
                await self._changed.wait()
            if outbound.ended:
                raise self._inbound.error or ProtocolError("nothing can be sent after the end of the stream")
            self._wire.transmit(Kind.DATA, piece, more=more)
        await self._wire.writable()

    async def send_all(self, items: AsyncIterator[bytes]) -> None:
        """Send every item, then the end."""
        async for item in items:
            await self.send(item)
        self.end()

    def end(self) -> None:
        """Say that nothing more will be sent. Idempotent."""
        if not self._outbound.ended:
            self._outbound.ended = True
            self._wire.transmit(Kind.END)
            self._settle()

    def reset(self, error: TransportError, *, kind: Kind = Kind.RESET) -> None:
        """End both directions because of `error`, and tell the peer."""
        if not self._outbound.ended or not self._inbound.ended:
            self._wire.transmit(kind, b"" if kind is Kind.KILL else encode_error(error))
        self._outbound.ended = True
        self._inbound.drop()
        self._end_inbound(error)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _end_inbound(self, error: TransportError | None) -> None:
        self._inbound.end(error)
        self._changed.wake()
        self._settle()

    def _grant(self) -> None:
        credit = self._inbound.grant()
        if credit:
            self._wire.transmit(Kind.WINDOW, credit.to_bytes(4, "big"))

    def _settle(self) -> None:
        """Let go of what is held for the stream once both directions have ended."""
        if self._inbound.ended and self._outbound.ended and not self._forgotten:
            self._forgotten = True
            self._wire.forget()
            self._closed()

    def _closed(self) -> None:
        """Both directions have ended; called once."""
