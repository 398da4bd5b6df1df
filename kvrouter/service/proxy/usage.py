"""What an answer cost, read from its last bytes: no chunk is parsed, and at most 8 KiB are kept.

OpenAI-compatible engines put `usage` near the end of a JSON answer and into the last events of a stream.
"""

import re
from typing import Final

from kvrouter import native_core

from .messages import Usage

__all__ = ["TAIL_BYTES", "Tail", "find_usage", "search_usage", "without_framing"]

TAIL_BYTES: Final = 4096
_OBJECT_BYTES_MAX: Final = 1024
_USAGE = re.compile(rb'"usage"\s*:\s*\{')
# Names inside a JSON string would have a backslash before their closing quote.
_NUMBER = re.compile(rb'"(prompt|input|completion|output|cached)_tokens"\s*:\s*(\d{1,15})')
# Line breaks never stand inside a JSON string, so this can only be chunked framing.
_CHUNK_FRAMING = re.compile(rb"\r\n[0-9A-Fa-f]+(?:;[^\r\n]*)?\r\n")


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
        if self._size > 2 * TAIL_BYTES:
            kept = b"".join(self._pieces)[-TAIL_BYTES:]
            self._pieces, self._size = [kept], len(kept)

    def bytes(self, *, chunked: bool) -> bytes:
        """Return the tail, without chunked framing."""
        joined = b"".join(self._pieces)
        return without_framing(joined) if chunked else joined


def without_framing(data: bytes) -> bytes:
    """Return part of a chunked body without its size lines."""
    return _CHUNK_FRAMING.sub(b"", b"\r\n" + data)


def find_usage(tail: bytes) -> Usage | None:
    """Return what the last `usage` object in the tail of an answer says, or None."""
    found = _find(tail)
    return None if found is None else Usage(*found)


def search_usage(tail: bytes) -> tuple[int | None, int | None, int | None] | None:
    """Return the numbers of a `Usage`; the reference."""
    position = len(tail)
    while (position := tail.rfind(b'"usage"', 0, position)) >= 0:
        if _USAGE.match(tail, position) is not None:
            return _read(_NUMBER.findall(tail, position, position + _OBJECT_BYTES_MAX))
    return None


def _read(found: list[tuple[bytes, bytes]]) -> tuple[int | None, int | None, int | None] | None:
    numbers = dict(reversed(found))  # of several of one name the first counts
    prompt = numbers.get(b"prompt") or numbers.get(b"input")
    completion = numbers.get(b"completion") or numbers.get(b"output")
    cached = numbers.get(b"cached")
    if prompt is None and completion is None:
        return None
    return (
        int(prompt) if prompt else None,
        int(completion) if completion else None,
        int(cached) if cached else None,
    )


_find = native_core.native.find_usage if native_core.present else search_usage
