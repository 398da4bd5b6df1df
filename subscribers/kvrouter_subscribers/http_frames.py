"""Cuts an answer into its envelope frames, which follow each other without anything between them.

A frame tells its own length: its header is a msgpack map that says how long the batch after it is. What the frames
mean is `kvrouter.events.envelope`; how answers arrive is `http_client`.
"""

from collections.abc import Iterator

import msgpack

from kvrouter.errors import WireError
from kvrouter.events.envelope import ENVELOPE_BYTES_MAX, HEADER_BYTES_MAX, is_envelope

__all__ = ["split_frames"]


def split_frames(body: bytes) -> Iterator[bytes]:
    """Yield the frames of `body`, in order.

    Raises:
        WireError: what follows the frames that were yielded is not another whole frame.
    """
    offset = 0
    while offset < len(body):
        size = _frame_bytes(body[offset : offset + HEADER_BYTES_MAX])
        if size > len(body) - offset:
            raise WireError(f"the answer ends {size - len(body) + offset} bytes before its last frame", reason="cut")
        yield body[offset : offset + size]
        offset += size


def _frame_bytes(start: bytes) -> int:
    """Return the length of the frame that begins with `start`."""
    if not is_envelope(start):
        raise WireError("the answer goes on with something that is not an envelope", reason="not_an_envelope")
    unpacker = msgpack.Unpacker(use_list=False, strict_map_key=False, max_buffer_size=len(start))
    unpacker.feed(start)
    try:
        header = unpacker.unpack()
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise WireError("the header of an envelope cannot be read", reason="not_msgpack") from error
    size = header.get("bytes")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= ENVELOPE_BYTES_MAX:
        raise WireError("the header of an envelope does not say how long its batch is", reason="bad_bytes")
    return int(unpacker.tell()) + size
