"""One multiplexed TCP connection on the event loop: moves bytes between a socket and a `TcpMux`, and keeps it alive.

Frames written within one turn of the loop leave in one write. A connection on which nothing arrived for
`timeout_seconds` is dead, whatever the kernel believes; a ping after `heartbeat_seconds` of silence prevents that.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from kvrouter.transport.duplex import Wakeups
from kvrouter.transport.tcp_mux import TcpMux

__all__ = ["Heartbeat", "TcpConnection", "host_of"]

# Longer payloads are handed to the transport as they are, not joined with their neighbours.
_JOINED_BYTES_MAX = 64 << 10
_WAITING_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """When a silent connection is asked for a sign of life, and when it is given up; seconds."""

    interval_seconds: float = 30.0
    timeout_seconds: float = 60.0


class TcpConnection(asyncio.Protocol):
    """The protocol of asyncio, on either side. `make_mux(connection)` makes the other half."""

    def __init__(
        self,
        make_mux: Callable[["TcpConnection"], TcpMux],
        heartbeat: Heartbeat,
        *,
        on_ready: Callable[["TcpConnection"], None] | None = None,
        on_lost: Callable[["TcpConnection"], None] | None = None,
    ) -> None:
        self.mux = make_mux(self)
        self.close_reason: str | None = None
        self.is_open = False
        self._heartbeat = heartbeat
        self._on_ready, self._on_lost = on_ready, on_lost
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._out: list[bytes | memoryview] = []
        self._flush_planned = self._paused = False
        self._room = Wakeups()
        self._heard_at = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._beat_due = 0.0

    # -- asyncio's calls ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is connected."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_WAITING_BYTES_MAX)
        self.is_open = True
        self.mux.connected(host_of(transport))
        self._heard_at = self._loop.time()
        self._beat_after(self._heartbeat.interval_seconds)

    def data_received(self, data: bytes) -> None:
        """Bytes have arrived."""
        self._heard_at = self._loop.time()
        self.mux.receive(data)

    def pause_writing(self) -> None:
        """The socket takes no more for now."""
        self._paused = True

    def resume_writing(self) -> None:
        """It does again."""
        self._paused = False
        self._room.wake()

    def connection_lost(self, exception: Exception | None) -> None:
        """The socket is gone."""
        self.is_open = self._paused = False
        if self._timer is not None:
            self._timer.cancel()
        if self.close_reason is None:
            self.close_reason = f"the connection was lost: {exception or 'closed by the peer'}"
        self._out.clear()
        self.mux.lost(self.close_reason)
        self._room.wake()
        if self._on_lost is not None:
            self._on_lost(self)

    # -- the mux's calls ---------------------------------------------------------------------------------------------

    def write(self, head: bytes, payload: bytes | memoryview) -> None:
        """Send a frame at the end of this turn of the loop."""
        if not self.is_open or self.close_reason is not None:
            return
        self._out.append(head)
        if payload:
            self._out.append(payload)
        if not self._flush_planned:
            self._flush_planned = True
            self._loop.call_soon(self._flush)

    async def writable(self) -> None:
        """Wait while the socket takes no more."""
        while self._paused:
            await self._room.wait()

    def ready(self) -> None:
        """The handshake is done."""
        if self._on_ready is not None:
            self._on_ready(self)

    def close(self, reason: str) -> None:
        """Send what waits, then close."""
        self._flush()
        if self.close_reason is None:
            self.close_reason = reason
        if self._transport is not None:
            self._transport.close()

    def abort(self, reason: str) -> None:
        """Close at once."""
        if self.close_reason is None:
            self.close_reason = reason
        if self._transport is not None:
            self._transport.abort()

    # -- inside ------------------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        self._flush_planned = False
        out, self._out = self._out, []
        if out and self._transport is not None and not self._transport.is_closing():
            if len(out) <= 2 and len(out[-1]) > _JOINED_BYTES_MAX:
                self._transport.writelines(out)
            else:
                self._transport.write(b"".join(out))

    def _beat(self) -> None:
        now = self._loop.time()
        silent = now - self._heard_at
        # This process itself may have been held up: what has arrived meanwhile is read before the peer is judged.
        held_up = now - self._beat_due > self._heartbeat.interval_seconds
        if silent >= self._heartbeat.timeout_seconds and not held_up:
            self.abort(f"the peer was silent for {silent:.0f} seconds")
            return
        if silent >= self._heartbeat.interval_seconds:
            self.mux.ping()
        next_at = min(self._heartbeat.interval_seconds, self._heartbeat.timeout_seconds - silent)
        self._beat_after(self._heartbeat.interval_seconds if held_up else max(0.01, next_at))

    def _beat_after(self, seconds: float) -> None:
        self._beat_due = self._loop.time() + seconds
        self._timer = self._loop.call_later(seconds, self._beat)


def host_of(transport: asyncio.BaseTransport) -> str:
    """The address of the other end, without its port; '' where it has none."""
    name = transport.get_extra_info("peername")
    return str(name[0]) if isinstance(name, tuple) and name else ""
