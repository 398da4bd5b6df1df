"""One HTTP/2 connection of a client: streams over one socket, each with its own windows, and signs of life.

The state machine is h2's; this moves bytes. A stream's window is opened only as its reader takes what has come, the
connection's as data arrive: so a slow reader holds up its own stream and no other. A farewell of the peer (GOAWAY)
ends the connection and its streams at once: h2 takes no data afterwards, so servers finish their work before it.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias, cast

from kvrouter.transport.duplex import Wakeups
from kvrouter.transport.http2 import STREAM_OVER, h2
from kvrouter.transport.tcp_connection import Heartbeat

__all__ = ["Header", "HttpConnection", "HttpExchange", "Receiver"]

STREAM_WINDOW_BYTES = 256 << 10
_CONNECTION_WINDOW_BYTES = 1 << 26
_CONNECTION_CREDIT_BYTES = 1 << 20
"""What has come is told in such pieces: a frame for each few bytes would cost more than they do."""
_FRAME_BYTES_MAX = 1 << 20
_WAITING_BYTES_MAX = 1 << 20
_HEADERS_BYTES_MAX = 64 << 10

Header: TypeAlias = tuple[str, str]


class Receiver(Protocol):
    """Who is told what happens on one stream. Calls come in order, `on_close` once and last."""

    def on_response(self, status: int, headers: dict[str, str]) -> None:
        """The headers have arrived."""
        ...

    def on_bytes(self, data: bytes) -> None:
        """A piece of the body has arrived; the stream's window is opened for it by `HttpExchange.credit`."""
        ...

    def on_close(self, reason: str | None) -> None:
        """The stream has ended: as it should, or for that reason."""
        ...


class HttpExchange:
    """One request and its response."""

    __slots__ = ("_connection", "_ended", "_finished", "_out", "_out_bytes", "_room", "id", "receiver")

    def __init__(self, connection: "HttpConnection", stream_id: int, receiver: Receiver) -> None:
        self.id = stream_id
        self.receiver: Receiver | None = receiver
        self._connection = connection
        self._out: deque[memoryview] = deque()
        self._out_bytes = 0
        self._finished = self._ended = False
        self._room = Wakeups()

    def write(self, data: bytes | memoryview, *, ends: bool = False) -> None:
        """Send a piece of the body as far as the windows allow, the rest when they do; `ends`: it is the last one."""
        if not self._finished:
            self._finished = ends
            self._out.append(memoryview(data))
            self._out_bytes += len(data)
            self._connection.pump(self)

    def finish(self) -> None:
        """The body is whole."""
        if not self._finished:
            self._finished = True
            self._connection.pump(self)

    async def writable(self) -> None:
        """Wait while too much is waiting to be sent."""
        while self.receiver is not None and (
            self._out_bytes > _WAITING_BYTES_MAX or (self._out_bytes and self._connection.is_paused)
        ):
            await self._room.wait()

    def credit(self, count: int) -> None:
        """The reader has taken so many bytes: the peer may send as many more."""
        self._connection.credit(self, count)

    def reset(self) -> None:
        """Cancel the stream. Idempotent; nothing is told to the receiver any more."""
        self.receiver = None
        self._connection.reset(self)

    def let_go(self) -> None:
        """Nothing more is wanted: the stream may end by itself, and is cancelled if it says anything more."""
        self.receiver = None
        if not self._ended:
            self._connection.reset(self)
        self._room.wake()

    # -- the connection's calls --------------------------------------------------------------------------------------

    def next_piece(self, limit: int) -> bytes | None:
        """What is sent next, at most `limit` bytes; None if nothing waits."""
        while self._out:
            view = self._out[0]
            if not len(view):
                self._out.popleft()
                continue
            piece = bytes(view[:limit])
            if len(piece) == len(view):
                self._out.popleft()
            else:
                self._out[0] = view[limit:]
            self._out_bytes -= len(piece)
            self._room.wake()
            return piece
        return None

    @property
    def waits(self) -> bool:
        """Whether anything is to be sent."""
        return bool(self._out) or (self._finished and not self._ended)

    @property
    def has_ended(self) -> bool:
        """Whether the whole body was sent."""
        return self._ended

    def end_with(self) -> bool:
        """Whether the end is to be sent now; it is, once."""
        if self._finished and not self._out and not self._ended:
            self._ended = True
            return True
        return False

    def closed(self, reason: str | None) -> None:
        """The stream is over."""
        self._finished = self._ended = True
        self._out.clear()
        self._out_bytes = 0
        receiver, self.receiver = self.receiver, None
        if receiver is not None:
            receiver.on_close(reason)
        self._room.wake()


class HttpConnection(asyncio.Protocol):
    """The protocol of asyncio. `on_freed` is called when a stream or the connection has ended."""

    def __init__(self, *, authority: str, scheme: str, heartbeat: Heartbeat, on_freed: Callable[[], None]) -> None:
        self._authority, self._scheme = authority, scheme
        # What is sent is well-formed, and little of what comes is looked at: no need to check each header thrice.
        config = h2.config.H2Configuration(
            client_side=True,
            header_encoding="latin-1",  # decodes whatever a peer sends
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
            validate_inbound_headers=False,
            normalize_inbound_headers=False,
        )
        self._h2 = h2.connection.H2Connection(config)
        self._heartbeat, self._on_freed = heartbeat, on_freed
        self._loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self.close_reason: str | None = None
        self.is_paused = False
        self._transport: asyncio.Transport | None = None
        self._exchanges: dict[int, HttpExchange] = {}
        self._due = 0
        self._flush_planned = False
        self._peer_left = False
        self._beats_missed = 0
        self._heard = True
        self._idle_since = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Streams that are open."""
        return len(self._exchanges)

    @property
    def streams_max(self) -> int:
        """How many streams the peer takes at a time."""
        return self._h2.remote_settings.max_concurrent_streams

    def idle_seconds(self) -> float:
        """Since when no stream is open; 0 while one is."""
        return 0.0 if self._exchanges else self._loop.time() - self._idle_since

    def open(self, method: str, path: str, headers: Sequence[Header], receiver: Receiver) -> HttpExchange:
        """Begin a request; its body follows. There must be room for a stream."""
        stream_id = self._h2.get_next_available_stream_id()
        pseudo = [(":method", method), (":path", path), (":scheme", self._scheme), (":authority", self._authority)]
        self._h2.send_headers(stream_id, [*pseudo, *headers])
        exchange = self._exchanges[stream_id] = HttpExchange(self, stream_id, receiver)
        self._plan_flush()
        return exchange

    def close(self, reason: str) -> None:
        """Send what waits, say goodbye, and close; open streams fail. Idempotent."""
        if self.close_reason is None:
            self._h2.close_connection()
            self._flush()
            self._lost(reason)
        if self._transport is not None:
            self._transport.close()

    def abort(self, reason: str) -> None:
        """Close at once."""
        self._lost(reason)
        if self._transport is not None:
            self._transport.abort()

    # -- what exchanges call -----------------------------------------------------------------------------------------

    def pump(self, exchange: HttpExchange) -> None:
        """Send what the windows allow."""
        if not self._may_send(exchange):
            return
        with STREAM_OVER:
            while not self.is_paused and (window := self._h2.local_flow_control_window(exchange.id)) > 0:
                piece = exchange.next_piece(min(window, self._h2.max_outbound_frame_size))
                if piece is None:
                    break
                self._h2.send_data(exchange.id, piece, end_stream=exchange.end_with())
            if exchange.end_with():
                self._h2.end_stream(exchange.id)
        self._plan_flush()

    def credit(self, exchange: HttpExchange, count: int) -> None:
        """Open a stream's window."""
        if self._may_send(exchange):
            with STREAM_OVER:
                self._h2.increment_flow_control_window(count, exchange.id)
            self._plan_flush()

    def reset(self, exchange: HttpExchange) -> None:
        """Cancel a stream."""
        if self._may_send(exchange):
            with STREAM_OVER:
                self._h2.reset_stream(exchange.id, h2.errors.ErrorCodes.CANCEL)
            self._plan_flush()
            self._close_stream(exchange.id, "cancelled")

    # -- asyncio's calls ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is connected."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_WAITING_BYTES_MAX)
        settings = h2.settings.SettingCodes
        self._h2.local_settings = h2.settings.Settings(
            client=True,
            initial_values={
                settings.ENABLE_PUSH: 0,
                settings.INITIAL_WINDOW_SIZE: STREAM_WINDOW_BYTES,
                settings.MAX_FRAME_SIZE: _FRAME_BYTES_MAX,
                settings.MAX_HEADER_LIST_SIZE: _HEADERS_BYTES_MAX,
            },
        )
        self._h2.max_inbound_frame_size = _FRAME_BYTES_MAX
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(_CONNECTION_WINDOW_BYTES)
        self._plan_flush()
        self._timer = self._loop.call_later(self._heartbeat.interval_seconds, self._beat)

    def data_received(self, data: bytes) -> None:
        """Bytes have arrived."""
        self._heard = True
        if self.close_reason is not None:
            return
        try:
            events = self._h2.receive_data(data)
            self._peer_left = any(isinstance(event, h2.events.ConnectionTerminated) for event in events)
            for event in events:
                self._on_event(event)
        except h2.exceptions.ProtocolError as error:
            self._flush()
            # h2 takes nothing after a farewell, also of what had been on its way.
            has_left = self._h2.state_machine.state is h2.connection.ConnectionState.CLOSED
            broken = f"the peer broke the protocol of HTTP/2: {type(error).__name__}"
            self.abort("the peer said goodbye" if has_left else broken)
            return
        if self._due >= _CONNECTION_CREDIT_BYTES and self._is_open():
            self._h2.increment_flow_control_window(self._due)
            self._due = 0
        self._plan_flush()

    def pause_writing(self) -> None:
        """The socket takes no more for now."""
        self.is_paused = True

    def resume_writing(self) -> None:
        """It does again."""
        self.is_paused = False
        self._pump_all()

    def connection_lost(self, exception: Exception | None) -> None:
        """The socket is gone."""
        self._lost(f"the connection was lost: {exception or 'closed by the peer'}")

    # -- inside ------------------------------------------------------------------------------------------------------

    def _may_send(self, exchange: HttpExchange) -> bool:
        return self._is_open() and exchange.id in self._exchanges

    def _is_open(self) -> bool:
        return self.close_reason is None and not self._peer_left

    def _on_event(self, event: "h2.events.Event") -> None:
        match event:
            case h2.events.DataReceived(stream_id=int(stream_id), data=data, flow_controlled_length=length):
                self._due += length or 0
                self._on_data(stream_id, bytes(data or b""))
            case h2.events.ResponseReceived(stream_id=int(stream_id), headers=headers):
                self._on_response(stream_id, headers or [])
            case h2.events.StreamEnded(stream_id=int(stream_id)):
                self._on_ended(stream_id)
            case h2.events.StreamReset(stream_id=int(stream_id), error_code=code):
                self._close_stream(stream_id, f"the peer cancelled the stream ({_name(code)})")
            case h2.events.WindowUpdated(stream_id=stream_id):
                self._on_window(stream_id or 0)
            case h2.events.RemoteSettingsChanged():
                self._on_settings()
            case h2.events.ConnectionTerminated(error_code=code):
                self.abort(f"the peer said goodbye ({_name(code)})")

    def _on_data(self, stream_id: int, data: bytes) -> None:
        exchange = self._exchanges.get(stream_id)
        if exchange is not None and exchange.receiver is not None:
            exchange.receiver.on_bytes(data)
        elif exchange is not None:
            self.reset(exchange)

    def _on_response(self, stream_id: int, headers: "Sequence[tuple[str | bytes, str | bytes]]") -> None:
        exchange = self._exchanges.get(stream_id)
        if exchange is None or exchange.receiver is None:
            return
        told = {str(name): str(value) for name, value in headers}
        status = told.get(":status", "")
        exchange.receiver.on_response(int(status) if status.isdecimal() else 0, told)

    def _on_ended(self, stream_id: int) -> None:
        exchange = self._exchanges.get(stream_id)
        if exchange is not None and not exchange.has_ended:
            # The answer is whole before the request is: what is left of it is not wanted.
            with STREAM_OVER:
                self._h2.reset_stream(stream_id, h2.errors.ErrorCodes.NO_ERROR)
        self._close_stream(stream_id, None)

    def _close_stream(self, stream_id: int, reason: str | None) -> None:
        exchange = self._exchanges.pop(stream_id, None)
        if exchange is not None:
            exchange.closed(reason)
            self._freed()

    def _on_window(self, stream_id: int) -> None:
        exchange = self._exchanges.get(stream_id)
        if exchange is not None:
            self.pump(exchange)
        elif stream_id == 0:
            self._pump_all()

    def _on_settings(self) -> None:
        if not self.ready.done():
            self.ready.set_result(None)
        self._pump_all()
        self._on_freed()

    def _pump_all(self) -> None:
        for exchange in tuple(self._exchanges.values()):
            if exchange.waits:
                self.pump(exchange)

    def _freed(self) -> None:
        self._idle_since = self._loop.time()
        self._on_freed()

    def _lost(self, reason: str) -> None:
        if self.close_reason is None:
            self.close_reason = reason
        if self._timer is not None:
            self._timer.cancel()
        if not self.ready.done():
            self.ready.set_exception(ConnectionError(self.close_reason))
            self.ready.exception()  # nobody may be waiting
        exchanges, self._exchanges = self._exchanges, {}
        for exchange in exchanges.values():
            exchange.closed(self.close_reason)
        self._freed()

    def _plan_flush(self) -> None:
        if not self._flush_planned:
            self._flush_planned = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_planned = False
        data = self._h2.data_to_send()
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def _beat(self) -> None:
        """Ask for a sign of life after silence; a peer that leaves too many pings unanswered is lost.

        Beats are counted, not seconds: when this process itself was held up, what has arrived meanwhile is read first.
        """
        heartbeat = self._heartbeat
        self._beats_missed = 0 if self._heard else self._beats_missed + 1
        self._heard = False
        if self._beats_missed * heartbeat.interval_seconds >= heartbeat.timeout_seconds:
            self.abort(f"the peer was silent for {heartbeat.timeout_seconds:g} seconds")
            return
        if self._beats_missed:
            self._h2.ping(bytes(8))
            self._plan_flush()
        self._timer = self._loop.call_later(heartbeat.interval_seconds, self._beat)


def _name(code: "h2.errors.ErrorCodes | int | None") -> str:
    return code.name if isinstance(code, h2.errors.ErrorCodes) else f"error {code}"
