"""What two peers tell each other about a stream, whatever carries it: kinds of messages, requests, errors on the wire.

The numbers are those of the frames of the multiplexed connection (docs/planes.md); transports that carry envelopes use
the lower-case names.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal, Protocol, Self, TypeAlias

import msgspec

from kvrouter.errors import (
    DisconnectedError,
    HandlerError,
    PermissionDeniedError,
    ProtocolError,
    RateLimitedError,
    RefusedError,
    TransportError,
    UnauthenticatedError,
    WireError,
)
from kvrouter.transport.two_part import MESSAGE_BYTES_MAX, decode_two_part, encode_two_part

__all__ = [
    "NO_ITEMS",
    "Codec",
    "ErrorRecord",
    "Kind",
    "Request",
    "RequestControl",
    "Wire",
    "decode_error",
    "decode_request",
    "encode_error",
    "encode_request",
    "refusal",
]

Codec: TypeAlias = Literal["raw", "json", "msgpack"]
"""How the two ends write the body and the items. `raw` is ours: nothing between the ends may look into them."""

HEADERS_MAX = 128
HEADER_BYTES_MAX = 16 << 10
_ERROR_TEXT_MAX = 4096


class Kind(IntEnum):
    """Kinds of messages about one stream, and, from HELLO on, about the connection that carries it."""

    PROLOGUE = 1
    DATA = 2
    END = 3
    STOP = 4
    KILL = 5
    WINDOW = 6
    RESET = 7
    CONN_ACK = 8
    HELLO = 16
    HELLO_ACK = 17
    REQUEST = 18
    ACK = 19
    PING = 20
    PONG = 21
    GOAWAY = 22


class Wire(Protocol):
    """What a transport gives to one stream. Lives on one event loop."""

    def transmit(self, kind: Kind, payload: bytes | memoryview = b"", *, more: bool = False) -> None:
        """Send one message after those before it; never waits, and is ignored once the connection is lost."""
        ...

    async def writable(self) -> None:
        """Wait while the connection has more to send than it should."""
        ...

    def forget(self) -> None:
        """Both directions have ended: what arrives for this stream from now on means nothing."""
        ...


class _NoItems:
    """The further items of a request that has none."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        raise StopAsyncIteration


NO_ITEMS: AsyncIterator[bytes] = _NoItems()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request: for which endpoint, and what.

    `body` is opaque here; `codec` says how the two ends write it and the items of the answer. With `many_in` the
    requester sends further items, which the handler reads from `items`.
    """

    endpoint: str
    body: bytes | memoryview = b""
    codec: Codec = "raw"
    many_in: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)
    items: AsyncIterator[bytes] = NO_ITEMS


class RequestControl(msgspec.Struct, omit_defaults=True):
    """The header of a request as JSON. Dynamo's `RequestControlMessage`, and three members more."""

    id: str
    request_type: Literal["single_in", "many_in"] = "single_in"
    response_type: Literal["single_out", "many_out"] = "many_out"
    payload_codec: Codec = "json"
    metadata: dict[str, str] = {}
    endpoint: str = ""
    headers: dict[str, str] = {}
    deadline_ms: int | None = None


class ErrorRecord(msgspec.Struct, omit_defaults=True):
    """An error as JSON."""

    code: str = "UNKNOWN"
    message: str = ""
    retryable: bool = False
    retry_after_seconds: float | None = None


_encode = msgspec.json.Encoder().encode
_decode_control = msgspec.json.Decoder(RequestControl).decode
_decode_wire_error = msgspec.json.Decoder(ErrorRecord).decode


def encode_request(
    request: Request,
    *,
    id: str,  # noqa: A002 - the field's name
    headers: Mapping[str, str],
    remaining_seconds: float | None = None,
    bytes_max: int = MESSAGE_BYTES_MAX,
) -> bytes:
    """Return a request as a two-part message: control header and body.

    Raises:
        WireError: it exceeds `bytes_max`, or its headers the bounds of `check_headers`; reason `too_large`.
    """
    check_headers(headers)
    control = {
        "id": id,
        "request_type": "many_in" if request.many_in else "single_in",
        "response_type": "many_out",
        "payload_codec": request.codec,
        "endpoint": request.endpoint,
    }
    extra: dict[str, object] = {}
    if request.metadata:
        extra["metadata"] = request.metadata
    if headers:
        extra["headers"] = headers
    if remaining_seconds is not None:
        extra["deadline_ms"] = max(1, int(remaining_seconds * 1000))
    return encode_two_part(_encode({**control, **extra}), request.body, bytes_max=bytes_max)


class DecodedRequest(msgspec.Struct, frozen=True):
    """A request as it arrived, with what its context is made of."""

    id: str
    headers: dict[str, str]
    remaining_seconds: float | None
    request: Request


def decode_request(
    data: bytes | memoryview, *, bytes_max: int = MESSAGE_BYTES_MAX, endpoint: str = ""
) -> DecodedRequest:
    """Read a request; one that names no endpoint is for `endpoint`.

    Raises:
        WireError: it is no two-part message with a control header as specified; the text names the field.
    """
    header, body = decode_two_part(data, bytes_max=bytes_max)
    try:
        control = _decode_control(header)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WireError(f"Invalid message: the control header of a request: {error}") from None
    check_headers(control.headers)
    remaining = None if control.deadline_ms is None else control.deadline_ms / 1000
    request = Request(
        endpoint=control.endpoint or endpoint,
        body=body,
        codec=control.payload_codec,
        many_in=control.request_type == "many_in",
        metadata=control.metadata,
    )
    return DecodedRequest(control.id, control.headers, remaining, request)


def check_headers(headers: Mapping[str, str]) -> None:
    """Raise WireError (`too_large`) if there are more than 128 headers, or more than 16 KiB of them."""
    if len(headers) > HEADERS_MAX:
        raise WireError(f"a request has {len(headers)} headers; at most {HEADERS_MAX} are allowed", reason="too_large")
    characters = sum(len(name) + len(value) for name, value in headers.items())
    if characters > HEADER_BYTES_MAX:
        raise WireError(f"headers of {characters} characters exceed {HEADER_BYTES_MAX}", reason="too_large")


def encode_error(error: BaseException) -> bytes:
    """An error as JSON for the peer. Only errors of our own say more than their type: others may hold anything."""
    if isinstance(error, TransportError):
        told = {"code": error.code, "message": str(error)[:_ERROR_TEXT_MAX], "retryable": error.retryable}
        if isinstance(error, RefusedError) and error.retry_after_seconds is not None:
            told["retry_after_seconds"] = error.retry_after_seconds
        return _encode(told)
    return _encode({"code": "INTERNAL", "message": f"the handler failed: {type(error).__name__}", "retryable": False})


def decode_error(data: bytes | memoryview, *, refused: bool = False) -> TransportError:
    """The error that a peer has told. `refused`: it came instead of an acceptance, so nothing was done."""
    try:
        told = _decode_wire_error(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ProtocolError("the peer told of an error that cannot be read")
    if refused:
        return refusal(
            told.message, code=told.code, retryable=told.retryable, retry_after_seconds=told.retry_after_seconds
        )
    if told.code == "UNAVAILABLE" and told.retryable:
        return DisconnectedError(told.message)
    return HandlerError(
        told.message, code=told.code, retryable=told.retryable, retry_after_seconds=told.retry_after_seconds
    )


def refusal(
    message: str, *, code: str, retryable: bool | None = None, retry_after_seconds: float | None = None
) -> RefusedError:
    """A refusal as the class that its code stands for.

    One that may be repeated elsewhere is of a worker that is too busy; one that may not is of a client that asks too
    often.
    """
    if code == "UNAUTHENTICATED":
        return UnauthenticatedError(message)
    if code == "PERMISSION_DENIED":
        return PermissionDeniedError(message)
    if code == "RESOURCE_EXHAUSTED" and retryable is False and retry_after_seconds is not None:
        return RateLimitedError(message, retry_after_seconds=retry_after_seconds)
    return RefusedError(message, code=code, retryable=retryable, retry_after_seconds=retry_after_seconds)
