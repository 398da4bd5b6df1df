"""Messages of any number of parts: the first is the envelope, the others are the body.

The form for transports that carry one blob per message (TCP, NATS, HTTP bodies, UCX); ZMQ and gRPC carry the parts
themselves. Big-endian:

    0   u8   version, 1
    1   u8   flags: bit 0 checksum, bit 1 control, bit 2 error; the others are 0
    2   u16  number of parts, 1 to 1024
    4   u32  0
    8   u64  XXH3-64 of all parts, seed 0; 0 without the flag
    16  u64  length of each part
    ..  the parts
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from struct import Struct
from typing import NamedTuple

from xxhash import xxh3_64, xxh3_64_intdigest

from kvrouter.errors import WireError
from kvrouter.transport.two_part import MESSAGE_BYTES_MAX, TwoPart

__all__ = ["CONTENT_TYPE", "PARTS_MAX", "NPart", "decode_n_part", "encode_n_part", "from_two_part", "to_two_part"]

CONTENT_TYPE = "application/x-kvr-npart"
PARTS_MAX = 1024
_VERSION = 1
_CHECKSUM, _CONTROL, _ERROR = 1, 2, 4
_head = Struct(">BBHIQ")


class NPart(NamedTuple):
    """One message; `parts` has at least one."""

    parts: tuple[bytes | memoryview, ...]
    control: bool = False
    error: bool = False


def encode_n_part(message: NPart, *, checksum: bool = True, bytes_max: int = MESSAGE_BYTES_MAX) -> bytes:
    """Return the message as bytes.

    Raises:
        WireError: it has no part or more than `PARTS_MAX`, or is longer than `bytes_max` (reason `too_large`).
    """
    parts = message.parts
    _check_count(len(parts))
    lengths = Struct(f">{len(parts)}Q").pack(*map(len, parts))
    _check_length(_head.size + len(lengths) + sum(map(len, parts)), bytes_max)
    flags = checksum * _CHECKSUM | message.control * _CONTROL | message.error * _ERROR
    head = _head.pack(_VERSION, flags, len(parts), 0, _digest(parts) if checksum else 0)
    return b"".join((head, lengths, *parts))


def decode_n_part(data: bytes | memoryview, *, bytes_max: int = MESSAGE_BYTES_MAX) -> NPart:
    """Read a buffer that holds exactly one message; its parts are views into it.

    Raises:
        WireError: it is no such message (`malformed`), of another version (`version`), too long (`too_large`) or
            damaged (`checksum`).
    """
    view = memoryview(data)
    _check_length(len(view), bytes_max)
    if len(view) < _head.size:
        raise WireError(f"an N-part message begins with {_head.size} bytes, got {len(view)}")
    version, flags, count, reserved, digest = _head.unpack_from(view)
    if version != _VERSION:
        raise WireError(f"N-part version {version} is unknown; known: {_VERSION}", reason="version")
    if flags & ~(_CHECKSUM | _CONTROL | _ERROR) or reserved:
        raise WireError(f"an N-part message has flags {flags:#x} and reserved {reserved:#x}, which nobody defined")
    _check_count(count)
    return _decode_parts(view, count, flags, digest)


def from_two_part(message: TwoPart) -> NPart:
    """The same message in N parts; a message without a body has one."""
    return NPart((message.header, message.body) if message.body else (message.header,), control=message.is_control)


def to_two_part(message: NPart) -> TwoPart:
    """The same message in two parts.

    Raises:
        WireError: it has more than two.
    """
    if len(message.parts) > 2:
        raise WireError(f"a message of {len(message.parts)} parts does not fit into two")
    return TwoPart(message.parts[0], message.parts[1] if len(message.parts) > 1 else b"")


def _decode_parts(view: memoryview, count: int, flags: int, digest: int) -> NPart:
    start = _head.size + 8 * count
    if len(view) < start:
        raise WireError(f"an N-part message of {count} parts is cut within its lengths")
    lengths = Struct(f">{count}Q").unpack_from(view, _head.size)
    ends = list(accumulate(lengths, initial=start))
    if ends[-1] != len(view):
        raise WireError(f"an N-part message tells of {ends[-1]} bytes and has {len(view)}")
    if flags & _CHECKSUM:
        if digest != xxh3_64_intdigest(view[start:]):
            raise WireError("an N-part message's checksum does not match its content", reason="checksum")
    elif digest:
        raise WireError("an N-part message has a checksum that its flags deny")
    parts = tuple(view[first:last] for first, last in pairwise(ends))
    return NPart(parts, bool(flags & _CONTROL), bool(flags & _ERROR))


def _digest(parts: Sequence[bytes | memoryview]) -> int:
    running = xxh3_64()
    for part in parts:
        running.update(part)
    return running.intdigest()


def _check_count(count: int) -> None:
    if not 1 <= count <= PARTS_MAX:
        raise WireError(f"an N-part message has {count} parts; 1 to {PARTS_MAX} are allowed")


def _check_length(total: int, bytes_max: int) -> None:
    if total > bytes_max:
        raise WireError(f"a message of {total} bytes exceeds the limit of {bytes_max}", reason="too_large")
