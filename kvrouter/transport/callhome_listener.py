"""The requester's side of calls home: where workers dial in with their answers."""

import asyncio
from uuid import uuid4

from kvrouter.errors import DisconnectedError, HandlerError, ProtocolError, TransportError
from kvrouter.transport.callhome_socket import CallHomeSocket
from kvrouter.transport.callhome_wire import (
    ConnectionInfo,
    Control,
    Handshake,
    ItemReader,
    control_message,
    decode_control,
    decode_handshake,
    decode_prologue,
    item_message,
)
from kvrouter.transport.client_stream import ClientStream
from kvrouter.transport.context import Context
from kvrouter.transport.duplex import StreamLimits
from kvrouter.transport.messages import Codec, Kind
from kvrouter.transport.tls import PlaneTls, ServerTls
from kvrouter.transport.two_part import MESSAGE_BYTES_MAX, TwoPart

__all__ = ["CallHomeListener", "Expected"]

_HANDSHAKE_SECONDS = 10.0
_UNBOUNDED = 1 << 60
_LIMITS = StreamLimits(peer_window_bytes=_UNBOUNDED, frame_bytes_max=_UNBOUNDED, enforced=False)


class Expected:
    """One answer that a worker will bring: its stream, and the sockets once they are there."""

    def __init__(self, listener: "CallHomeListener", context: Context, codec: Codec, *, many_in: bool) -> None:
        self.subjects: dict[str, str] = {str(uuid4()): "response"}
        if many_in:
            self.subjects[str(uuid4())] = "request"
        self._listener, self._codec = listener, codec
        self._items = ItemReader(codec)
        self._answer: CallHomeSocket | None = None
        self._upward: _Upward | None = _Upward() if many_in else None
        self._begun = self._ended = self._reuse = False
        self._pending: list[Control] = []
        self._late: asyncio.TimerHandle | None = None
        self.stream = ClientStream(self, context, _LIMITS, many_in=many_in)

    def subject(self, stream_type: str) -> str | None:
        """What the worker names the stream by."""
        return next((subject for subject, kind in self.subjects.items() if kind == stream_type), None)

    def taken(self, seconds: float) -> None:
        """The worker has acknowledged the request: it must call home within so long, or is lost."""
        if self._answer is None and not self._begun:
            self._late = asyncio.get_running_loop().call_later(
                seconds, self.stream.on_lost, f"the worker did not call home within {seconds:g} seconds"
            )

    # -- the stream's wire -------------------------------------------------------------------------------------------

    def transmit(self, kind: Kind, payload: bytes | memoryview = b"", *, more: bool = False) -> None:
        """Say something to the worker."""
        assert not more, "items are not cut here"
        if kind is Kind.WINDOW:
            if self._answer is not None:
                self._answer.give(int.from_bytes(payload, "big"))
        elif kind is Kind.DATA and self._upward is not None:
            self._upward.send(item_message(payload, "raw", bytes_max=MESSAGE_BYTES_MAX))
        elif kind is Kind.END and self._upward is not None:
            self._upward.send(control_message(Control.SENTINEL))
        elif kind is Kind.STOP:
            self._control(Control.STOP)
        elif kind in (Kind.KILL, Kind.RESET):
            self._control(Control.KILL)

    async def writable(self) -> None:
        """Wait while the worker takes no more."""
        if self._upward is not None:
            await self._upward.writable()

    def forget(self) -> None:
        """The stream has ended: the connection waits for another one, or is closed."""
        self._listener.forget(self)
        if self._late is not None:
            self._late.cancel()
        if self._upward is not None:
            self._upward.close()
        answer, self._answer = self._answer, None
        if answer is None:
            return
        if self._ended and self._reuse:
            self._listener.expect_handshake(answer)
        else:
            answer.close_now()

    # -- what arrives ------------------------------------------------------------------------------------------------

    def attach(self, socket: CallHomeSocket, handshake: Handshake) -> None:
        """A worker has named this stream."""
        if handshake.stream_type == "request":
            if self._upward is not None:
                self._upward.attach(socket)
            return
        if self._late is not None:
            self._late.cancel()
        self._answer, self._reuse = socket, bool(handshake.reuse)
        socket.sink = self
        for control in self._pending:
            socket.send(control_message(control))

    def on_message(self, message: TwoPart) -> None:
        """The next message of the answer; what is wrong ends this stream only."""
        try:
            self._read(message)
        except TransportError as error:
            self.stream.reset(error)

    def on_gone(self, reason: str) -> None:
        """The worker has closed, or is gone."""
        self._answer = None
        if self._items.is_final and self._codec != "raw" and not self._ended:
            self.stream.on_end()  # the answer is whole; only the sentinel is missing
        elif self.stream.context.stopped and self._begun and not self.stream.context.killed:
            self.stream.on_end()  # asked to end, and it did
        else:
            self.stream.on_lost(reason)

    def _read(self, message: TwoPart) -> None:
        if not self._begun:
            self._begun = True
            failure = decode_prologue(message)
            if failure is None:
                self.stream.on_prologue(b"")
            else:
                self.stream.on_error(HandlerError(str(failure), code=failure.code))
        elif not message.is_control:
            self._take(message)
        elif bytes(message.header[:1]) == b"{":
            failure = decode_prologue(message)
            self.stream.on_error(_failure(failure))
        elif decode_control(message) is Control.SENTINEL and not message.body:
            if not self._items.is_final:
                raise DisconnectedError("the stream ended before generation completed", retryable=False)
            self._ended = True
            self.stream.on_end()
        else:
            raise ProtocolError("a worker may send the sentinel only")

    def _take(self, message: TwoPart) -> None:
        item = self._items.read(memoryview(message.body))
        if item is not None:
            assert self._answer is not None
            self._answer.hold(len(item))
            self.stream.on_data(item)

    def _control(self, control: Control) -> None:
        if self._answer is not None:
            self._answer.send(control_message(control))
        else:
            self._pending.append(control)
        if self._upward is not None:
            self._upward.send(control_message(control))


class _Upward:
    """The requester's further items, on a connection of their own; what is sent before the worker came is kept."""

    def __init__(self) -> None:
        self._socket: CallHomeSocket | None = None
        self._kept: list[bytes] = []
        self._came = asyncio.Event()

    def attach(self, socket: CallHomeSocket) -> None:
        """The worker is there."""
        self._socket = socket
        socket.sink = self
        for message in self._kept:
            socket.send(message)
        self._kept.clear()
        self._came.set()

    def send(self, message: bytes) -> None:
        """Send it, or keep it until the worker is there."""
        if self._socket is not None:
            self._socket.send(message)
        else:
            self._kept.append(message)

    async def writable(self) -> None:
        """Wait for the worker, then while it takes no more."""
        await self._came.wait()
        if self._socket is not None:
            await self._socket.writable()

    def close(self) -> None:
        """Close the connection, if it is there."""
        self._came.set()
        if self._socket is not None:
            self._socket.sink = None
            self._socket.close_now()

    def on_message(self, message: TwoPart) -> None:
        """Workers say nothing here."""

    def on_gone(self, reason: str) -> None:  # noqa: ARG002 - the interface
        """The answer's own connection says what that means."""
        self._socket = None
        self._came.set()


class CallHomeListener:
    """Waits for workers. `host` must be one that they reach; with `port` 0 the system chooses one.

    With a certificate in `tls` they must speak TLS.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        advertise: str | None = None,
        reuse: bool = True,
        tls: PlaneTls | None = None,
    ) -> None:
        self.unknown_subjects = self.failed_handshakes = 0
        self._host, self._port, self._advertise, self._reuse = host, port, advertise, reuse
        self._tls = ServerTls(tls) if tls is not None and tls.serves else None
        self._server: asyncio.Server | None = None
        self._expected: dict[str, Expected] = {}
        self._sockets: set[CallHomeSocket] = set()

    @property
    def address(self) -> str:
        """Where workers dial."""
        assert self._server is not None, "the listener has not started"
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"{self._advertise or host}:{port}"

    def __len__(self) -> int:
        """Answers that are waited for or arriving."""
        return len({id(each) for each in self._expected.values()})

    async def start(self) -> None:
        """Begin to listen. Raises OSError if the address is taken."""
        loop = asyncio.get_running_loop()
        tls = {} if self._tls is None else self._tls.options()
        self._server = await loop.create_server(
            lambda: CallHomeSocket(on_open=self.expect_handshake), self._host, self._port, backlog=1024, **tls
        )

    async def close(self) -> None:
        """Close all connections; answers that have not ended fail. Idempotent."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        for expected in set(self._expected.values()):
            expected.stream.on_lost("the client was closed")
        for socket in tuple(self._sockets):
            socket.close_now()
        await server.wait_closed()

    def register(self, context: Context, codec: Codec, *, many_in: bool) -> tuple[Expected, dict[str, ConnectionInfo]]:
        """Expect an answer; returns it, and what the worker is told, by type of stream."""
        expected = Expected(self, context, codec, many_in=many_in)
        told = {}
        for subject, stream_type in expected.subjects.items():
            self._expected[subject] = expected
            told[stream_type] = ConnectionInfo(
                address=self.address, subject=subject, context=context.id,
                stream_type="request" if stream_type == "request" else "response",
                reuse=self._reuse and stream_type == "response",
            )  # fmt: skip
        return expected, told

    def forget(self, expected: Expected) -> None:
        """An answer has ended."""
        for subject in expected.subjects:
            self._expected.pop(subject, None)

    def expect_handshake(self, socket: CallHomeSocket) -> None:
        """A connection begins, or is used again: the next message must name a stream."""
        self._sockets.add(socket)
        socket.idle()
        socket.sink = _Newcomer(self, socket)

    def arrived(self, socket: CallHomeSocket, handshake: Handshake) -> None:
        """A worker has named a stream."""
        expected = self._expected.pop(handshake.subject, None)
        if expected is None or expected.subjects[handshake.subject] != handshake.stream_type:
            self.unknown_subjects += 1
            socket.sink = None
            socket.close("the stream is not expected here")
            return
        expected.attach(socket, handshake)

    def gone(self, socket: CallHomeSocket) -> None:
        """A connection without a stream is lost."""
        self._sockets.discard(socket)


class _Newcomer:
    """A connection that has not named a stream; a new one has ten seconds for that."""

    def __init__(self, listener: CallHomeListener, socket: CallHomeSocket) -> None:
        self._listener, self._socket = listener, socket
        self._timer = asyncio.get_running_loop().call_later(_HANDSHAKE_SECONDS, self._late)

    def on_message(self, message: TwoPart) -> None:
        self._timer.cancel()
        try:
            handshake = decode_handshake(message)
        except ProtocolError as error:
            self._listener.failed_handshakes += 1
            self._socket.sink = None
            self._socket.close(str(error))
        else:
            self._listener.arrived(self._socket, handshake)

    def on_gone(self, reason: str) -> None:  # noqa: ARG002 - the interface
        self._timer.cancel()
        self._listener.gone(self._socket)

    def _late(self) -> None:
        self._socket.close("no handshake")


def _failure(failure: TransportError | None) -> TransportError:
    if failure is None:
        return ProtocolError("a second prologue")
    return HandlerError(str(failure), code=failure.code)
