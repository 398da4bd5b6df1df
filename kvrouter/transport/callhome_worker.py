"""The worker's side of calls home: takes a request from whatever carries requests, and dials home with the answer."""

import asyncio
from dataclasses import dataclass

import msgspec

from kvrouter.errors import RefusedError, TransportError, UnreachableError, WireError
from kvrouter.transport.access import Peer
from kvrouter.transport.callhome_socket import CallHomeSocket
from kvrouter.transport.callhome_wire import (
    ConnectionInfo,
    Control,
    Handshake,
    control_message,
    decode_connection_info,
    decode_control,
    final_message,
    handshake_message,
    item_message,
    prologue_message,
)
from kvrouter.transport.duplex import StreamLimits
from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.messages import Codec, Kind, decode_error, decode_request
from kvrouter.transport.pool import ConnectionPool, PoolSettings
from kvrouter.transport.server_stream import ServerStream
from kvrouter.transport.tcp_client import parse_tcp_address
from kvrouter.transport.tls import ClientTls, PlaneTls
from kvrouter.transport.two_part import MESSAGE_BYTES_MAX, TwoPart, decode_two_part

__all__ = ["CallHomeCounters", "CallHomeWorker"]

_DIAL_SECONDS = 5.0
_ACQUIRE_SECONDS = 30.0
_CLOSE_SECONDS = 10.0
_SOMEBODY = Peer()
_UNBOUNDED = 1 << 60
_LIMITS = StreamLimits(peer_window_bytes=_UNBOUNDED, frame_bytes_max=_UNBOUNDED, enforced=False)


@dataclass(slots=True)
class CallHomeCounters:
    """What happened since the start."""

    failed_dials: int = 0
    malformed: int = 0


class _Infos(msgspec.Struct):
    id: str
    connection_info: object = None
    request_stream_connection_info: object = None


class CallHomeWorker:
    """Takes requests as two-part messages (`accept`), and dials home with the answers; `tls` is for dialling."""

    def __init__(self, endpoints: Endpoints, *, pool: PoolSettings | None = None, tls: PlaneTls | None = None) -> None:
        self.endpoints = endpoints
        self.counters = CallHomeCounters()
        self.pool: ConnectionPool[CallHomeSocket] = ConnectionPool(self._dial_pooled, pool)
        self._tls = None if tls is None else ClientTls(tls)
        self._calls: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to look after idle connections."""
        self.pool.start()

    async def close(self) -> None:
        """Close all connections; call it when the endpoints are drained. Idempotent."""
        calls = list(self._calls)
        if calls:
            await asyncio.wait(calls, timeout=_CLOSE_SECONDS)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await self.pool.close()

    def accept(self, message: bytes | memoryview, *, endpoint: str = "", peer: Peer = _SOMEBODY) -> None:
        """Take a request and begin to work on it; returning acknowledges it.

        `endpoint` is what the way that it came names, for requests that do not name one themselves; `peer` who sent it.

        Raises:
            RefusedError: it is not taken; `INVALID_ARGUMENT` where it cannot be read.
        """
        try:
            decoded = decode_request(message, endpoint=endpoint)
            infos = msgspec.json.decode(decode_two_part(message).header, type=_Infos)
            context = decoded.id
            response = decode_connection_info(infos.connection_info, context=context, stream_type="response")
            upward = None
            if decoded.request.many_in:
                upward = decode_connection_info(
                    infos.request_stream_connection_info, context=context, stream_type="request"
                )
        except (WireError, msgspec.DecodeError) as error:
            self.counters.malformed += 1
            raise RefusedError(str(error), code="INVALID_ARGUMENT") from None
        home = _Home(decoded.request.codec)
        home.stream = self.endpoints.open(decoded, home, _LIMITS, peer)
        call = asyncio.create_task(self._call(home, response, upward), name=f"call home {context}")
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _dial_pooled(self, address: str) -> CallHomeSocket:
        socket = await self._dial(address)
        socket.keep_alive(self.pool.settings.keepalive_seconds)
        return socket

    async def _dial(self, address: str) -> CallHomeSocket:
        host, port = parse_tcp_address(address)
        tls = {} if self._tls is None else self._tls.options(host)
        try:
            async with asyncio.timeout(_DIAL_SECONDS):
                _, connection = await asyncio.get_running_loop().create_connection(CallHomeSocket, host, port, **tls)
        except TimeoutError:
            raise UnreachableError(f"{address}: no connection within {_DIAL_SECONDS:g} seconds") from None
        except OSError as error:
            raise UnreachableError(f"{address}: {error}") from None
        return connection

    async def _call(self, home: "_Home", response: ConnectionInfo, upward: ConnectionInfo | None) -> None:
        """One answer, from dialling to the last byte."""
        socket: CallHomeSocket | None = None
        try:
            socket = await self.pool.acquire(response.address, seconds=_ACQUIRE_SECONDS)
            reuse = response.reuse and self.pool.settings.enabled
            socket.send(handshake_message(Handshake(response.subject, "response", int(reuse))))
            home.attach(socket)
            if upward is not None:
                home.attach_upward(await self._dial(upward.address), upward.subject)
            await home.over.wait()
            reusable = reuse and home.is_clean
            if not reusable:
                await home.closed_by_peer(_CLOSE_SECONDS)
            home.release()
            self.pool.release(response.address, socket, reusable=reusable)
            socket = None
        except TransportError as error:
            self.counters.failed_dials += 1
            assert home.stream is not None
            home.stream.on_lost(f"no way home: {error}")
        finally:
            home.release()
            if socket is not None:
                self.pool.release(response.address, socket, reusable=False)


class _Home:
    """The wire of one answer; what is said before the connection is there is kept."""

    def __init__(self, codec: Codec) -> None:
        self.stream: ServerStream | None = None
        self.over = asyncio.Event()
        self._codec = codec
        self._socket: CallHomeSocket | None = None
        self._upward: CallHomeSocket | None = None
        self._kept: list[bytes] = []
        self._room = asyncio.Event()
        self._gone = asyncio.Event()
        self._ended = self._controlled = False

    @property
    def is_clean(self) -> bool:
        """Whether the answer was sent wholly, and nobody asked for less: its connection may be used again."""
        return self._ended and not self._controlled and not self._gone.is_set()

    def attach(self, socket: CallHomeSocket) -> None:
        """The connection is there."""
        self._socket = socket
        socket.sink = self
        for message in self._kept:
            socket.send(message)
        self._kept.clear()
        self._room.set()

    def attach_upward(self, socket: CallHomeSocket, subject: str) -> None:
        """The connection for the requester's items is there."""
        if self._gone.is_set() or self.over.is_set():
            socket.close_now()
            return
        self._upward = socket
        assert self.stream is not None
        socket.sink = _Upward(self.stream, socket)
        socket.send(handshake_message(Handshake(subject, "request")))

    def release(self) -> None:
        """Let go of both connections."""
        if self._socket is not None:
            self._socket.sink = None
        if self._upward is not None:
            self._upward.sink = None
            self._upward.close_now()
            self._upward = None

    async def closed_by_peer(self, seconds: float) -> None:
        """Wait for the requester to close, so that nothing on its way is cut off."""
        if self._ended and not self._controlled:
            try:
                async with asyncio.timeout(seconds):
                    await self._gone.wait()
            except TimeoutError:
                return

    # -- the stream's wire -------------------------------------------------------------------------------------------

    def transmit(self, kind: Kind, payload: bytes | memoryview = b"", *, more: bool = False) -> None:
        """Say something to the requester."""
        assert not more, "items are not cut here"
        if kind is Kind.PROLOGUE:
            self._send(prologue_message(decode_error(payload) if payload else None))
        elif kind is Kind.DATA:
            self._send(item_message(payload, self._codec, bytes_max=MESSAGE_BYTES_MAX))
        elif kind is Kind.END:
            self._ended = True
            self._send(final_message(self._codec))
            self._send(control_message(Control.SENTINEL))
        elif kind is Kind.RESET:
            self._send(prologue_message(decode_error(payload)))
        elif kind is Kind.WINDOW and self._upward is not None:
            self._upward.give(int.from_bytes(payload, "big"))

    async def writable(self) -> None:
        """Wait for the connection, then while it takes no more."""
        await self._room.wait()
        if self._socket is not None:
            await self._socket.writable()

    def forget(self) -> None:
        """The stream has ended."""
        self._room.set()
        self.over.set()

    # -- what arrives ------------------------------------------------------------------------------------------------

    def on_message(self, message: TwoPart) -> None:
        """The requester asks for less."""
        self._controlled = True
        assert self.stream is not None
        try:
            control = decode_control(message)
        except TransportError as error:
            self.stream.reset(error)
            return
        if control is Control.STOP:
            self.stream.on_stop()
        elif control is Control.KILL:
            self.stream.on_kill()

    def on_gone(self, reason: str) -> None:
        """The requester is gone."""
        self._gone.set()
        self._room.set()
        assert self.stream is not None
        self.stream.on_lost(reason)

    def _send(self, message: bytes) -> None:
        if not message:
            return
        if self._socket is not None:
            self._socket.send(message)
        else:
            self._kept.append(message)


class _Upward:
    """Reads the requester's items."""

    def __init__(self, stream: ServerStream, socket: CallHomeSocket) -> None:
        self._stream, self._socket = stream, socket
        self._ended = False

    def on_message(self, message: TwoPart) -> None:
        """An item, or one closing control."""
        if not message.is_control:
            self._socket.hold(len(message.body))
            self._stream.on_data(bytes(message.body))
            return
        try:
            control = decode_control(message)
        except TransportError as error:
            self._stream.reset(error)
            return
        self._ended = True
        if control is Control.SENTINEL:
            self._stream.on_end()
        elif control is Control.STOP:
            self._stream.on_stop()
        else:
            self._stream.on_kill()

    def on_gone(self, reason: str) -> None:
        """Before its end, the items are not whole."""
        if not self._ended:
            self._stream.on_lost(reason)
