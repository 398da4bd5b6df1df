"""Reads JSON lines of traces, and says of what is wrong in which line, which field and what the limit is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from kvrouter.blocks import PROMPT_TOKENS_MAX
from kvrouter.errors import KvrouterError, SettingsError

__all__ = ["Line", "TraceError", "read_lines"]

LINE_BYTES_MAX: Final = 64 << 20
IDS_MAX: Final = 1 << 22
_ID_MAX: Final = (1 << 32) - 1
_SHOWN: Final = 60


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
        """Return ids of blocks."""
        value = fields.get(name)
        if not isinstance(value, list):
            raise self.error(name, f"is {shown(value)}; a list of block ids is needed")
        if len(value) > IDS_MAX:
            raise self.error(name, f"has {len(value)} ids; at most {IDS_MAX} are read")
        for position, each in enumerate(value):
            if isinstance(each, bool) or not isinstance(each, int) or not 0 <= each <= _ID_MAX:
                raise self.error(f"{name}[{position}]", f"is {shown(each)}; a block id is 0..{_ID_MAX}")
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
    """Yield the objects of a file of JSON lines; empty lines are left out.

    Raises:
        SettingsError: the file cannot be read.
        TraceError: a line is too long, or not a JSON object.
    """
    name = str(path)
    try:
        with path.open("rb") as file:
            for number, text in enumerate(iter(lambda: file.readline(LINE_BYTES_MAX + 1), b""), 1):
                if len(text) > LINE_BYTES_MAX:
                    raise TraceError(name, number, "", f"is longer than {LINE_BYTES_MAX} bytes")
                if text.strip():
                    yield Line(name, number, _object(text, name, number))
    except OSError as error:
        raise SettingsError(f"cannot read {name}: {error.strerror or error}") from None


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
        raise TraceError(name, number, "", f"is {shown(value)}; a JSON object is needed")
    return value
