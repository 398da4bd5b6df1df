"""One accepted connection as ASGI: HTTP/2 on h2's state machine, HTTP/1.1 handed on to uvicorn.

Which of the two it is, ALPN or the first bytes say. A stream's window is opened as its application takes the body, and
`send` waits while the client takes nothing, so that nothing piles up at either end.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Coroutine, MutableMapping
from contextlib import suppress
from typing import Any, cast
from urllib.parse import unquote

from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from kvrouter.transport.duplex import Wakeups
from kvrouter.transport.http2 import STREAM_OVER, NeverIndexedHeaderTuple, h2
from kvrouter.transport.http_app import UNTIL_GONE, Application
from kvrouter.transport.tcp_connection import Heartbeat

__all__ = ["AcceptedConnection", "Served"]

STREAMS_MAX = 1000
_STREAM_WINDOW_BYTES = 256 << 10
_CONNECTION_WINDOW_BYTES = 1 << 26
_CONNECTION_CREDIT_BYTES = 1 << 20
_FRAME_BYTES_MAX = 1 << 20
_HEADERS_BYTES_MAX = 64 << 10
_WAITING_BYTES_MAX = 1 << 20
_GREETING_SECONDS = 10.0
_UNIQUE = frozenset({b"content-location", b"location"})
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Served:
    """What all connections of a server share: the application, and the books."""

    def __init__(self, app: Application, heartbeat: Heartbeat) -> None:
        self.app, self.heartbeat = app, heartbeat
        self.connections: set[AcceptedConnection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.http_1 = ServerState()
        self._config = Config(
            cast("Any", app), log_config=None, lifespan="off", ws="none", http="httptools",
            interface="asgi3", proxy_headers=False, server_header=False,
        )  # fmt: skip
        self._config.load()

    def accept(self) -> "AcceptedConnection":
        """Make the protocol of one more connection."""
        return AcceptedConnection(self)

    def speak_http_1(self) -> HttpToolsProtocol:
        """Make the protocol of a connection that speaks HTTP/1.1."""
        protocol = HttpToolsProtocol(self._config, self.http_1, {}, asyncio.get_running_loop())
        protocol.access_log = False
        return protocol

    def run(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Run the application for one request."""
        task = asyncio.create_task(work, name="http request")
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def close(self) -> None:
        """Say goodbye and close; what still runs is cancelled."""
        for connection in tuple(self.connections):
            connection.close()
        for protocol in tuple(self.http_1.connections):
            protocol.transport.close()
        tasks = [*self.tasks, *self.http_1.tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Stream:
    """One request over HTTP/2: what ASGI calls `receive` and `send`."""

    def __init__(self, connection: "AcceptedConnection", stream_id: int) -> None:
        self.id = stream_id
        self.changed = Wakeups()
        self.is_ended = self.is_gone = False
        """Whether the request is whole; whether the client has gone, or the response is complete."""
        self.is_begun = False
        self._connection = connection
        self._body: deque[bytes] = deque()
        self._is_read = False

    def put(self, data: bytes) -> None:
        """A piece of the body has come."""
        self._body.append(data)
        self.changed.wake()

    def end(self) -> None:
        """The body is whole."""
        self.is_ended = True
        self.changed.wake()

    def gone(self) -> None:
        """There is nobody to talk to any more."""
        self.is_gone = True
        self._body.clear()
        self.changed.wake()

    async def until_gone(self) -> None:
        """Wait until the client has gone, whatever of the body is not read; see `http_app.UNTIL_GONE`."""
        while not self.is_gone:
            await self.changed.wait()

    async def receive(self) -> MutableMapping[str, Any]:
        """ASGI's: the next of the body, then wait for the client's leaving."""
        while True:
            if self.is_gone:
                return {"type": "http.disconnect"}
            if self._body or (self.is_ended and not self._is_read):
                data = b"".join(self._body)
                self._body.clear()
                self._is_read = self.is_ended
                self._connection.credit(self, len(data))
                return {"type": "http.request", "body": data, "more_body": not self.is_ended}
            await self.changed.wait()

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """ASGI's: headers or a piece of the body; waits while the client takes nothing."""
        if self.is_gone:
            return
        if message["type"] == "http.response.start":
            self.is_begun = True
            headers = [(b":status", b"%d" % message["status"]), *map(_unindexed, message.get("headers", ()))]
            self._connection.send_headers(self, headers)
            return
        view = memoryview(message.get("body", b""))
        ends = not message.get("more_body", False)
        while not self.is_gone:
            sent = self._connection.send_data(self, view, ends=ends)
            view = view[sent:]
            if not view:
                return
            await self.changed.wait()


def _unindexed(header: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    """What no other answer has is no use in the table of headers, and would push the others out of it."""
    return NeverIndexedHeaderTuple(*header) if header[0] in _UNIQUE else header


class AcceptedConnection(asyncio.Protocol):
    """The protocol of asyncio; made by `Served.accept`."""

    def __init__(self, served: Served) -> None:
        config = h2.config.H2Configuration(client_side=False, header_encoding=None, validate_outbound_headers=False)
        self._h2 = h2.connection.H2Connection(config)
        self._served = served
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._streams: dict[int, _Stream] = {}
        self._running = 0
        self._greeting: bytes | None = b""
        self._scheme = "http"
        self._is_open = True
        self._is_paused = self._flush_planned = False
        self._due = 0
        self._heard, self._beats_missed = True, 0
        self._timer: asyncio.TimerHandle | None = None

    # -- asyncio's calls ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_WAITING_BYTES_MAX)
        self._served.connections.add(self)
        tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        self._scheme = "http" if tls is None else "https"
        self._timer = self._loop.call_later(_GREETING_SECONDS, self._transport.abort)

    def data_received(self, data: bytes) -> None:
        """Bytes have arrived."""
        self._heard = True
        if self._greeting is not None:
            data = self._greeting + data
            begin = data[: len(_PREFACE)]
            if not _PREFACE.startswith(begin):
                self._hand_on(data)
                return
            if len(begin) < len(_PREFACE):
                self._greeting = data
                return
            self._greeting = None
            self._begin()
        self._take(data)

    def pause_writing(self) -> None:
        """The socket takes no more for now."""
        self._is_paused = True

    def resume_writing(self) -> None:
        """It does again."""
        self._is_paused = False
        self._wake_all()

    def connection_lost(self, exception: Exception | None) -> None:  # noqa: ARG002 - it makes no difference
        """The socket is gone."""
        self._is_open = False
        self._served.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.gone()

    # -- what streams and the server call ----------------------------------------------------------------------------

    def close(self) -> None:
        """Say goodbye, send what waits, and close."""
        if self._is_open and self._greeting is None:
            with suppress(h2.exceptions.ProtocolError):
                self._h2.close_connection()
            self._flush()
        self._is_open = False
        self._transport.close()

    def credit(self, stream: _Stream, count: int) -> None:
        """The application has taken so many bytes of a body."""
        if count and not stream.is_ended and self._may_send(stream):
            with STREAM_OVER:
                self._h2.increment_flow_control_window(count, stream.id)
            self._plan_flush()

    def send_headers(self, stream: _Stream, headers: list[tuple[bytes, bytes]]) -> None:
        """Begin a response."""
        if self._may_send(stream):
            with STREAM_OVER:
                self._h2.send_headers(stream.id, headers)
            self._plan_flush()

    def send_data(self, stream: _Stream, view: memoryview, *, ends: bool) -> int:
        """Send what the windows allow of a piece, and with all of it the end; returns how much."""
        sent = 0
        if not self._may_send(stream):
            return len(view)
        with STREAM_OVER:
            while sent < len(view) and not self._is_paused:
                window = min(self._h2.local_flow_control_window(stream.id), self._h2.max_outbound_frame_size)
                if window <= 0:
                    break
                piece = bytes(view[sent : sent + window])
                sent += len(piece)
                is_last = ends and sent == len(view)
                self._h2.send_data(stream.id, piece, end_stream=is_last)
                if is_last:
                    self._complete(stream)
            if ends and not len(view):
                self._h2.end_stream(stream.id)
                self._complete(stream)
        self._plan_flush()
        return sent

    # -- inside ------------------------------------------------------------------------------------------------------

    def _hand_on(self, data: bytes) -> None:
        """It is HTTP/1.1: another protocol has the socket from here on."""
        if self._timer is not None:
            self._timer.cancel()
        self._served.connections.discard(self)
        protocol = self._served.speak_http_1()
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        protocol.data_received(data)

    def _begin(self) -> None:
        code = h2.settings.SettingCodes
        self._h2.local_settings = h2.settings.Settings(
            client=False,
            initial_values={
                code.MAX_CONCURRENT_STREAMS: STREAMS_MAX,
                code.INITIAL_WINDOW_SIZE: _STREAM_WINDOW_BYTES,
                code.MAX_FRAME_SIZE: _FRAME_BYTES_MAX,
                code.MAX_HEADER_LIST_SIZE: _HEADERS_BYTES_MAX,
            },
        )
        self._h2.max_inbound_frame_size = _FRAME_BYTES_MAX
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(_CONNECTION_WINDOW_BYTES)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(self._served.heartbeat.interval_seconds, self._beat)

    def _take(self, data: bytes) -> None:
        if not self._is_open:
            return
        try:
            events = self._h2.receive_data(data)
            for event in events:
                self._on_event(event)
        except h2.exceptions.ProtocolError:
            self._flush()
            self.connection_lost(None)
            self._transport.close()
            return
        if self._due >= _CONNECTION_CREDIT_BYTES and self._is_open:
            self._h2.increment_flow_control_window(self._due)
            self._due = 0
        self._plan_flush()

    def _on_event(self, event: "h2.events.Event") -> None:
        match event:
            case h2.events.RequestReceived(stream_id=int(stream_id), headers=headers):
                self._on_request(stream_id, cast("list[tuple[bytes, bytes]]", headers or []))
            case h2.events.DataReceived(stream_id=int(stream_id), data=data, flow_controlled_length=length):
                self._due += length or 0
                if stream_id in self._streams:
                    self._streams[stream_id].put(bytes(data or b""))
            case h2.events.StreamEnded(stream_id=int(stream_id)) if stream_id in self._streams:
                self._streams[stream_id].end()
            case h2.events.StreamReset(stream_id=int(stream_id)) if stream_id in self._streams:
                self._streams.pop(stream_id).gone()
            case h2.events.WindowUpdated(stream_id=stream_id):
                self._on_window(stream_id or 0)
            case h2.events.RemoteSettingsChanged():
                self._wake_all()
            case h2.events.ConnectionTerminated():
                self.connection_lost(None)
                self._transport.close()

    def _on_request(self, stream_id: int, headers: list[tuple[bytes, bytes]]) -> None:
        if self._running >= 2 * STREAMS_MAX:
            # It opens and cancels streams faster than their work can end.
            self._h2.close_connection(h2.errors.ErrorCodes.ENHANCE_YOUR_CALM)
            self._flush()
            self.connection_lost(None)
            self._transport.close()
            return
        stream = self._streams[stream_id] = _Stream(self, stream_id)
        self._running += 1
        self._served.run(self._run(stream, self._scope(stream, headers)))

    def _scope(self, stream: _Stream, headers: list[tuple[bytes, bytes]]) -> dict[str, Any]:
        pseudo = {name: value for name, value in headers if name.startswith(b":")}
        path, _, query = pseudo.get(b":path", b"").partition(b"?")
        plain = [(b"host", pseudo.get(b":authority", b""))]
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "2",
            "method": pseudo.get(b":method", b"").decode("latin-1"),
            "scheme": self._scheme,
            "path": unquote(path.decode("latin-1")),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "extensions": {UNTIL_GONE: stream.until_gone},
            "headers": plain + [(name, value) for name, value in headers if not name.startswith(b":")],
            "client": self._transport.get_extra_info("peername"),
            "server": self._transport.get_extra_info("sockname"),
        }

    async def _run(self, stream: _Stream, scope: dict[str, Any]) -> None:
        try:
            await self._served.app(scope, stream.receive, stream.send)
        finally:
            self._running -= 1
            self._cut(stream)

    def _cut(self, stream: _Stream) -> None:
        """The application is done; a response that it has not completed is cancelled."""
        if self._may_send(stream):
            del self._streams[stream.id]
            with STREAM_OVER:
                self._h2.reset_stream(stream.id, h2.errors.ErrorCodes.INTERNAL_ERROR)
            self._plan_flush()

    def _complete(self, stream: _Stream) -> None:
        """The response is whole; what is left of the request is not wanted."""
        del self._streams[stream.id]
        if not stream.is_ended:
            self._h2.reset_stream(stream.id, h2.errors.ErrorCodes.NO_ERROR)
        stream.gone()

    def _on_window(self, stream_id: int) -> None:
        if not stream_id:
            self._wake_all()
        elif stream_id in self._streams:
            self._streams[stream_id].changed.wake()

    def _wake_all(self) -> None:
        for stream in tuple(self._streams.values()):
            stream.changed.wake()

    def _may_send(self, stream: _Stream) -> bool:
        return self._is_open and stream.id in self._streams

    def _plan_flush(self) -> None:
        if not self._flush_planned:
            self._flush_planned = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_planned = False
        data = self._h2.data_to_send()
        if data and not self._transport.is_closing():
            self._transport.write(data)

    def _beat(self) -> None:
        """Ask for a sign of life after silence, as the client does; see `HttpConnection`."""
        heartbeat = self._served.heartbeat
        self._beats_missed = 0 if self._heard else self._beats_missed + 1
        self._heard = False
        if self._beats_missed * heartbeat.interval_seconds >= heartbeat.timeout_seconds:
            self._transport.abort()
            return
        if self._beats_missed:
            self._h2.ping(bytes(8))
            self._plan_flush()
        self._timer = self._loop.call_later(heartbeat.interval_seconds, self._beat)
