"""The object that every benchmark prints."""

import json

import pytest

from benchmarks.report import Report, argument_parser, installed_versions


def test_json_has_the_parts_that_every_benchmark_has(capsys: pytest.CaptureFixture[str]) -> None:
    """Programs find machine, versions and rows under the same names in every benchmark."""
    report = Report("example", packages=["numpy", "not-a-package"])
    report.row("speed", "requests/s", 30_000.4, 10_000, "peer")

    report.emit(json=True)

    printed = json.loads(capsys.readouterr().out)
    assert printed["benchmark"] == "example"
    assert {"cpu", "cores", "memory_bytes", "system", "python"} <= printed["machine"].keys()
    assert printed["versions"].keys() == {"kvrouter", "numpy"}
    assert printed["rows"] == [
        {"name": "speed", "unit": "requests/s", "ours": 30_000, "peer": 10_000, "peer_name": "peer", "ratio": 3.0}
    ]


def test_a_ratio_above_one_means_that_we_are_better() -> None:
    """Whether more or less of a unit is better does not matter to the reader of a ratio."""
    report = Report("example")
    report.row("rate", "1/s", 200, 100, "peer")
    report.row("time", "µs", 5, 10, "peer", less_is_better=True)
    report.row("given", "x", 1, 1, "peer", ratio=7)

    assert [row["ratio"] for row in report.rows] == [2, 2, 7]


def test_a_missing_peer_is_null_with_its_reason() -> None:
    """A figure that was not measured is never invented."""
    report = Report("example")
    report.row("rate", "1/s", 200, None, "peer", reason="peer is not installed")

    (row,) = report.rows
    assert (row["peer"], row["ratio"], row["reason"]) == (None, None, "peer is not installed")


def test_no_ratio_is_made_from_figures_that_have_none() -> None:
    """An added latency below the noise may come out as zero or less; a quotient of it would mean nothing."""
    report = Report("example")
    report.row("added", "ms", -0.01, 0.2, "peer", less_is_better=True)

    assert report.rows[0]["ratio"] is None


def test_the_table_names_every_row_and_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    """People get the same rows as programs."""
    report = Report("example")
    report.row("rate", "1/s", 12_345.6, None, "peer", reason="not installed")

    report.emit(json=False)

    printed = capsys.readouterr().out
    assert "rate" in printed
    assert "12,346" in printed
    assert "peer (not installed)" in printed


def test_extra_facts_go_into_the_row() -> None:
    """A benchmark may say more about a figure than its value."""
    report = Report("example")
    report.row("rate", "1/s", 1, rounds=[1, 2])

    assert report.rows[0]["rounds"] == [1, 2]


def test_every_benchmark_has_the_same_two_options() -> None:
    """`--json` and `--quick` are understood everywhere."""
    options = argument_parser("example", "An example.").parse_args(["--json", "--quick"])

    assert (options.json, options.quick) == (True, True)


def test_versions_leave_out_what_is_not_installed() -> None:
    """The version of a package that is absent is not in the result."""
    assert installed_versions(["not-a-package"]) == {}
