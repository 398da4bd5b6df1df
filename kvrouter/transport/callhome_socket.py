"""One TCP connection that carries two-part messages, on either side of a call home."""

import asyncio
import socket
from collections.abc import Callable
from typing import Protocol, cast

from kvrouter.errors import WireError
from kvrouter.transport.duplex import Wakeups
from kvrouter.transport.two_part import MESSAGE_BYTES_MAX, TwoPart, TwoPartReader

__all__ = ["CallHomeSocket", "MessageSink"]

_WAITING_BYTES_MAX = 256 << 10
_SOCKET_BYTES = 512 << 10


class MessageSink(Protocol):
    """Who a connection belongs to at the moment."""

    def on_message(self, message: TwoPart) -> None:
        """A message has arrived; its parts are views that do not last."""
        ...

    def on_gone(self, reason: str) -> None:
        """The connection is lost."""
        ...


class CallHomeSocket(asyncio.Protocol):
    """Messages out, messages in; `sink` may change between two messages. Frames of one turn leave in one write."""

    def __init__(
        self, *, bytes_max: int = MESSAGE_BYTES_MAX, on_open: Callable[["CallHomeSocket"], None] | None = None
    ) -> None:
        self.sink: MessageSink | None = None
        self.is_open = False
        self.surplus = False
        """Whether something arrived that nobody had asked for."""
        self._on_open = on_open
        self._reader = TwoPartReader(bytes_max=bytes_max)
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._out: list[bytes] = []
        self._flush_planned = self._held = self._full = False
        self._taken_bytes = 0
        self._waiting_bytes = 0
        self._room = Wakeups()
        self._reason = "closed by the peer"

    # -- asyncio's calls ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is connected."""
        self._transport = cast("asyncio.Transport", transport)
        raw = transport.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # The kernel would let both grow to many megabytes, of which nobody knows.
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BYTES)
        self.is_open = True
        if self._on_open is not None:
            self._on_open(self)

    def data_received(self, data: bytes) -> None:
        """Bytes have arrived."""
        try:
            for message in self._reader.feed(data):
                if self.sink is None:
                    self.surplus = True
                else:
                    self.sink.on_message(message)
        except WireError as error:
            self.close(str(error))

    def connection_lost(self, exception: Exception | None) -> None:
        """The socket is gone."""
        self.is_open = self._full = False
        self._room.wake()
        sink, self.sink = self.sink, None
        if sink is not None:
            sink.on_gone(f"the connection was lost: {exception or self._reason}")

    def pause_writing(self) -> None:
        """The socket takes no more for now."""
        self._full = True

    def resume_writing(self) -> None:
        """It does again."""
        self._full = False
        self._room.wake()

    # -- its owner's calls -------------------------------------------------------------------------------------------

    def send(self, message: bytes) -> None:
        """Send a message at the end of this turn."""
        if not self.is_open or not message:
            return
        self._out.append(message)
        if not self._flush_planned:
            self._flush_planned = True
            self._loop.call_soon(self._flush)

    async def writable(self) -> None:
        """Wait while the socket takes no more."""
        if self._out:
            self._flush()  # a sender that never waits would never let the turn end
        if self._closing:
            await asyncio.sleep(0)  # nor would it ever hear that the connection is lost
        while self._full:
            await self._room.wait()

    def hold(self, waiting_bytes: int) -> None:
        """So many bytes have arrived that nobody has taken; reading stops while they are too many."""
        self._waiting_bytes += waiting_bytes
        if self._waiting_bytes > _WAITING_BYTES_MAX and not self._held and self._transport is not None:
            self._held = True
            self._transport.pause_reading()

    def give(self, taken_bytes: int) -> None:
        """So many bytes were taken."""
        self._waiting_bytes = max(0, self._waiting_bytes - taken_bytes)
        if self._held and self._waiting_bytes <= _WAITING_BYTES_MAX // 2 and self._transport is not None:
            self._held = False
            if not self._transport.is_closing():
                self._transport.resume_reading()

    def keep_alive(self, seconds: float) -> None:
        """Have the kernel ask for a sign of life after so long a silence, then three times in a third of it each."""
        raw = None if self._transport is None else self._transport.get_extra_info("socket")
        if raw is None:
            return
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):  # not on every system; the kernel's own times hold there
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, round(seconds)))
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, round(seconds / 3)))
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)

    def idle(self) -> None:
        """Belong to nobody, with nothing waiting."""
        self.sink = None
        self.give(self._waiting_bytes)

    def is_usable(self) -> bool:
        """Whether another stream may begin on it."""
        return self.is_open and not self.surplus and not self._reader.waiting_bytes and not self._closing

    def close_now(self) -> None:
        """Send what waits, then close."""
        self.close("closed here")

    def close(self, reason: str) -> None:
        """Send what waits, then close; `reason` is what the sink is told."""
        self._flush()
        self._reason = reason
        if self._transport is not None:
            self._transport.close()

    @property
    def _closing(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def _flush(self) -> None:
        self._flush_planned = False
        out, self._out = self._out, []
        if out and self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(out) if len(out) > 1 else out[0])
