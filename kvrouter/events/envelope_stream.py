"""Envelopes of one life of one source, one after another, quickly.

Their headers differ in three numbers, so these are what is written and read. Bytes and meaning are those of
`envelope`, whose functions do all that is not in the usual form.
"""

from collections.abc import Callable
from struct import Struct
from struct import error as StructError  # noqa: N812 - it is a class
from typing import Final, NamedTuple, cast

import msgpack

from kvrouter.events.decode import PAYLOAD_BYTES_MAX
from kvrouter.events.digest import DigestRow
from kvrouter.events.envelope import SEQUENCE_MAX, TIME_SECONDS_MAX, Envelope, decode_envelope, encode_envelope
from kvrouter.events.model import Source

__all__ = ["EnvelopeReader", "EnvelopeWriter", "Opened"]

_SEQUENCE: Final = b"\xa8sequence"
_TIME: Final = b"\xa4time\xcb"
_BYTES: Final = b"\xa5bytes"
_FLOAT64: Final = Struct(">d")
_NUMBERS: Final[dict[int, Callable[..., tuple[int]]]] = {
    0xCC: Struct(">B").unpack_from,
    0xCD: Struct(">H").unpack_from,
    0xCE: Struct(">I").unpack_from,
    0xCF: Struct(">Q").unpack_from,
}
_WIDTHS: Final = {0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9}


class Opened(NamedTuple):
    """What of an envelope its receiver needs."""

    source: Source
    incarnation: int
    sequence: int
    payload: bytes
    snapshot: tuple[int, int] | None
    digest: tuple[DigestRow, ...] | None


class EnvelopeWriter:
    """Writes the envelopes of one life.

    Raises:
        WireError: a value is out of its bounds, here or in `write`.
    """

    def __init__(self, source: Source, incarnation: int) -> None:
        self._source, self._incarnation = source, incarnation
        frame = self.write_any(0, 0.0, b"\x90")
        self._start = frame[: frame.index(_SEQUENCE, len(source.worker_id.encode()) + 20) + len(_SEQUENCE)]

    def write(self, sequence: int, timestamp: float, payload: bytes) -> bytes:
        """Return the frame of a batch."""
        size = len(payload)
        if not (0 <= sequence <= SEQUENCE_MAX and 0 <= timestamp <= TIME_SECONDS_MAX and 0 < size <= PAYLOAD_BYTES_MAX):
            return self.write_any(sequence, timestamp, payload)
        pack = msgpack.packb
        return b"".join((self._start, pack(sequence), _TIME, _FLOAT64.pack(timestamp), _BYTES, pack(size), payload))

    def write_any(
        self,
        sequence: int,
        timestamp: float,
        payload: bytes,
        *,
        snapshot: tuple[int, int] | None = None,
        digest: tuple[DigestRow, ...] | None = None,
    ) -> bytes:
        """Return the frame of a batch with a digest, or of a part of a snapshot."""
        return encode_envelope(
            Envelope(
                source=self._source,
                incarnation=self._incarnation,
                sequence=sequence,
                timestamp=timestamp,
                payload=payload,
                snapshot=snapshot,
                digest=digest,
            )
        )


class EnvelopeReader:
    """Reads envelopes; those that begin as the last one did are read quickly."""

    __slots__ = ("_incarnation", "_source", "_start")

    def __init__(self) -> None:
        self._start = b""
        self._source = Source("", 0)
        self._incarnation = 0

    def read(self, frame: bytes) -> Opened:
        """Read one frame.

        Raises:
            WireError: as `decode_envelope`.
        """
        start = self._start
        if start and frame.startswith(start):
            try:
                opened = self._read_next(frame, len(start))
            except (LookupError, StructError):
                opened = None
            if opened is not None:
                return opened
        envelope = decode_envelope(frame)
        self._remember(frame, envelope)
        return Opened(
            envelope.source,
            envelope.incarnation,
            envelope.sequence,
            envelope.payload,
            envelope.snapshot,
            envelope.digest,
        )

    def _read_next(self, frame: bytes, position: int) -> Opened | None:
        """Read what follows the known start, if it is in the usual form; None leaves it to the careful reader."""
        mark = frame[position]
        if mark < 0x80:
            sequence, position = mark, position + 1
        else:
            (sequence,) = _NUMBERS[mark](frame, position + 1)
            position += _WIDTHS[mark]
        if not frame.startswith(_TIME, position):
            return None
        (timestamp,) = _FLOAT64.unpack_from(frame, position + 6)
        position += 14
        if not 0 <= timestamp <= TIME_SECONDS_MAX or sequence > SEQUENCE_MAX or not frame.startswith(_BYTES, position):
            return None
        mark = frame[position + 6]
        if mark < 0x80:
            size, position = mark, position + 7
        else:
            (size,) = _NUMBERS[mark](frame, position + 7)
            position += 6 + _WIDTHS[mark]
        if not 0 < size <= PAYLOAD_BYTES_MAX or len(frame) - position != size:
            return None
        return Opened(self._source, self._incarnation, sequence, frame[position:], None, None)

    def _remember(self, frame: bytes, envelope: Envelope) -> None:
        """Know this frame's start again, if our own writer wrote it and it has no other fields."""
        self._start = b""
        if envelope.snapshot is None and envelope.digest is None and not envelope.unknown_fields:
            expected = encode_envelope(envelope)
            if frame == expected:
                worker = cast("bytes", msgpack.packb(envelope.source.worker_id))
                self._start = frame[: frame.index(_SEQUENCE, len(worker) + 20) + len(_SEQUENCE)]
                self._source, self._incarnation = envelope.source, envelope.incarnation
