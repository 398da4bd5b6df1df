"""Header lines: judged strictly, classified, and remembered, because clients and engines repeat themselves.

One line is a name, a colon and a value, without its CRLF (RFC 9112 section 5). What a set of lines means together is
the business of `request_head` and `response_head`.
"""

import re
from collections.abc import Iterable
from typing import Final

from kvrouter.errors import WireError

__all__ = [
    "ASKED",
    "AUTHORIZATION",
    "CONNECTION",
    "CONTENT_LENGTH",
    "CONTENT_TYPE",
    "EXPECT",
    "HOST",
    "LOCAL",
    "PLAIN",
    "REQUEST_ID",
    "TRANSFER_ENCODING",
    "HeaderLine",
    "HeaderLines",
    "asked_lines",
    "connection_options",
    "without_names",
]

PLAIN: Final = 0
CONTENT_LENGTH: Final = 1
HOST: Final = 2
AUTHORIZATION: Final = 3
CONTENT_TYPE: Final = 4
REQUEST_ID: Final = 5
CONNECTION: Final = 6
TRANSFER_ENCODING: Final = 7
EXPECT: Final = 8
LOCAL: Final = 9
"""Never passed on: hop-by-hop headers, and those that only this process may write."""
ASKED: Final = 10
"""What a request asks of this process about its worker; never passed on."""

HeaderLine = tuple[tuple[bytes, bytes], int, int]
"""((lower-case name, value without outer blanks), kind, number); the number is Content-Length's, else 0."""

_KINDS: Final = {
    b"content-length": CONTENT_LENGTH,
    b"host": HOST,
    b"authorization": AUTHORIZATION,
    b"content-type": CONTENT_TYPE,
    b"x-request-id": REQUEST_ID,
    b"connection": CONNECTION,
    b"transfer-encoding": TRANSFER_ENCODING,
    b"expect": EXPECT,
    b"keep-alive": LOCAL,
    b"proxy-connection": LOCAL,
    b"proxy-authenticate": LOCAL,
    b"proxy-authorization": LOCAL,
    b"te": LOCAL,
    b"trailer": LOCAL,
    b"upgrade": LOCAL,
    b"x-kvrouter-overlap-tokens": LOCAL,
    b"x-kvrouter-worker": ASKED,
    b"x-kvrouter-require": ASKED,
    b"x-kvrouter-tolerate": ASKED,
    b"x-kvrouter-zone": ASKED,
    b"x-kvrouter-session-end": ASKED,
    b"x-worker-instance-id": ASKED,
    b"x-dp-rank": ASKED,
}

_LINES_MAX: Final = 4096
_LINE_BYTES_MAX: Final = 512
_LENGTH_DIGITS_MAX: Final = 18

# Two linear steps; one expression for a whole line would backtrack quadratically over blanks.
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_FORBIDDEN = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_HOST = re.compile(rb"[A-Za-z0-9\-._~%!$&'()*+,;=:\[\]]*")


class HeaderLines:
    """Parses header lines. `known` remembers at most 4096 lines of at most 512 bytes; hot loops read it directly."""

    __slots__ = ("known",)

    def __init__(self) -> None:
        self.known: dict[bytes, HeaderLine] = {}

    def parse(self, line: bytes) -> HeaderLine:
        """Parse one line.

        Raises:
            WireError: a bad name, a blank before the colon, a folded line, a control character, a Content-Length
                that is not a plain number, a Host with characters that no host has.
        """
        name, colon, value = line.partition(b":")
        if not colon or not _NAME.fullmatch(name):
            raise WireError("a header line does not begin with a name and a colon", reason="header_name")
        if _FORBIDDEN.search(value):
            raise WireError("a header value contains a control character", reason="header_value")
        lower, value = name.lower(), value.strip(b" \t")
        kind, number = _KINDS.get(lower, PLAIN), 0
        if kind == CONTENT_LENGTH:
            number = _content_length(value)
        elif kind == HOST and not _HOST.fullmatch(value):
            raise WireError("malformed Host header", reason="host")
        parsed = (lower, value), kind, number
        if len(line) <= _LINE_BYTES_MAX:
            if len(self.known) >= _LINES_MAX:
                self.known.clear()
            self.known[line] = parsed
        return parsed


def connection_options(value: bytes) -> set[bytes]:
    """Return the lower-case options of a Connection header."""
    return {each.strip(b" \t") for each in value.lower().split(b",")} - {b""}


def asked_lines(headers: Iterable[tuple[bytes, bytes]]) -> tuple[tuple[bytes, bytes], ...]:
    """Return those of the headers, in lower case, that ask something of this process about the worker."""
    return tuple(each for each in headers if _KINDS.get(each[0]) == ASKED)


def without_names(lines: bytes, names: set[bytes]) -> bytes:
    """Return the `lines`, each with a CRLF before it, whose lower-case names are not among `names`."""
    kept = [line for line in lines.split(b"\r\n")[1:] if line[: line.index(b":")].lower() not in names]
    return b"".join([b"\r\n" + line for line in kept])


def _content_length(value: bytes) -> int:
    """Digits and nothing else: no sign, no list, no blank."""
    if not value.isdigit() or len(value) > _LENGTH_DIGITS_MAX:
        raise WireError("Content-Length is not a plain number", reason="content_length")
    return int(value)
