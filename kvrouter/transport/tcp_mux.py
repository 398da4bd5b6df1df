"""The multiplexed TCP connection as bytes in, bytes out: many streams in both directions over one connection.

Framing, handshake, the streams by id, pings and farewells; no sockets and no clock. `tcp_connection.py` moves the
bytes, `tcp_client.py` and `tcp_server.py` are what others use. docs/planes.md has the protocol.
"""

from dataclasses import dataclass
from typing import Protocol, TypeVar

import msgspec

from kvrouter.errors import KvrouterError, ProtocolError, RefusedError, TransportError, WireError
from kvrouter.transport.access import Peer
from kvrouter.transport.assembly import RequestAssembly
from kvrouter.transport.client_stream import ClientStream
from kvrouter.transport.context import Context
from kvrouter.transport.delivery import AnyStream, deliver
from kvrouter.transport.duplex import StreamLimits
from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.flow import WINDOW_BYTES
from kvrouter.transport.frame_cutter import FrameCutter
from kvrouter.transport.messages import Kind, decode_error, decode_request, encode_error
from kvrouter.transport.tcp_frames import (
    ENDS,
    HEAD,
    MAY_IGNORE,
    MORE,
    NO_STREAM,
    PROTOCOL,
    VERSION,
    Hello,
    HelloAck,
    head_of,
)
from kvrouter.transport.two_part import MESSAGE_BYTES_MAX

__all__ = ["MuxLimits", "MuxOutput", "TcpMux"]

_WINDOW_BYTES_MIN = 4096
GOAWAY_DRAINING, GOAWAY_LIMIT = 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class MuxLimits:
    """What one side of a connection takes."""

    frame_bytes_max: int = 1 << 20
    window_bytes: int = WINDOW_BYTES
    message_bytes_max: int = MESSAGE_BYTES_MAX
    assembling_bytes_max: int = 4 * MESSAGE_BYTES_MAX
    """Bound of all requests of one connection that have not arrived wholly."""


class MuxOutput(Protocol):
    """Where bytes go."""

    def write(self, head: bytes, payload: bytes | memoryview) -> None:
        """Send a frame after those before it."""
        ...

    async def writable(self) -> None:
        """Wait while too much is waiting to be sent."""
        ...

    def ready(self) -> None:
        """The handshake is done."""
        ...

    def close(self, reason: str) -> None:
        """Close the connection once what was written has been sent."""
        ...


class _StreamWire:
    """What one stream sends with."""

    __slots__ = ("_id", "_mux")

    def __init__(self, mux: "TcpMux", stream_id: bytes) -> None:
        self._mux, self._id = mux, stream_id

    def transmit(self, kind: Kind, payload: bytes | memoryview = b"", *, more: bool = False) -> None:
        self._mux.output.write(HEAD.pack(len(payload), kind, MORE if more else 0, 0, self._id), payload)

    async def writable(self) -> None:
        await self._mux.output.writable()

    def forget(self) -> None:
        self._mux.streams.pop(self._id, None)


class TcpMux:
    """One side of one connection. `endpoints` are given on the side that accepts; the other one dials and asks."""

    def __init__(
        self,
        output: MuxOutput,
        limits: MuxLimits,
        *,
        endpoints: Endpoints | None = None,
        instance: str = "",
        token: str | None = None,
    ) -> None:
        self.output = output
        self.streams: dict[bytes, AnyStream] = {}
        self.peer_instance = ""
        self.peer = Peer()
        """The other end: its address as `connected` has told, and the token of its hello."""
        self.refusal: TransportError | None = None
        """Why the peer does not speak with us."""
        self.is_ready = False
        self.goaway: int | None = None
        """Why the peer takes no more streams; None while it does."""
        self.pongs = 0
        self.protocol_errors = 0
        self._limits, self._endpoints = limits, endpoints
        self._instance, self.token = instance, token
        self._cutter = FrameCutter(HEAD.size, self._length_at)
        self._stream_limits = StreamLimits()
        self._assembly = RequestAssembly(
            message_bytes_max=limits.message_bytes_max, bytes_max=limits.assembling_bytes_max
        )
        self._closed = False

    # -- this side speaks --------------------------------------------------------------------------------------------

    def connected(self, address: str) -> None:
        """The connection is there; `address` is the other end's."""
        self.peer = Peer(address)

    def greet(self) -> None:
        """Say hello, on the side that dials."""
        limits = self._limits
        hello = Hello(PROTOCOL, [VERSION], self._instance, limits.frame_bytes_max, limits.window_bytes, self.token)
        self._write(Kind.HELLO, msgspec.json.encode(hello))

    def open(self, stream_id: bytes, request: bytes, context: Context, *, many_in: bool) -> ClientStream:
        """Send a request, encoded by `encode_request`, under a new stream id of 16 bytes."""
        assert self.is_ready, "no handshake yet"
        wire = _StreamWire(self, stream_id)
        stream = ClientStream(wire, context, self._stream_limits, many_in=many_in)
        self.streams[stream_id] = stream
        frame_bytes_max = self._stream_limits.frame_bytes_max
        last = max(0, len(request) - 1) // frame_bytes_max * frame_bytes_max
        view = memoryview(request) if last else request
        flags_of_last = 0 if many_in else ENDS
        for at in range(0, last + 1, frame_bytes_max):
            piece = view[at : at + frame_bytes_max] if last else view
            flags = MORE if at < last else flags_of_last
            self.output.write(HEAD.pack(len(piece), Kind.REQUEST, flags, 0, stream_id), piece)
        return stream

    def ping(self, payload: bytes = bytes(8)) -> None:
        """Ask for a sign of life."""
        self._write(Kind.PING, payload)

    def say_goodbye(self, reason: int) -> None:
        """Tell the peer to open no more streams here; those that are open go on."""
        self._write(Kind.GOAWAY, bytes([reason]))

    def lost(self, reason: str) -> None:
        """The connection is gone: every stream fails."""
        self._closed = True
        self._assembly.clear()
        for stream in tuple(self.streams.values()):
            stream.on_lost(reason)
        self.streams.clear()

    # -- the peer speaks ---------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Take in bytes; whatever they are, this raises nothing."""
        try:
            for frame in self._cutter.feed(data):
                if not self._closed:
                    self._on_frame(frame)
        except (ProtocolError, RefusedError, WireError) as error:
            self._abort(error)

    def _length_at(self, data: bytes | memoryview, at: int) -> int:
        payload_bytes, kind, _, reserved, stream_id = HEAD.unpack_from(data, at)
        if reserved:
            raise ProtocolError(f"a frame's reserved field is {reserved}")
        length: int = HEAD.size + payload_bytes
        if payload_bytes <= self._limits.frame_bytes_max:
            return length
        if not self.is_ready or stream_id == NO_STREAM or kind not in (Kind.DATA, Kind.REQUEST):
            raise ProtocolError(f"a frame of {payload_bytes} bytes exceeds the limit of {self._limits.frame_bytes_max}")
        return -length

    def _on_frame(self, frame: memoryview) -> None:
        payload_bytes, kind, flags, _, stream_id = HEAD.unpack_from(frame)
        if len(frame) < HEAD.size + payload_bytes:
            self._too_long(stream_id, payload_bytes)
            return
        stream = self.streams.get(stream_id)
        if stream is not None:
            if not deliver(stream, kind, frame[HEAD.size :], more=bool(flags & MORE)):
                self._unknown(kind, flags)
        elif not self.is_ready:
            self._on_handshake(kind, frame[HEAD.size :])
        elif kind == Kind.REQUEST:
            self._on_request(stream_id, frame[HEAD.size :], flags)
        elif stream_id == NO_STREAM or kind not in _STREAM_KINDS:
            self._on_connection_frame(kind, flags, frame[HEAD.size :])
        # Else it is the rest of a stream that has ended here: its sender does not know that yet.

    def _on_connection_frame(self, kind: int, flags: int, payload: memoryview) -> None:
        if kind == Kind.PING:
            self._write(Kind.PONG, payload)
        elif kind == Kind.PONG:
            self.pongs += 1
        elif kind == Kind.GOAWAY:
            self.goaway = payload[0] if payload else 0
        elif kind != Kind.CONN_ACK:  # Nothing here is sent again, so that how far the peer has come decides nothing.
            self._unknown(kind, flags)

    def _unknown(self, kind: int, flags: int) -> None:
        if not flags & MAY_IGNORE:
            raise ProtocolError(f"a frame of kind {kind} means nothing here")

    def _too_long(self, stream_id: bytes, payload_bytes: int) -> None:
        """A frame of one stream exceeds the limit; its payload is being skipped, and only that stream fails."""
        message = f"a frame of {payload_bytes} bytes exceeds the limit of {self._limits.frame_bytes_max}"
        error = RefusedError(message, code="RESOURCE_EXHAUSTED", retryable=False)
        stream = self.streams.get(stream_id)
        if stream is not None:
            stream.reset(error)
        else:
            self._refuse(stream_id, error)

    # -- handshake ---------------------------------------------------------------------------------------------------

    def _on_handshake(self, kind: int, payload: memoryview) -> None:
        if self._endpoints is None:
            self._on_hello_ack(kind, payload)
        elif kind == Kind.HELLO:
            self._on_hello(payload)
        else:
            raise ProtocolError(f"the first frame is of kind {kind}; HELLO is expected")

    def _on_hello(self, payload: memoryview) -> None:
        hello: Hello = _read(payload, Hello)
        if hello.proto != PROTOCOL or VERSION not in hello.versions:
            raise ProtocolError(
                f"{hello.proto!r} versions {hello.versions[:16]} are not spoken here; {PROTOCOL} {VERSION} is"
            )
        assert self._endpoints is not None
        self.peer = Peer(self.peer.address, None if hello.token is None else f"Bearer {hello.token}")
        self._endpoints.identify(self.peer)
        self._agree(hello.instance, hello.max_frame, hello.window)
        limits = self._limits
        answer = HelloAck(VERSION, self._instance, limits.frame_bytes_max, limits.window_bytes)
        self._write(Kind.HELLO_ACK, msgspec.json.encode(answer))
        self.output.ready()

    def _on_hello_ack(self, kind: int, payload: memoryview) -> None:
        if kind == Kind.RESET:
            error = self.refusal = decode_error(payload, refused=True)
            self._closed = True
            self.output.close(str(error))
            return
        if kind == Kind.GOAWAY:
            self.goaway = payload[0] if payload else 0
            self.output.close("the peer takes no more connections")
            return
        if kind != Kind.HELLO_ACK:
            raise ProtocolError(f"HELLO was answered by a frame of kind {kind}")
        ack: HelloAck = _read(payload, HelloAck)
        if ack.version != VERSION:
            raise ProtocolError(f"the peer chose version {ack.version}, which was not offered")
        self._agree(ack.instance, ack.max_frame, ack.window)
        self.output.ready()

    def _agree(self, instance: str, frame_bytes_max: int, window_bytes: int) -> None:
        if frame_bytes_max < _WINDOW_BYTES_MIN or window_bytes < _WINDOW_BYTES_MIN:
            raise ProtocolError(
                f"max_frame {frame_bytes_max} and window {window_bytes} must be {_WINDOW_BYTES_MIN} at least"
            )
        limits = self._limits
        self.peer_instance = instance
        self._stream_limits = StreamLimits(
            window_bytes=limits.window_bytes,
            peer_window_bytes=window_bytes,
            frame_bytes_max=frame_bytes_max,
            item_bytes_max=limits.message_bytes_max,
        )
        self.is_ready = True

    # -- requests ----------------------------------------------------------------------------------------------------

    def _on_request(self, stream_id: bytes, payload: memoryview, flags: int) -> None:
        if self._endpoints is None or stream_id == NO_STREAM:
            raise ProtocolError("a request where none is taken")
        try:
            whole = self._assembly.add(stream_id, payload, more=bool(flags & MORE))
            if whole is None:
                return
            decoded = decode_request(whole, bytes_max=self._limits.message_bytes_max)
            wire = _StreamWire(self, stream_id)
            stream = self._endpoints.open(decoded, wire, self._stream_limits, self.peer)
        except WireError as error:
            self._refuse(stream_id, RefusedError(str(error), code="INVALID_ARGUMENT"))
        except RefusedError as error:
            self._refuse(stream_id, error)
        else:
            self.streams[stream_id] = stream
            wire.transmit(Kind.ACK)
            if flags & ENDS:
                stream.on_end()

    def _refuse(self, stream_id: bytes, error: TransportError) -> None:
        self._assembly.drop(stream_id)
        _StreamWire(self, stream_id).transmit(Kind.ACK, encode_error(error))

    def _abort(self, error: KvrouterError) -> None:
        """The peer has broken the protocol, or may not speak: nothing on this connection is believed any more."""
        self.protocol_errors += isinstance(error, ProtocolError | WireError)
        told = error if isinstance(error, TransportError) else ProtocolError(str(error))
        self._write(Kind.RESET, encode_error(told))
        self.lost(str(error))
        self.output.close(str(error))

    def _write(self, kind: Kind, payload: bytes | memoryview = b"") -> None:
        self.output.write(head_of(kind, len(payload), NO_STREAM), payload)


T = TypeVar("T", Hello, HelloAck)
_STREAM_KINDS = frozenset({Kind.PROLOGUE, Kind.DATA, Kind.END, Kind.STOP, Kind.KILL, Kind.WINDOW, Kind.RESET, Kind.ACK})


def _read(payload: memoryview, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"{kind.__name__}: {error}") from None
