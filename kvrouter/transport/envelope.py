"""Envelopes: one message about one stream for transports that carry messages, not bytes (ZMQ, NATS, gRPC, UCX).

The first part of an N-part message is a msgpack map, the others are the body (docs/planes.md):

    v    1
    k    kind, by its lower-case name
    sid  id of the stream, 16 bytes
    seq  number of the message within its direction of the stream, from 0; a gap is an error of the stream
    m    true where the item goes on in the next message
    err  {code, message, retryable}; for `error`, and for an `ack` or a `prologue` that says no
"""

from typing import NamedTuple

import msgpack

from kvrouter.errors import WireError
from kvrouter.transport.messages import Kind
from kvrouter.transport.n_part import NPart

__all__ = ["Envelope", "decode_envelope", "encode_envelope"]

_ENVELOPE_BYTES_MAX = 64 << 10
_NAMES = {kind: kind.name.lower() for kind in Kind} | {Kind.RESET: "error"}
_KINDS = {name: kind for kind, name in _NAMES.items()}
_FAILING = frozenset({Kind.RESET, Kind.ACK, Kind.PROLOGUE})


class Envelope(NamedTuple):
    """One message. The payload of an error, or of an `ack` or `prologue` that says no, is the error as JSON."""

    kind: Kind
    stream: bytes
    sequence: int
    payload: bytes | memoryview = b""
    more: bool = False


def encode_envelope(envelope: Envelope) -> NPart:
    """Return the message in parts."""
    kind = envelope.kind
    head: dict[str, object] = {"v": 1, "k": _NAMES[kind], "sid": envelope.stream, "seq": envelope.sequence}
    if envelope.more:
        head["m"] = True
    if kind in _FAILING and envelope.payload:
        head["err"] = bytes(envelope.payload)
        return NPart((msgpack.packb(head),), control=True, error=True)
    if envelope.payload:
        return NPart((msgpack.packb(head), envelope.payload))
    return NPart((msgpack.packb(head),), control=True)


def decode_envelope(message: NPart) -> Envelope:
    """Read a message.

    Raises:
        WireError: it is no envelope of version 1; the text names the field.
    """
    head = _head(message.parts[0])
    if head.get("v") != 1:
        raise WireError(f"an envelope of version {head.get('v')!r}; 1 is known", reason="version")
    kind = _KINDS.get(str(head.get("k")))
    if kind is None:
        raise WireError(f"an envelope of kind {str(head.get('k'))[:64]!r}, which nobody defined", reason="kind")
    stream, sequence = head.get("sid"), head.get("seq")
    if not isinstance(stream, bytes) or len(stream) != 16:
        raise WireError("an envelope's sid is not 16 bytes")
    if not isinstance(sequence, int) or not 0 <= sequence < 1 << 63:
        raise WireError("an envelope's seq is no number from 0")
    error = head.get("err", b"")
    if not isinstance(error, bytes) or (error and kind not in _FAILING):
        raise WireError("an envelope has an err that is none")
    if len(message.parts) > 2 or (error and len(message.parts) > 1):
        raise WireError(f"an envelope of kind {_NAMES[kind]} with {len(message.parts)} parts")
    payload = error or (message.parts[1] if len(message.parts) > 1 else b"")
    return Envelope(kind, stream, sequence, payload, head.get("m") is True)


def _head(part: bytes | memoryview) -> dict[str, object]:
    if len(part) > _ENVELOPE_BYTES_MAX:
        raise WireError(f"an envelope of {len(part)} bytes exceeds {_ENVELOPE_BYTES_MAX}", reason="too_large")
    try:
        head = msgpack.unpackb(part, strict_map_key=True)
    except (ValueError, msgpack.UnpackException) as error:
        raise WireError(f"an envelope is no msgpack: {type(error).__name__}") from None
    if not isinstance(head, dict):
        raise WireError("an envelope is no map")
    return head
