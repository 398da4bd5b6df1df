"""docs/acceptance.md from the table, and what is wrong with the table."""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.acceptance.naming import naming_tests
from tests.acceptance.table import Part, Row

__all__ = ["COMMAND", "PAGE", "Proofs", "faults", "render"]

COMMAND: Final = "python -m tests.acceptance"
_CHECKOUT: Final = Path(__file__).resolve().parents[2]
PAGE: Final = _CHECKOUT / "docs" / "acceptance.md"
_HEAD: Final = """\
# What was asked for, and what stands for it

The requirements that the project was begun with, by number, and the tests that hold each of them. A test stands for the
rows that its docstring names. Figures may stand on a benchmark, and what is for operators on a section of these pages.
Where something is not as it was asked for, the row says why.

This page is written by `python -m tests.acceptance`; a test fails where a row has nothing, or where the page is not
what would be written.
"""


class Proofs:
    """What there is in a checkout that a row may stand on."""

    def __init__(self, checkout: Path = _CHECKOUT) -> None:
        self.tests: Mapping[str, Sequence[str]] = naming_tests(checkout / "tests")
        self._checkout = checkout

    def stands(self, row: Row) -> bool:
        """Whether there is anything that a row stands on."""
        return bool(self.tests.get(row.number) or row.figures or row.pages or row.instead)

    def has_section(self, section: str) -> bool:
        """Whether a page has that section: `planes.md#call-home`."""
        name, _, anchor = section.partition("#")
        page = self._checkout / "docs" / name
        return page.is_file() and anchor in _anchors(page.read_text(encoding="utf-8"))

    def has_figure(self, figure: str) -> bool:
        """Whether a benchmark writes a row whose name ends so: `transports:unary-p50`."""
        name, _, row = figure.partition(":")
        files = sorted((self._checkout / "benchmarks").glob(f"{name}*.py"))
        return bool(row) and any(row in file.read_text(encoding="utf-8") for file in files)


def faults(parts: Sequence[Part], proofs: Proofs) -> list[str]:
    """What is wrong with the table, in words; nothing where every row stands on something that is there."""
    rows = [row for part in parts for row in part.rows]
    numbers = [row.number for row in rows]
    found = [f"{number} is there {times} times" for number, times in Counter(numbers).items() if times > 1]
    if numbers != sorted(numbers):
        found.append("the rows are not in the order of their numbers")
    found += [
        f"{', '.join(tests)} names {number}, which is no row"
        for number, tests in proofs.tests.items()
        if number not in numbers
    ]
    return found + [f"{row.number}: {fault}" for row in rows for fault in _faults_of(row, proofs)]


def _faults_of(row: Row, proofs: Proofs) -> list[str]:
    stands = proofs.stands(row)
    found = []
    if not stands and not row.pending:
        found.append("no test names it, and nothing else stands for it")
    if stands and row.pending:
        found.append("it is marked as pending, and has a proof; take the mark away")
    if row.pages and row.kind not in ("operation", "document"):
        found.append(f"a page cannot stand for a {row.kind}")
    if row.figures and row.kind != "figure":
        found.append(f"a benchmark cannot stand for a {row.kind}")
    found += [f"docs/ has no {section}" for section in row.pages if not proofs.has_section(section)]
    found += [f"benchmarks/ has no {figure}" for figure in row.figures if not proofs.has_figure(figure)]
    return found


def render(parts: Sequence[Part], proofs: Proofs) -> str:
    """The page."""
    sections = [_HEAD, _summary(parts, proofs)]
    for part in parts:
        lines = [f"## {part.title}\n", "| row | kind | what | stands on |", "|---|---|---|---|"]
        lines += [f"| {row.number} | {row.kind} | {row.text} | {_stands_on(row, proofs)} |" for row in part.rows]
        sections.append("\n".join(lines) + "\n")
    return "\n".join(sections)


def _summary(parts: Sequence[Part], proofs: Proofs) -> str:
    lines = ["| part | rows | with tests | on pages or benchmarks alone | otherwise than asked | not yet |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    for part in parts:
        counts = Counter(_way(row, proofs) for row in part.rows)
        figures = " | ".join(str(counts[way]) for way in ("tests", "written", "instead", "pending"))
        lines.append(f"| [{part.title}](#{_anchor(part.title)}) | {len(part.rows)} | {figures} |")
    return "\n".join(lines) + "\n"


def _way(row: Row, proofs: Proofs) -> str:
    if row.pending:
        return "pending"
    if row.instead:
        return "instead"
    return "tests" if row.number in proofs.tests else "written"


def _stands_on(row: Row, proofs: Proofs) -> str:
    cells = [f"`{test}`" for test in proofs.tests.get(row.number, ())]
    for figure in row.figures:
        name, _, measured = figure.partition(":")
        cells.append(f"`python -m benchmarks.{name}`: `{measured}`")
    cells += [f"[{section}]({section})" for section in row.pages]
    if row.instead:
        cells.append(row.instead)
    if row.pending:
        cells.append(f"not yet: {row.pending}")
    return "<br>".join(cells)


def _anchors(page: str) -> set[str]:
    """The sections of a page, as links name them."""
    outside_programs = re.sub(r"^```.*?^```$", "", page, flags=re.DOTALL | re.MULTILINE)
    return {_anchor(heading) for heading in re.findall(r"^#+ (.+)$", outside_programs, flags=re.MULTILINE)}


def _anchor(heading: str) -> str:
    """As the pages' renderer makes it."""
    ascii_only = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", ascii_only).strip().lower())
