"""The acceptance table holds, its page is up to date, and the checker finds what it is there for."""

from pathlib import Path

import pytest

from tests.acceptance.naming import named_numbers, naming_tests
from tests.acceptance.page import COMMAND, PAGE, Proofs, faults, render
from tests.acceptance.table import Part, Row, read_parts

TESTS = '''
if True:
    class TestLife:
        """A-102: said of the class."""

        def test_life(self):
            """A-101, A-103 to A-105: SHA-256 is no row."""

def helper():
    """A-106 is not named by a test."""
'''


@pytest.fixture
def proofs(tmp_path: Path) -> Proofs:
    """A checkout with two tests, one page and one benchmark."""
    for name, text in (
        ("tests/test_life.py", TESTS),
        ("docs/life.md", "# Life\n\n```text\n# No heading\n```\n\n## The **end** of it\n"),
        ("benchmarks/life_side.py", 'row("speed-p50")'),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return Proofs(tmp_path)


def rows(*rows: Row) -> list[Part]:
    """A table that has those and whatever else the two tests name."""
    named = [Row(number=f"A-{number}", kind="capability", text="") for number in range(101, 106)]
    return [Part(title="Life", rows=(*named, *rows))]


def test_every_row_stands_on_something() -> None:
    """A row without a test, a benchmark, a page or a reason is a fault; so is a mark that is out of date."""
    found = faults(read_parts(), Proofs())

    assert not found, "\n".join([f"run `{COMMAND}` when this is mended:", *found])


def test_the_page_is_what_would_be_written() -> None:
    """Names of tests change, and so does the page."""
    written = PAGE.read_text(encoding="utf-8")

    assert written == render(read_parts(), Proofs()), f"run `{COMMAND}`"


def test_docstrings_of_tests_and_their_classes_name_rows(proofs: Proofs) -> None:
    """Ranges too; what looks alike does not, and helpers do not."""
    life = "tests/test_life.py::TestLife"

    assert named_numbers("A-101, A-103 to A-105: SHA-256 is no row.") == ["A-101", "A-103", "A-104", "A-105"]
    assert proofs.tests == {
        "A-102": [life], **{f"A-{number}": [f"{life}::test_life"] for number in (101, 103, 104, 105)}
    }  # fmt: skip
    assert naming_tests(Path(__file__).parent / "rows") == {}


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (Row(number="A-107", kind="capability", text=""), "no test names it"),
        (Row(number="A-107", kind="operation", text="", pages=("life.md#no-heading",)), "docs/ has no life.md#no-hea"),
        (Row(number="A-107", kind="operation", text="", pages=("death.md#end",)), "docs/ has no death.md#end"),
        (Row(number="A-107", kind="guarantee", text="", pages=("life.md#life",)), "a page cannot stand for a guara"),
        (Row(number="A-107", kind="figure", text="", figures=("life:speed-p99",)), "benchmarks/ has no life:speed"),
        (Row(number="A-107", kind="setting", text="", figures=("life:speed-p50",)), "a benchmark cannot stand for"),
        (Row(number="A-107", kind="setting", text="", instead="x", pending="y"), "take the mark away"),
        (Row(number="A-105", kind="setting", text=""), "A-105 is there 2 times"),
        (Row(number="A-100", kind="setting", text="", instead="x"), "not in the order"),
    ],
)
def test_faults_of_the_table_are_found(proofs: Proofs, row: Row, fault: str) -> None:
    """Each in words that say which row it is."""
    assert any(fault in found for found in faults(rows(row), proofs))


def test_a_name_without_a_row_is_found(proofs: Proofs) -> None:
    """A test that names what does not exist was meant for another one."""
    [part] = rows()

    assert faults([Part(title="", rows=part.rows[:-1])], proofs) == [
        "tests/test_life.py::TestLife::test_life names A-105, which is no row"
    ]


def test_a_table_without_faults_is_written(proofs: Proofs) -> None:
    """Tests, figures, pages and reasons, each in its place."""
    parts = rows(
        Row(number="A-107", kind="figure", text="fast", figures=("life:speed-p50",)),
        Row(number="A-108", kind="document", text="told", pages=("life.md#the-end-of-it",)),
        Row(number="A-109", kind="wish", text="wings", instead="nobody has any"),
        Row(number="A-110", kind="wish", text="fins", pending="it grows"),
    )

    assert faults(parts, proofs) == []
    page = render(parts, proofs)
    assert "| [Life](#life) | 9 | 5 | 2 | 1 | 1 |" in page
    assert "| A-102 | capability |  | `tests/test_life.py::TestLife` |" in page
    assert "| A-107 | figure | fast | `python -m benchmarks.life`: `speed-p50` |" in page
    assert "| A-108 | document | told | [life.md#the-end-of-it](life.md#the-end-of-it) |" in page
    assert "| A-110 | wish | fins | not yet: it grows |" in page
