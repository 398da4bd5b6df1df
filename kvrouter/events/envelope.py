"""The native envelope: which life of which source sent which batch, whatever carries it. docs/wire.md is its page.

A frame is a msgpack map, the header, and directly after it a batch as `decode` reads it, byte for byte. The batch
stays bytes here: a relay passes an engine's own on without understanding it, and a batch that cannot be understood
is ingest's to quarantine, under a number that is known. Not here: sockets, compression, who draws an incarnation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, cast

import msgpack

from kvrouter.errors import WireError
from kvrouter.events.decode import PAYLOAD_BYTES_MAX
from kvrouter.events.digest import DigestRow
from kvrouter.events.frames import END_SEQUENCE
from kvrouter.events.model import Source

__all__ = [
    "DIGEST_ROWS_MAX",
    "ENVELOPE_BYTES_MAX",
    "ENVELOPE_VERSION",
    "HEADER_BYTES_MAX",
    "HEADER_FIELDS_MAX",
    "INCARNATION_MAX",
    "MEDIUM_BYTES_MAX",
    "RANK_MAX",
    "SEQUENCE_MAX",
    "SNAPSHOT_PARTS_MAX",
    "TIME_SECONDS_MAX",
    "WORKER_ID_BYTES_MAX",
    "Envelope",
    "decode_envelope",
    "encode_envelope",
    "is_envelope",
]

ENVELOPE_VERSION: Final = (1, 1)
"""Major and minor version that is written. A reader takes every minor version of its major one, and no other major."""

HEADER_BYTES_MAX: Final = 4096
HEADER_FIELDS_MAX: Final = 64
WORKER_ID_BYTES_MAX: Final = 256
RANK_MAX: Final = 2**32 - 1
INCARNATION_MAX: Final = 2**64 - 1
SEQUENCE_MAX: Final = END_SEQUENCE - 1
TIME_SECONDS_MAX: Final = 2**53
VERSION_NUMBER_MAX: Final = 65535
SNAPSHOT_PARTS_MAX: Final = 65536
DIGEST_ROWS_MAX: Final = 64
MEDIUM_BYTES_MAX: Final = 32
GROUP_MAX: Final = 2**32 - 1
COUNT_MAX: Final = 2**63
ENVELOPE_BYTES_MAX: Final = HEADER_BYTES_MAX + PAYLOAD_BYTES_MAX

_MAGIC: Final = b"\xa8kvrouter"  # The first key of every header, as msgpack writes it.
_KNOWN: Final = frozenset(
    ["kvrouter", "worker", "rank", "incarnation", "sequence", "time", "bytes", "snapshot", "digest"]
)

_Fields = Mapping[object, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """One batch and where it belongs.

    `incarnation` is drawn at random once in a publisher's life; `sequence` counts from 0 in it. `timestamp` is when
    the batch was published, in seconds since the epoch; `payload` is the batch, for `decode_batch`. `version` is the
    writer's; `unknown_fields` is how many fields of a header were newer than this build.

    With `snapshot`, (part, parts), this is no batch of the stream but a part of the whole state of the source after
    batch `sequence`. `digest` describes that state; a place without a row is empty.
    """

    source: Source
    incarnation: int
    sequence: int
    timestamp: float
    payload: bytes
    snapshot: tuple[int, int] | None = None
    digest: tuple[DigestRow, ...] | None = None
    version: tuple[int, int] = ENVELOPE_VERSION
    unknown_fields: int = 0


def encode_envelope(envelope: Envelope) -> bytes:
    """Encode `envelope`, always in our own version; `decode_envelope` returns what equals it.

    Raises:
        WireError: a field is out of bounds, so that no reader would take the frame.
    """
    fields: dict[str, object] = {
        "kvrouter": ENVELOPE_VERSION,
        "worker": envelope.source.worker_id,
        "rank": envelope.source.rank,
        "incarnation": envelope.incarnation,
        "sequence": envelope.sequence,
        "time": envelope.timestamp,
        "bytes": len(envelope.payload),
    }
    if envelope.snapshot is not None:
        fields["snapshot"] = envelope.snapshot
    if envelope.digest is not None:
        fields["digest"] = envelope.digest
    _read_header(cast("_Fields", fields), envelope.payload)
    header = cast("bytes", msgpack.packb(fields | {"time": float(envelope.timestamp)}))
    assert len(header) <= HEADER_BYTES_MAX, "the bounds of the fields see to that"
    return header + envelope.payload


def decode_envelope(frame: bytes) -> Envelope:
    """Decode one frame.

    Raises:
        WireError: it is not an envelope, of another major version, or damaged; `reason` says how. Nothing else is
            ever raised, whatever the bytes.
    """
    if len(frame) > ENVELOPE_BYTES_MAX:
        raise WireError(f"an envelope of {len(frame)} bytes exceeds {ENVELOPE_BYTES_MAX}", reason="too_large")
    if not is_envelope(frame):
        raise WireError("not an envelope: a header begins with its version", reason="not_an_envelope")
    fields, size = _unpack_header(frame[:HEADER_BYTES_MAX], cut=len(frame) > HEADER_BYTES_MAX)
    return _read_header(fields, frame[size:])


def is_envelope(frame: bytes) -> bool:
    """Tell an envelope from an engine's batch by its first bytes; it may still be damaged or too new."""
    # A map is one byte of kind and count, or three from sixteen fields on; a batch of an engine is an array.
    return (frame[:1] in _SMALL_MAPS and frame.startswith(_MAGIC, 1)) or (
        frame.startswith(b"\xde") and frame.startswith(_MAGIC, 3)
    )


_SMALL_MAPS: Final = frozenset(bytes([0x80 | fields]) for fields in range(1, 16))


def _unpack_header(start: bytes, *, cut: bool) -> tuple[_Fields, int]:
    """Read the map that `start` begins with; all that can be built from it is bounded by its length."""
    unpacker = msgpack.Unpacker(
        use_list=False, strict_map_key=False, object_pairs_hook=_unique, max_buffer_size=HEADER_BYTES_MAX
    )
    try:
        unpacker.feed(start)
        fields = unpacker.unpack()
    except msgpack.OutOfData as error:
        if cut:
            raise WireError(f"a header exceeds {HEADER_BYTES_MAX} bytes", reason="header_too_large") from error
        raise WireError("the frame ends within its header", reason="truncated") from error
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise WireError(f"the header is not msgpack: {type(error).__name__}", reason="not_msgpack") from error
    assert isinstance(fields, dict)
    if len(fields) > HEADER_FIELDS_MAX:
        raise WireError(f"{len(fields)} header fields exceed {HEADER_FIELDS_MAX}", reason="too_many_fields")
    return fields, unpacker.tell()


def _unique(pairs: list[tuple[object, object]]) -> dict[object, object]:
    """Two readers may pick different ones of two equal keys, so there must not be any."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key stands twice in one map")
    return fields


def _read_header(fields: _Fields, payload: bytes) -> Envelope:
    version = _version(fields.get("kvrouter"))
    envelope = Envelope(
        source=Source(_worker(fields.get("worker")), _number(fields, "rank", RANK_MAX)),
        incarnation=_number(fields, "incarnation", INCARNATION_MAX),
        sequence=_number(fields, "sequence", SEQUENCE_MAX),
        timestamp=_time(fields.get("time")),
        payload=payload,
        snapshot=_snapshot(fields["snapshot"]) if "snapshot" in fields else None,
        digest=_digest(fields["digest"]) if "digest" in fields else None,
        version=version,
        unknown_fields=len(fields.keys() - _KNOWN),
    )
    size = _number(fields, "bytes", PAYLOAD_BYTES_MAX)
    if len(payload) < size:
        raise WireError(f"{len(payload)} of {size} bytes of the batch are there", reason="truncated")
    if len(payload) > size:
        raise WireError(f"{len(payload) - size} bytes follow the batch", reason="trailing_bytes")
    if not size:
        raise WireError("an envelope without a batch", reason="bad_bytes")
    return envelope


def _version(value: object) -> tuple[int, int]:
    match value:
        case (int(major), int(minor)) if _is_number(major, VERSION_NUMBER_MAX) and _is_number(
            minor, VERSION_NUMBER_MAX
        ):
            if major != ENVELOPE_VERSION[0]:
                raise WireError(
                    f"envelope version {major}.{minor}; this build reads {ENVELOPE_VERSION[0]}.x",
                    reason="unsupported_version",
                )
            return major, minor
        case _:
            raise WireError("a version is an array of two numbers", reason="bad_version")


def _worker(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise WireError("`worker` is a text that is not empty", reason="bad_worker")
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise WireError("`worker` is not Unicode text", reason="bad_worker") from error
    if size > WORKER_ID_BYTES_MAX:
        raise WireError(f"`worker` of {size} bytes exceeds {WORKER_ID_BYTES_MAX}", reason="bad_worker")
    return value


def _number(fields: _Fields, name: str, most: int) -> int:
    value = fields.get(name)
    if not isinstance(value, int) or not _is_number(value, most):
        raise WireError(f"`{name}` is a number from 0 to {most}", reason=f"bad_{name}")
    return value


def _is_number(value: int, most: int) -> bool:
    return not isinstance(value, bool) and 0 <= value <= most


def _time(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= TIME_SECONDS_MAX:
        raise WireError(f"`time` is a number of seconds from 0 to {TIME_SECONDS_MAX}", reason="bad_time")
    return float(value)


def _snapshot(value: object) -> tuple[int, int]:
    match value:
        case (int(part), int(parts)) if _is_number(parts, SNAPSHOT_PARTS_MAX) and _is_number(part, parts - 1):
            return part, parts
        case _:
            raise WireError("`snapshot` is an array of a part's number and the number of parts", reason="bad_snapshot")


def _digest(value: object) -> tuple[DigestRow, ...]:
    if not isinstance(value, tuple) or len(value) > DIGEST_ROWS_MAX:
        raise WireError(f"`digest` is an array of at most {DIGEST_ROWS_MAX} rows", reason="bad_digest")
    rows = tuple(map(_digest_row, value))
    if len({row[:2] for row in rows}) != len(rows):
        raise WireError("`digest` describes a place twice", reason="bad_digest")
    return rows


def _digest_row(value: object) -> DigestRow:
    match value:
        case (str() | None as medium, int(group), int(count), int(xor)) if (
            _is_number(group, GROUP_MAX) and _is_number(count, COUNT_MAX) and _is_number(xor, 2**64 - 1)
        ):
            if medium is None or _is_short(medium):
                return DigestRow(medium, group, count, xor)
    raise WireError("a row of `digest` is a medium or nil, a group, a count and a number", reason="bad_digest")


def _is_short(medium: str) -> bool:
    try:
        return len(medium.encode()) <= MEDIUM_BYTES_MAX
    except UnicodeEncodeError:
        return False
