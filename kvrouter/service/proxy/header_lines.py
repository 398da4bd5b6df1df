"""Header lines: judged strictly, classified, and remembered, because clients and engines repeat themselves.

One line is a name, a colon and a value, without its CRLF (RFC 9112 section 5). What a set of lines means together is
the business of `request_head` and `response_head`.
"""

import re
from typing import Final

from kvrouter.errors import WireError

__all__ = [
    "AUTHORIZATION",
    "CONNECTION",
    "CONTENT_LENGTH",
    "CONTENT_TYPE",
    "EXPECT",
    "HOP_BY_HOP",
    "HOST",
    "OWN",
    "PLAIN",
    "REQUEST_ID",
    "TRANSFER_ENCODING",
    "HeaderLine",
    "HeaderLines",
    "connection_options",
    "content_length",
    "without_names",
]

PLAIN: Final = 0
HOST: Final = 1
CONTENT_LENGTH: Final = 2
TRANSFER_ENCODING: Final = 3
CONNECTION: Final = 4
EXPECT: Final = 5
REQUEST_ID: Final = 6
HOP_BY_HOP: Final = 7
AUTHORIZATION: Final = 8
CONTENT_TYPE: Final = 9
OWN: Final = 10

HeaderLine = tuple[tuple[bytes, bytes], int]
"""((lower-case name, value without outer blanks), kind)."""

_KINDS: Final = {
    b"host": HOST,
    b"content-length": CONTENT_LENGTH,
    b"transfer-encoding": TRANSFER_ENCODING,
    b"connection": CONNECTION,
    b"expect": EXPECT,
    b"x-request-id": REQUEST_ID,
    b"authorization": AUTHORIZATION,
    b"content-type": CONTENT_TYPE,
    b"keep-alive": HOP_BY_HOP,
    b"proxy-connection": HOP_BY_HOP,
    b"proxy-authenticate": HOP_BY_HOP,
    b"proxy-authorization": HOP_BY_HOP,
    b"te": HOP_BY_HOP,
    b"trailer": HOP_BY_HOP,
    b"upgrade": HOP_BY_HOP,
    b"x-kvrouter-worker": OWN,
    b"x-kvrouter-overlap-tokens": OWN,
}

_LINES_MAX: Final = 4096
_LINE_BYTES_MAX: Final = 512
_LENGTH_DIGITS_MAX: Final = 18

# Two linear steps; one expression for a whole line would backtrack quadratically over blanks.
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_FORBIDDEN = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


class HeaderLines:
    """Parses header lines. `known` remembers at most 4096 lines of at most 512 bytes; hot loops read it directly."""

    __slots__ = ("known",)

    def __init__(self) -> None:
        self.known: dict[bytes, HeaderLine] = {}

    def parse(self, line: bytes) -> HeaderLine:
        """Parse one line.

        Raises:
            WireError: a bad name, a blank before the colon, a folded line, a control character.
        """
        name, colon, value = line.partition(b":")
        if not colon or not _NAME.fullmatch(name):
            raise WireError("a header line does not begin with a name and a colon", reason="header_name")
        if _FORBIDDEN.search(value):
            raise WireError("a header value contains a control character", reason="header_value")
        lower = name.lower()
        parsed = (lower, value.strip(b" \t")), _KINDS.get(lower, PLAIN)
        if len(line) <= _LINE_BYTES_MAX:
            if len(self.known) >= _LINES_MAX:
                self.known.clear()
            self.known[line] = parsed
        return parsed


def content_length(value: bytes) -> int:
    """Return the value of a Content-Length header: digits and nothing else.

    Raises:
        WireError: a sign, a list, a blank, too many digits.
    """
    if not value.isdigit() or len(value) > _LENGTH_DIGITS_MAX:
        raise WireError("Content-Length is not a plain number", reason="content_length")
    return int(value)


def connection_options(value: bytes) -> set[bytes]:
    """Return the lower-case options of a Connection header."""
    return {each.strip(b" \t") for each in value.lower().split(b",")} - {b""}


def without_names(lines: list[bytes], names: set[bytes]) -> list[bytes]:
    """Return the `lines` whose lower-case names are not among `names`."""
    return [line for line in lines if line[: line.index(b":")].lower() not in names]
