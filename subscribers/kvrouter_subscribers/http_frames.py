"""Cuts an answer into its envelope frames, which follow each other without anything between them.

A frame tells its own length: its header is a msgpack map that says how long the batch after it is. What the frames
mean is `kvrouter.events.envelope`; how answers arrive is `http_client`.
"""

from collections.abc import Iterator
from typing import Final

import msgpack

from kvrouter.errors import WireError
from kvrouter.events.decode import PAYLOAD_BYTES_MAX
from kvrouter.events.envelope import is_envelope

__all__ = ["split_frames"]

_MARK_BYTES: Final = 16
"""More than `is_envelope` looks at."""


def split_frames(body: bytes) -> Iterator[bytes]:
    """Yield the frames of `body`, in order.

    Raises:
        WireError: what follows the frames that were yielded is not another whole frame.
    """
    unpacker = msgpack.Unpacker(use_list=False, strict_map_key=False, max_buffer_size=len(body) or 1)
    unpacker.feed(body)
    offset = 0
    while offset < len(body):
        size = _batch_bytes(unpacker, body[offset : offset + _MARK_BYTES])
        end = unpacker.tell() + size
        if end > len(body):
            raise WireError(f"the answer ends {end - len(body)} bytes before its last frame", reason="truncated")
        unpacker.read_bytes(size)
        yield body[offset:end]
        offset = end


def _batch_bytes(unpacker: msgpack.Unpacker, start: bytes) -> int:
    """Read the header of the next frame, which begins with `start`; returns the length of its batch."""
    if not is_envelope(start):
        raise WireError("the answer goes on with something that is not an envelope", reason="not_an_envelope")
    try:
        header = unpacker.unpack()
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise WireError("the header of an envelope cannot be read", reason="not_msgpack") from error
    size = header.get("bytes")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= PAYLOAD_BYTES_MAX:
        raise WireError("the header of an envelope does not say how long its batch is", reason="bad_bytes")
    return size
