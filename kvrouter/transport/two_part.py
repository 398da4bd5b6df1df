"""Two-part messages: a header and a body, each of any length, under one prefix of 24 bytes.

Wire-compatible with NVIDIA Dynamo's two-part codec (docs/planes.md has the layout and vectors). Big-endian:

    0   u64  length of the header
    8   u64  length of the body
    16  u64  XXH3-64 of header and body, seed 0; 0 means that none was computed
    24  header, body

What is empty tells the kind of a message: a control message has no body, a piece of payload no header.
"""

from collections.abc import Iterator
from struct import Struct
from typing import Literal, NamedTuple, TypeAlias

from xxhash import xxh3_64, xxh3_64_intdigest

from kvrouter.errors import WireError
from kvrouter.transport.frame_cutter import FrameCutter

__all__ = [
    "MESSAGE_BYTES_MAX",
    "PREFIX_BYTES",
    "Checksum",
    "TwoPart",
    "TwoPartReader",
    "decode_two_part",
    "encode_two_part",
]

PREFIX_BYTES = 24
MESSAGE_BYTES_MAX = 32 << 20
"""Bound of a whole message where nobody sets another."""
CHECKSUM_BYTES_MAX = 64 << 10
"""Longer messages are not checksummed by default: it would cost more than the copy."""

Checksum: TypeAlias = Literal["auto", "always", "never"]
_prefix = Struct(">QQQ")


class TwoPart(NamedTuple):
    """One message. Empty parts are empty, never None."""

    header: bytes | memoryview
    body: bytes | memoryview

    @property
    def is_control(self) -> bool:
        """Whether there is a header and no body."""
        return bool(self.header) and not self.body


def encode_two_part(
    header: bytes | memoryview,
    body: bytes | memoryview,
    *,
    checksum: Checksum = "auto",
    bytes_max: int = MESSAGE_BYTES_MAX,
) -> bytes:
    """Return one message as bytes.

    Raises:
        WireError: the message is longer than `bytes_max`; the reason is `too_large`.
    """
    total = PREFIX_BYTES + len(header) + len(body)
    _check_length(total, bytes_max)
    digest = 0
    if checksum == "always" or (checksum == "auto" and total <= CHECKSUM_BYTES_MAX):
        digest = _digest(header, body)
    return b"".join((_prefix.pack(len(header), len(body), digest), header, body))


def decode_two_part(data: bytes | memoryview, *, bytes_max: int = MESSAGE_BYTES_MAX) -> TwoPart:
    """Read a buffer that holds exactly one message; its parts are views into it.

    Raises:
        WireError: it is truncated, followed by more (`malformed`), too long (`too_large`), or damaged (`checksum`).
    """
    view = memoryview(data)
    if len(view) < PREFIX_BYTES:
        raise WireError(f"No message decoded: a two-part message begins with {PREFIX_BYTES} bytes, got {len(view)}")
    total = _length_at(view, 0, bytes_max)
    if len(view) < total:
        raise WireError(f"No message decoded: the prefix tells of {total} bytes, got {len(view)}")
    if len(view) > total:
        raise WireError(f"Invalid message: {len(view) - total} bytes follow a two-part message of {total}")
    return _split(view)


class TwoPartReader:
    """Reads messages from a stream of bytes as they arrive."""

    __slots__ = ("_cutter",)

    def __init__(self, *, bytes_max: int = MESSAGE_BYTES_MAX) -> None:
        self._cutter = FrameCutter(PREFIX_BYTES, lambda data, at: _length_at(data, at, bytes_max))

    @property
    def waiting_bytes(self) -> int:
        """Bytes of a message that is not whole yet."""
        return self._cutter.waiting_bytes

    def feed(self, data: bytes) -> Iterator[TwoPart]:
        """Yield every message that is whole now; raises WireError as `decode_two_part`, and then the stream is lost."""
        return map(_split, self._cutter.feed(data))


def _length_at(data: bytes | memoryview, at: int, bytes_max: int) -> int:
    header, body, _ = _prefix.unpack_from(data, at)
    total: int = PREFIX_BYTES + header + body
    _check_length(total, bytes_max)
    return total


def _check_length(total: int, bytes_max: int) -> None:
    if total > bytes_max:
        raise WireError(f"a message of {total} bytes exceeds the limit of {bytes_max}", reason="too_large")


def _split(frame: memoryview) -> TwoPart:
    header_bytes, _, digest = _prefix.unpack_from(frame)
    parts = TwoPart(frame[PREFIX_BYTES : PREFIX_BYTES + header_bytes], frame[PREFIX_BYTES + header_bytes :])
    if digest and digest != xxh3_64_intdigest(frame[PREFIX_BYTES:]):
        raise WireError("a message's checksum does not match its content", reason="checksum")
    return parts


def _digest(header: bytes | memoryview, body: bytes | memoryview) -> int:
    if not header or not body:
        return xxh3_64_intdigest(header or body)
    running = xxh3_64(header)
    running.update(body)
    return running.intdigest()
