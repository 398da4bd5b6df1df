"""One entry of a stream, and what is in it."""

from typing import NamedTuple

from kvrouter.errors import WireError
from kvrouter.events import Envelope, decode_envelope
from kvrouter.events.redis_names import ENTRY_FIELD

__all__ = ["Entry", "decode_entry"]


class Entry(NamedTuple):
    """An entry's id and fields; those are missing if it was trimmed after it had been handed out."""

    id: bytes
    fields: dict[bytes, bytes] | None


def decode_entry(entry: Entry) -> Envelope:
    """Decode the envelope in an entry.

    Raises:
        WireError: there is none, or it is damaged.
    """
    frame = (entry.fields or {}).get(ENTRY_FIELD)
    if frame is None:
        raise WireError("an entry without an envelope", reason="not_an_envelope")
    return decode_envelope(frame)
