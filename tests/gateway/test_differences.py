"""What differs between two answers, told without their contents (A-427)."""

from typing import Any

import pytest

from kvrouter.gateway.differences import COMPARED_BYTES_MAX, DIFFERENCES_MAX, compared, differences, redacted


def paths(primary: Any, secondary: Any, *ignored: str) -> list[str]:
    """Where they differ."""
    return [".".join(found.path) for found in differences(primary, secondary, ignored)]


@pytest.mark.parametrize(
    ("primary", "secondary", "expected"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": 1}, {"a": 2}, ["a"]),
        ({"a": {"b": [1, {"c": 2}]}}, {"a": {"b": [1, {"c": 3}]}}, ["a.b.1.c"]),
        ({"a": [1]}, {"a": [1, 2]}, ["a"]),
        ({"a": 5}, {"a": "5"}, ["a"]),
        ({"a": 1}, {"a": True}, ["a"]),
        ({"a": 1}, {"a": 1.0}, []),
        ({"a": 1, "b": ""}, {"a": 1}, []),
        ({}, {"a": 0, "b": [], "c": {}, "d": False, "e": None}, []),
        ({}, {"a": 1}, ["a"]),
        ([1], {"a": 1}, [""]),
    ],
)
def test_values_are_compared_as_clients_read_them(primary: Any, secondary: Any, expected: list[str]) -> None:
    """Defaults that one side leaves out are no difference; a number that became text is one."""
    assert paths(primary, secondary) == expected


def test_what_is_ignored_is_ignored_with_all_that_is_in_it() -> None:
    """A star stands for any member or position."""
    primary = {"meta": {"timestamp": 1}, "models": [{"id": 1, "n": 1}, {"id": 2, "n": 1}]}
    secondary = {"meta": {"timestamp": 2}, "models": [{"id": 3, "n": 1}, {"id": 4, "n": 2}]}

    assert paths(primary, secondary, "meta", "models.*.id") == ["models.1.n"]


def test_there_are_not_more_differences_than_anybody_reads() -> None:
    """Two wholly different answers are a short sample too."""
    assert len(differences({str(n): 1 for n in range(100)}, {str(n): 2 for n in range(100)})) == DIFFERENCES_MAX


def test_a_sample_shows_kinds_and_lengths_but_no_contents() -> None:
    """A prompt is never in a sample; what a route names may be."""
    (text, number) = differences({"a": "secret", "b": 1}, {"a": "secrets", "b": None})

    assert redacted(text) == {"path": "a", "primary": "text of 6 characters", "secondary": "text of 7 characters"}
    assert redacted(number) == {"path": "b", "primary": "a number", "secondary": "nothing"}
    assert redacted(text, ["a"]) == {"path": "a", "primary": "secret", "secondary": "secrets"}


def test_deep_answers_are_compared_as_a_whole_from_some_depth_on() -> None:
    """The depth of an answer is not ours to trust."""
    one: Any = 1
    other: Any = 2
    for _ in range(200):
        one, other = [one], [other]

    assert len(differences(one, other)) == 1


def test_answers_are_compared_as_they_were_sent() -> None:
    """What is no JSON differs; what is too long to compare while clients wait is an error, and told as one."""
    long = b'"%s"' % (b"x" * COMPARED_BYTES_MAX)

    assert compared(b'{"a": 1, "meta": 2}', b'{"a": 1}', ("meta",)) == ("match", [])
    result, (difference,) = compared(b'{"a": "one"}', b'{"a": "other"}', shown=("a",))
    assert (result, difference["path"], difference["secondary"]) == ("diff", "a", "other")
    assert compared(b"{}", b"<html>")[0] == "diff"
    for pair in ((long, b"{}"), (b"{}", long)):
        result, (told,) = compared(*pair)
        assert result == "error"
        assert "longer" in told["problem"]
