"""What an answer cost, read from its last bytes: no chunk is parsed, and at most 8 KiB are kept.

OpenAI-compatible engines put `usage` near the end of a JSON answer and into the last events of a stream.
"""

import re
from typing import Final

from .messages import Usage

__all__ = ["Tail", "find_usage"]

_TAIL_BYTES: Final = 4096
_USAGE = re.compile(rb'"usage"\s*:\s*\{')
_NUMBERS: Final = tuple(
    re.compile(rb'"(?:%b)"\s*:\s*(\d{1,15})' % names)
    for names in (b"prompt_tokens|input_tokens", b"completion_tokens|output_tokens", b"cached_tokens")
)
# Line breaks never stand inside a JSON string, so this can only be chunked framing.
_CHUNK_FRAMING = re.compile(rb"\r\n[0-9A-Fa-f]+(?:;[^\r\n]*)?\r\n")
_OBJECT_BYTES_MAX: Final = 1024


class Tail:
    """The last bytes of a body, framing included."""

    __slots__ = ("_pieces", "_size")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0

    def add(self, data: bytes) -> None:
        """Take the next bytes of the body."""
        self._pieces.append(data)
        self._size += len(data)
        if self._size > 2 * _TAIL_BYTES:
            kept = b"".join(self._pieces)[-_TAIL_BYTES:]
            self._pieces, self._size = [kept], len(kept)

    def bytes(self, *, chunked: bool) -> bytes:
        """Return the tail, without chunked framing."""
        joined = b"".join(self._pieces)
        return _CHUNK_FRAMING.sub(b"", b"\r\n" + joined) if chunked else joined


def find_usage(tail: bytes) -> Usage | None:
    """Return the last `usage` object in the tail of an answer, or None."""
    position = len(tail)
    while (position := tail.rfind(b'"usage"', 0, position)) >= 0:
        match = _USAGE.match(tail, position)
        if match is not None:
            return _read(tail[match.end() : match.end() + _OBJECT_BYTES_MAX])
    return None


def _read(text: bytes) -> Usage | None:
    found = [pattern.search(_object(text)) for pattern in _NUMBERS]
    if found[0] is None and found[1] is None:
        return None
    return Usage(*(None if match is None else int(match[1]) for match in found))


def _object(text: bytes) -> bytes:
    """Return `text` up to the brace that closes the object it begins in; `usage` holds no strings with braces."""
    depth, position = 1, 0
    while depth:
        closing = text.find(b"}", position)
        if closing < 0:
            return text
        depth += text.count(b"{", position, closing) - 1
        position = closing + 1
    return text[:position]
