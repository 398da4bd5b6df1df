"""Reads JSON lines of traces, and says of what is wrong in which line, which field and what the limit is."""

from __future__ import annotations

import gzip
import math
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final, cast

import msgspec

from kvrouter.blocks import PROMPT_TOKENS_MAX
from kvrouter.errors import KvrouterError, SettingsError

__all__ = ["STANDARD_INPUT", "Line", "TraceError", "kind", "read_lines"]

STANDARD_INPUT: Final = Path("-")

LINE_BYTES_MAX: Final = 64 << 20
IDS_MAX: Final = 1 << 22
_ID_MIN: Final = -(1 << 63)
_ID_MAX: Final = (1 << 64) - 1
_NUMBER_MAX: Final = 1e15  # Larger times have no fractions any more that could tell requests apart.
_SHOWN: Final = 60
_GZIP: Final = b"\x1f\x8b"
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_KINDS: Final = ((bool, "true or false"), (int | float, "a number"), (str, "a text"), (list, "a list"))


class TraceError(KvrouterError):
    """A trace cannot be read; the text names file, line, field and limit."""

    def __init__(self, path: str, line: int, field: str, problem: str) -> None:
        where = f"{path}:{line}: " + (f"{field} " if field else "")
        super().__init__(where + problem)
        self.path, self.line, self.field = path, line, field


class Line:
    """One line of a trace: an object, and how to complain of it."""

    __slots__ = ("fields", "number_in_file", "path")

    def __init__(self, path: str, number_in_file: int, fields: dict[str, Any]) -> None:
        self.path, self.number_in_file, self.fields = path, number_in_file, fields

    def error(self, field: str, problem: str) -> TraceError:
        """Return the error to raise about a field."""
        return TraceError(self.path, self.number_in_file, field, problem)

    def number(self, fields: Mapping[str, Any], name: str, *, prefix: str = "", default: float | None = None) -> float:
        """Return a finite number of at least 0."""
        value = fields.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(prefix + name, f"is {shown(value)}; a number is needed")
        if not math.isfinite(value) or value < 0:
            raise self.error(prefix + name, f"is {value:g}; it must be at least 0 and finite")
        if value > _NUMBER_MAX:
            raise self.error(prefix + name, f"is {value:g}; it must be at most {_NUMBER_MAX:g}")
        return float(value)

    def tokens(
        self, fields: Mapping[str, Any], name: str, *, at_least: int, prefix: str = "", default: int | None = None
    ) -> int:
        """Return a number of tokens."""
        value = fields.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(prefix + name, f"is {shown(value)}; a whole number is needed")
        if not at_least <= value <= PROMPT_TOKENS_MAX:
            raise self.error(prefix + name, f"is {value}; it must be {at_least}..{PROMPT_TOKENS_MAX}")
        return value

    def ids(self, fields: Mapping[str, Any], name: str) -> list[int]:
        """Return ids of blocks, which are whole numbers of up to 64 bits, with a sign or without."""
        value = fields.get(name)
        if not isinstance(value, list):
            raise self.error(name, f"is {shown(value)}; a list of block ids is needed")
        if len(value) > IDS_MAX:
            raise self.error(name, f"has {len(value)} ids; at most {IDS_MAX} are read")
        for position, each in enumerate(value):
            if isinstance(each, bool) or not isinstance(each, int) or not _ID_MIN <= each <= _ID_MAX:
                raise self.error(f"{name}[{position}]", f"is {shown(each)}; a block id is a whole number of 64 bits")
        return value

    def text(self, fields: Mapping[str, Any], name: str) -> str | None:
        """Return a text, or a number as one; None if there is none."""
        value = fields.get(name)
        if value is None or isinstance(value, str):
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        raise self.error(name, f"is {shown(value)}; a text is needed")


def read_lines(path: Path) -> Iterator[Line]:
    """Yield the objects of a file of JSON lines, packed by gzip or not; `-` is standard input. Empty ones are left out.

    Raises:
        SettingsError: the file cannot be read.
        TraceError: a line is too long, or not a JSON object.
    """
    name, number = str(path), 0
    try:
        with _opened(path) as file:
            for number, text in enumerate(iter(lambda: file.readline(LINE_BYTES_MAX + 1), b""), 1):
                if len(text) > LINE_BYTES_MAX:
                    raise TraceError(name, number, "", f"is longer than {LINE_BYTES_MAX} bytes")
                line = text.removeprefix(_BYTE_ORDER_MARK) if number == 1 else text
                if line.strip():
                    yield Line(name, number, _object(line, name, number))
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise TraceError(name, number + 1, "", "cannot be unpacked: the gzip file is damaged or ends early") from None
    except OSError as error:
        raise SettingsError(f"cannot read {name}: {error.strerror or error}") from None


def kind(value: object) -> str:
    """Return what a value is, for messages about places where prompts may stand: those are never shown."""
    return next((words for types, words in _KINDS if isinstance(value, types)), "not there")


def shown(value: object) -> str:
    """Return a value as a message may show it."""
    text = "missing" if value is None else repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _object(text: bytes, name: str, number: int) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise TraceError(name, number, "", f"is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise TraceError(name, number, "", f"is {kind(value)}; a JSON object is needed")
    return value


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    if path == STANDARD_INPUT:
        yield _unpacked(sys.stdin.buffer)
        return
    with path.open("rb") as file:
        yield _unpacked(file)


def _unpacked(file: Any) -> IO[bytes]:
    """Return the file, or what is packed in it: two bytes at its beginning tell."""
    found: Any = gzip.GzipFile(fileobj=file) if file.peek(2)[:2] == _GZIP else file
    return cast("IO[bytes]", found)
