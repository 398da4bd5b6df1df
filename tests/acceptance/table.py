"""The rows of the acceptance table, as they stand in the files of `rows/`."""

import re
import tomllib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["KINDS", "Part", "Row", "read_parts", "take_marks_away"]

KINDS: Final = {
    "CAP": "capability",
    "DOC": "document",
    "ENV": "setting",
    "EP": "endpoint",
    "FAIL": "failure",
    "FUT": "wish",
    "GUA": "guarantee",
    "MET": "metric",
    "OPS": "operation",
    "PERF": "figure",
    "TEST": "test",
}
_PARTS: Final = ("silent", "http2", "transports", "decoupling", "gateway", "card")
_ROWS: Final = Path(__file__).parent / "rows"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One requirement, and what stands for it beside the tests that name it."""

    number: str
    kind: str
    text: str
    figures: tuple[str, ...] = ()
    """`BENCHMARK:ROW` of a benchmark; for figures."""
    pages: tuple[str, ...] = ()
    """`PAGE.md#section`; for operations and documents."""
    instead: str = ""
    """Why it is not as it was asked for, and what there is instead."""
    pending: str = ""
    """Why there is no proof yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Rows that belong together."""

    title: str
    rows: tuple[Row, ...]


def read_parts() -> tuple[Part, ...]:
    """Every part, in the order of the numbers. Raises TypeError or KeyError where a file is not as it must be."""
    return tuple(_read(_ROWS / f"{name}.toml") for name in _PARTS)


def take_marks_away(numbers: Collection[str]) -> None:
    """Rewrite the files: these rows are not pending any more."""
    for name in _PARTS:
        file = _ROWS / f"{name}.toml"
        blocks = file.read_text(encoding="utf-8").split("\n\n")
        kept = [
            re.sub(r"\npending = .*", "", block) if block[1:].partition("]")[0] in numbers else block
            for block in blocks
        ]
        file.write_text("\n\n".join(kept), encoding="utf-8")


def _read(file: Path) -> Part:
    table = tomllib.loads(file.read_text(encoding="utf-8"))
    title = table.pop("title")
    return Part(title=title, rows=tuple(_row(number, **members) for number, members in table.items()))


def _row(
    number: str,
    *,
    kind: str,
    text: str,
    figures: tuple[str, ...] = (),
    pages: tuple[str, ...] = (),
    instead: str = "",
    pending: str = "",
) -> Row:
    return Row(
        number=number, kind=KINDS[kind], text=text, figures=tuple(figures), pages=tuple(pages), instead=instead,
        pending=pending,
    )  # fmt: skip
