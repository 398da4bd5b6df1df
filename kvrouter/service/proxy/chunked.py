"""The chunked transfer coding: finds the end of a body, checks every byte of framing, and can hand out the payload.

Sans I/O and shared by both sides: requests are decoded, answers are passed on as they are (RFC 9112 section 7.1).
"""

from typing import Final

from kvrouter import native_core
from kvrouter.errors import WireError

from .header_lines import HeaderLines

__all__ = ["ChunkedBody"]

_SIZE, _DATA, _DATA_END, _TRAILER, _DONE = range(5)

_HEX: Final = b"0123456789abcdefABCDEF"
_SIZE_DIGITS_MAX: Final = 15
_SIZE_LINE_MAX: Final = 1024
_EXTENSION_BYTES_MAX: Final = 16 * 1024
_TRAILER_BYTES_MAX: Final = 16 * 1024

_skip: Final = native_core.native.skip_chunks if native_core.present else None
"""Steps over chunks that are plain and whole, as most are."""


class ChunkedBody:
    """One chunked body. Feed it until `done`; with `sink`, payload is appended there piece by piece."""

    __slots__ = ("_extension_bytes", "_partial", "_remaining", "_sink", "_state", "_trailer_bytes", "done")

    def __init__(self, sink: list[bytes] | None = None) -> None:
        self._sink = sink
        self._state = _SIZE
        self._remaining = 0
        self._partial = b""
        self._extension_bytes = 0
        self._trailer_bytes = 0
        self.done = False

    def feed(self, data: bytes, start: int = 0) -> int:
        """Consume `data` from `start`; return where the body ends in it, or its length.

        Raises:
            WireError: a bad size, a bad line end, an extension or trailer section that is too long.
        """
        position, end = start, len(data)
        if _skip is not None and self._state == _SIZE and not self._partial and self._sink is None:
            position = _skip(data, start)
        while position < end and not self.done:
            if self._state == _DATA:
                stop = min(end, position + self._remaining)
                if self._sink is not None:
                    self._sink.append(data[position:stop])
                self._remaining -= stop - position
                position = stop
                if not self._remaining:
                    self._state = _DATA_END
            else:
                position = self._line(data, position)
        return position

    def interruption(self, text: bytes) -> bytes | None:
        """Return bytes that add `text` to the payload after what was fed so far, without ending the body.

        None where that is impossible: in the middle of a size line or of the trailers, and after the end.
        """
        if self._state == _SIZE and not self._partial:
            return _chunk(text)
        if self._state == _DATA:
            inside, rest = text[: self._remaining], text[self._remaining :]
            return inside + b"\r\n" + _chunk(rest) if rest else inside
        if self._state == _DATA_END:
            return b"\r\n"[len(self._partial) :] + _chunk(text)
        return None

    def _line(self, data: bytes, position: int) -> int:
        """Consume up to the end of the current line and act on it when it is whole."""
        newline = data.find(b"\n", position, position + _SIZE_LINE_MAX + 2)
        if newline < 0:
            self._partial += data[position : position + _SIZE_LINE_MAX + 2]
            if len(self._partial) > _SIZE_LINE_MAX + 1 or (self._state == _DATA_END and self._partial != b"\r"):
                raise WireError("a line of the chunked coding does not end", reason="chunk_line")
            return len(data)
        line = data[position:newline]
        if self._partial:
            line, self._partial = self._partial + line, b""
        if line[-1:] != b"\r" or len(line) > _SIZE_LINE_MAX + 1:
            raise WireError("a line of the chunked coding is too long or does not end with CRLF", reason="chunk_line")
        self._whole_line(line[:-1])
        return newline + 1

    def _whole_line(self, line: bytes) -> None:
        if self._state == _SIZE:
            self._remaining = self._size(line)
            self._state = _DATA if self._remaining else _TRAILER
        elif self._state == _DATA_END:
            if line:
                raise WireError("a chunk is longer than its size", reason="chunk_end")
            self._state = _SIZE
        elif line:
            self._trailer_bytes += len(line)
            if self._trailer_bytes > _TRAILER_BYTES_MAX:
                raise WireError("the trailer section is too long", reason="trailer")
            HeaderLines().parse(line)
        else:
            self._state, self.done = _DONE, True

    def _size(self, line: bytes) -> int:
        if b";" in line:
            line, _, extension = line.partition(b";")
            self._extension_bytes += len(extension)
            if self._extension_bytes > _EXTENSION_BYTES_MAX or not _is_text(extension):
                raise WireError("a chunk extension is malformed or too long", reason="chunk_extension")
        if not line or len(line) > _SIZE_DIGITS_MAX or line.translate(None, _HEX):
            raise WireError("a chunk size is not a hexadecimal number", reason="chunk_size")
        return int(line, 16)


def _chunk(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def _is_text(extension: bytes) -> bool:
    return all(byte >= 0x20 or byte == 0x09 for byte in extension) and 0x7F not in extension
