"""What is said on a connection over which a worker sends its answer home. Pure.

Wire-compatible with NVIDIA Dynamo's TCP response streams before their multiplexing (docs/planes.md): two-part messages,
of which those with a header alone are control (JSON), those with a body alone are items. The requester's address
travels in the request; the worker dials it, names the stream, and sends a prologue, items and a sentinel.

Where both ends are ours, a connection may be used again: the requester offers `reuse` with its address, the worker
answers with it, and after the sentinel both keep the connection for the next stream.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, TypeAlias, TypeVar

import msgspec

from kvrouter.errors import ProtocolError, TransportError, WireError
from kvrouter.transport.messages import Codec
from kvrouter.transport.two_part import TwoPart, encode_two_part

__all__ = [
    "CallHomeInfo",
    "ConnectionInfo",
    "ConnectionInfoRecord",
    "Control",
    "Handshake",
    "ItemReader",
    "Prologue",
    "StreamType",
    "control_message",
    "decode_connection_info",
    "decode_control",
    "decode_handshake",
    "decode_prologue",
    "encode_connection_info",
    "final_message",
    "handshake_message",
    "item_message",
    "prologue_message",
]

StreamType: TypeAlias = Literal["response", "request"]
_TRANSPORTS = ("tcp_server", "tcp")
_FINAL = {
    "json": b'{"data":null,"complete_final":true}',
    "msgpack": b"\x82\xa4data\xc0\xaecomplete_final\xc3",
}
_OVERLOAD_TEXTS = ("Server overloaded:", "Server unavailable:")


class Control(Enum):
    """What a header that is a JSON string asks for."""

    STOP = "stop"
    KILL = "kill"
    SENTINEL = "sentinel"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionInfo:
    """Where a worker dials for one stream."""

    address: str
    subject: str
    context: str
    stream_type: StreamType = "response"
    reuse: bool = False


class CallHomeInfo(msgspec.Struct, omit_defaults=True):
    """What `info` of a connection says, as JSON in a JSON string."""

    address: str
    subject: str
    context: str
    stream_type: StreamType = "response"
    reuse: int = 0


class ConnectionInfoRecord(msgspec.Struct):
    """Where an answer goes, or further items come from: by which transport, and what that has to know."""

    transport: str
    info: str


class Handshake(msgspec.Struct, omit_defaults=True):
    """The first message on a connection, or the first of a stream on one that is used again."""

    subject: str
    stream_type: StreamType
    reuse: int = 0


class Prologue(msgspec.Struct):
    """The handler has begun, or why it has not; later in a stream, why it ended."""

    error: str | None = None
    typed_error: dict[str, Any] | None = None


class _Item(msgspec.Struct):
    data: msgspec.Raw = msgspec.Raw(b"")
    complete_final: bool = False


_json = msgspec.json.Encoder().encode


def encode_connection_info(info: ConnectionInfo) -> dict[str, str]:
    """As it stands in a request's control header; `info` is JSON within JSON."""
    inner = CallHomeInfo(info.address, info.subject, info.context, info.stream_type, int(info.reuse))
    told = msgspec.to_builtins(inner) | {"stream_type": info.stream_type}
    return {"transport": _TRANSPORTS[0], "info": _json(told).decode()}


def decode_connection_info(given: object, *, context: str, stream_type: StreamType) -> ConnectionInfo:
    """Read it, and check that it is about this request.

    Raises:
        WireError: it is of another transport (`transport`), of another request or stream, or not readable.
    """
    try:
        outer = msgspec.convert(given, ConnectionInfoRecord)
        if outer.transport not in _TRANSPORTS:
            raise WireError(f"connection_info of transport {outer.transport[:64]!r}", reason="transport")
        inner = msgspec.json.decode(outer.info, type=CallHomeInfo)
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WireError(f"connection_info: {error}") from None
    if inner.context != context:
        raise WireError(f"connection_info is of request {inner.context[:64]!r}, not of {context[:64]!r}")
    if inner.stream_type != stream_type:
        raise WireError(f"connection_info is for a {inner.stream_type} stream, not a {stream_type} stream")
    return ConnectionInfo(
        address=inner.address,
        subject=inner.subject,
        context=inner.context,
        stream_type=inner.stream_type,
        reuse=bool(inner.reuse),
    )


def handshake_message(handshake: Handshake) -> bytes:
    """Return the first message of a stream."""
    told: dict[str, object] = {"subject": handshake.subject, "stream_type": handshake.stream_type}
    if handshake.reuse:
        told["reuse"] = 1
    return encode_two_part(_json(told), b"")


def decode_handshake(message: TwoPart) -> Handshake:
    """Read it; raises ProtocolError."""
    return _read_header(message, Handshake, "handshake")


def prologue_message(error: TransportError | None = None) -> bytes:
    """The handler has begun, or has failed before it did."""
    if error is None:
        return encode_two_part(b'{"error":null}', b"")
    typed = {"code": error.code, "retryable": error.retryable}
    return encode_two_part(_json({"error": str(error), "typed_error": typed}), b"")


def decode_prologue(message: TwoPart) -> TransportError | None:
    """Read it: None, or why the handler failed; raises ProtocolError."""
    prologue = _read_header(message, Prologue, "prologue")
    if prologue.error is None:
        return None
    typed = prologue.typed_error or {}
    code = typed.get("code")
    return TransportError(prologue.error, code=code if isinstance(code, str) else "INTERNAL")


def control_message(control: Control) -> bytes:
    """A header that is a JSON string."""
    return encode_two_part(f'"{control.value}"'.encode(), b"")


def decode_control(message: TwoPart) -> Control:
    """Read it; raises ProtocolError."""
    return _read_header(message, Control, "control message")


def item_message(item: bytes | memoryview, codec: Codec, *, bytes_max: int) -> bytes:
    """One item; wrapped as the codec's readers expect it, or as it is where the codec is raw."""
    match codec:
        case "raw":
            return encode_two_part(b"", item, bytes_max=bytes_max)
        case "json":
            return encode_two_part(b"", b'{"data":' + item + b',"complete_final":false}', bytes_max=bytes_max)
        case "msgpack":
            return encode_two_part(b"", b"\x82\xa4data" + item + b"\xaecomplete_final\xc2", bytes_max=bytes_max)


def final_message(codec: Codec) -> bytes:
    """What says that the answer is whole, before the sentinel; nothing where the codec is raw."""
    return b"" if codec == "raw" else encode_two_part(b"", _FINAL[codec])


class ItemReader:
    """Unwraps the items of one stream. Pure; `is_final` tells whether the answer is whole."""

    __slots__ = ("_codec", "_decode", "_items", "is_final")

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._items = 0
        self.is_final = codec == "raw"
        decoder: Any = msgspec.json.Decoder(_Item) if codec == "json" else msgspec.msgpack.Decoder(_Item)
        self._decode: Callable[[memoryview], _Item] = decoder.decode

    def read(self, body: memoryview) -> bytes | None:
        """The item of one message; None for the final one.

        Raises:
            TransportError: the worker says that it is overloaded (`RESOURCE_EXHAUSTED`).
            ProtocolError: no item, an empty one before the end, or any after it.
        """
        if self._codec == "raw":
            return bytes(body)
        if self.is_final:
            raise ProtocolError("an item after the final one")
        if not self._items:
            _refuse_overload(body)
        try:
            item = self._decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ProtocolError(f"an item of the answer cannot be read: {error}") from None
        data = bytes(item.data)
        self._items += 1
        if item.complete_final:
            self.is_final = True
            return None if data in (b"", b"null", b"\xc0") else data
        if data in (b"", b"null", b"\xc0"):
            raise ProtocolError("an empty item that is not the final one")
        return data


def _refuse_overload(body: memoryview) -> None:
    begin = bytes(body[:256]).decode(errors="replace").lstrip('"')
    if begin.startswith(_OVERLOAD_TEXTS):
        raise TransportError(begin, code="RESOURCE_EXHAUSTED", retryable=True)


H = TypeVar("H")


def _read_header(message: TwoPart, kind: type[H], what: str) -> H:
    if not message.is_control:
        raise ProtocolError(f"malformed {what}: a message with a body")
    try:
        return msgspec.json.decode(message.header, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"malformed {what}: {error}") from None
