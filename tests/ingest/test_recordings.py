"""Recorded engines: at every request we predict what the engine itself found, and know its cache copy by copy."""

import json
from pathlib import Path

import pytest

from benchmarks import accuracy
from benchmarks.accuracy import replay_recording

RECORDINGS = sorted((Path(__file__).resolve().parent.parent / "golden" / "recordings").glob("*.jsonl.gz"))


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.name.removesuffix(".jsonl.gz"))
def test_every_lookup_is_exact(path: Path) -> None:
    """Full attention, hybrid groups, offloading, repeated reports, pages of one token: no over, no under."""
    result = replay_recording(path)

    assert result.misses == []
    assert result.lookups == result.exact > 80
    assert result.dumps == result.dumps_exact


def test_all_engines_are_covered() -> None:
    """The folder is not empty by accident."""
    assert {path.name.partition("-")[0] for path in RECORDINGS} == {"vllm", "sglang"}
    assert len(RECORDINGS) == 8


def test_the_benchmark_prints_a_row_per_recording(capsys: pytest.CaptureFixture[str]) -> None:
    """As a table for people and as one object for programs."""
    path = str(RECORDINGS[0])

    assert accuracy.main([path, "--quick"]) == 0
    table = capsys.readouterr().out
    assert accuracy.main([path, "--quick", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)

    assert "100.00%" in table
    assert document["benchmark"] == "accuracy"
    (row,) = document["rows"]
    assert row["lookups"] == row["exact"] > 0
    assert (row["over"], row["under"], row["ours"]) == (0, 0, 1.0)


def test_a_recording_that_cannot_be_read_is_a_row_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    """Never a traceback, never an invented figure."""
    assert accuracy.main(["/nowhere/at-all.jsonl.gz", "--json"]) == 1

    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["ours"] is None
    assert "FileNotFoundError" in row["reason"]


def test_a_wrong_prediction_is_counted_and_named() -> None:
    """The yardstick can tell over from under."""
    result = accuracy.Accuracy("x")

    result.compare("a", 32, 16)
    result.compare("b", 0, 16)
    result.compare("c", 16, 16)

    assert (result.lookups, result.exact, result.over, result.under) == (3, 1, 1, 1)
    assert result.misses == ["a: predicted 32, engine says 16", "b: predicted 0, engine says 16"]
