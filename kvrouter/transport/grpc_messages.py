"""Envelopes as messages of gRPC: `message Envelope { repeated bytes parts = 1; uint32 flags = 2; }`.

Written and read by hand: two fields need no code generator, and so no version of a runtime that fits it. Flags are
those of an N-part message: bit 1 control, bit 2 error. Unknown fields are skipped, as protobuf wants it.
"""

from kvrouter.errors import WireError
from kvrouter.transport.n_part import PARTS_MAX, NPart

__all__ = ["METHOD", "SERVICE", "decode_message", "encode_message"]

SERVICE = "kvrouter.v1.RequestPlane"
METHOD = "Exchange"

_PARTS_TAG, _FLAGS_TAG = 1 << 3 | 2, 2 << 3 | 0
_CONTROL, _ERROR = 2, 4
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def encode_message(message: NPart) -> bytes:
    """Return one message."""
    pieces: list[bytes | memoryview] = []
    for part in message.parts:
        pieces += (bytes([_PARTS_TAG]), _encode_varint(len(part)), part)
    flags = message.control * _CONTROL | message.error * _ERROR
    if flags:
        pieces += (bytes([_FLAGS_TAG]), _encode_varint(flags))
    return b"".join(pieces)


def decode_message(data: bytes) -> NPart:
    """Read one message.

    Raises:
        WireError: it is cut, or not written as protobuf, or has no part or more than `PARTS_MAX`.
    """
    view, at = memoryview(data), 0
    parts: list[memoryview] = []
    flags = 0
    while at < len(view):
        tag, at = _decode_varint(view, at)
        if tag & 7 == _BYTES:
            length, at = _decode_varint(view, at)
            if tag == _PARTS_TAG:
                parts.append(view[at : at + length])
            at += length
        elif tag & 7 == _VARINT:
            number, at = _decode_varint(view, at)
            flags = number if tag == _FLAGS_TAG else flags
        elif tag & 7 in (_FIXED32, _FIXED64):
            at += 4 if tag & 7 == _FIXED32 else 8
        else:
            raise WireError(f"a gRPC envelope has a field of wire type {tag & 7}")
    if at > len(view):
        raise WireError("a gRPC envelope is cut")
    if not 1 <= len(parts) <= PARTS_MAX:
        raise WireError(f"a gRPC envelope has {len(parts)} parts; 1 to {PARTS_MAX} are allowed")
    return NPart(tuple(parts), bool(flags & _CONTROL), bool(flags & _ERROR))


def _encode_varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def _decode_varint(view: memoryview, at: int) -> tuple[int, int]:
    number = shift = 0
    while shift < 64:
        if at >= len(view):
            raise WireError("a gRPC envelope is cut")
        byte = view[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
        shift += 7
    raise WireError("a gRPC envelope has a number of more than 64 bits")
