"""Traces of three forms are read, and what is wrong with one is said in a sentence that names the place."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvrouter.errors import KvrouterError, SettingsError
from kvrouter.replay.lines import LINE_BYTES_MAX, TraceError
from kvrouter.replay.loading import LoadOptions, load_trace
from kvrouter.replay.trace import Trace, Turn, keys_of_ids, resampled

MOONCAKE = {"timestamp": 0, "input_length": 1100, "output_length": 5, "hash_ids": [7, 8, 9]}
SESSION: dict[str, Any] = {
    "session": "a",
    "start": 1.5,
    "block_tokens": 16,
    "turns": [
        {"runs": [[0, 2]], "input_length": 40, "output_length": 30},
        {"runs": [[0, 2], [10, 3]], "input_length": 85, "output_length": 4, "think": 2.0},
    ],
}
LOGGED = {"timestamp": 5.0, "body": {"prompt": list(range(200)), "max_tokens": 9}}


def written(folder: Path, *lines: object) -> Path:
    """Write lines, objects as JSON and texts as they are."""
    path = folder / "trace.jsonl"
    path.write_text("".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in lines))
    return path


def read(folder: Path, *lines: object, **options: Any) -> Trace:
    """Write lines and read them as a trace."""
    return load_trace(written(folder, *lines), LoadOptions(**options))


class TestMooncake:
    def test_lengths_blocks_and_times_are_read(self, tmp_path: Path) -> None:
        """Times are in milliseconds and count from the first; a partial block has no key."""
        trace = read(tmp_path, MOONCAKE | {"timestamp": 2000}, MOONCAKE | {"timestamp": 3500, "hash_ids": [7, 8]})

        assert [turn.arrival for turn in trace.turns] == [0.0, 1.5]
        assert (trace.block_tokens, trace.name) == (512, "trace")
        assert trace.turns[0].keys.tolist() == keys_of_ids([7, 8]).tolist() == trace.turns[1].keys.tolist()
        assert (trace.turns[0].input_tokens, trace.turns[0].output_tokens) == (1100, 5)

    def test_equal_prefixes_have_equal_keys_and_nothing_else_has(self, tmp_path: Path) -> None:
        """A key names the whole prefix, so the same id after another one is another key."""
        trace = read(tmp_path, MOONCAKE, MOONCAKE | {"hash_ids": [6, 8, 9]}, MOONCAKE | {"hash_ids": [7, 3, 9]})
        first, second, third = (turn.keys.tolist() for turn in trace.turns)

        assert first[1] != second[1]
        assert first[0] == third[0]
        assert first[1] != third[1]

    def test_arrivals_in_bins_are_recognised(self, tmp_path: Path) -> None:
        """Many at once, and bins three seconds apart."""
        stamps = [3000 * (number // 10) + (number > 50) for number in range(100)]
        trace = read(tmp_path, *(MOONCAKE | {"timestamp": stamp} for stamp in stamps))

        assert trace.bin_seconds == pytest.approx(3.0)

    def test_exact_arrivals_are_no_bins(self, tmp_path: Path) -> None:
        """Different times of different distance are what they are."""
        trace = read(tmp_path, *(MOONCAKE | {"timestamp": number * number} for number in range(50)))

        assert trace.bin_seconds == 0.0


class TestSessions:
    def test_turns_follow_each_other(self, tmp_path: Path) -> None:
        """The first has a time, the second waits for it and then thinks."""
        trace = read(tmp_path, SESSION, SESSION | {"session": "b", "start": 0})
        first, second, third, fourth = trace.turns

        assert (first.arrival, first.follows) == (1.5, None)
        assert (second.arrival, second.follows) == (2.0, 0)
        assert (third.follows, fourth.follows) == (None, 2)
        assert (first.session, third.session) == ("a", "b")
        assert not trace.is_open
        assert trace.block_tokens == 16

    def test_what_the_next_prompt_adds_is_the_answer(self, tmp_path: Path) -> None:
        """40 and 30 tokens fill four blocks, of which the prompt has two and the next prompt names two more."""
        first, second = read(tmp_path, SESSION).turns

        assert len(first.keys) == 4
        assert first.keys.tolist() == second.keys.tolist()[:4]

    def test_a_prompt_that_does_not_go_on_tells_no_answer(self, tmp_path: Path) -> None:
        """The context was cut: nothing is known of the answer's blocks."""
        cut = [SESSION["turns"][0], SESSION["turns"][1] | {"runs": [[5, 5]]}]
        first, _ = read(tmp_path, SESSION | {"turns": cut}).turns

        assert len(first.keys) == 2


class TestRequestLogs:
    def test_token_ids_are_used_as_they_are(self, tmp_path: Path) -> None:
        """200 tokens are three blocks of 64."""
        (turn,) = read(tmp_path, LOGGED).turns

        assert (turn.input_tokens, turn.output_tokens, len(turn.keys)) == (200, 9, 3)

    def test_conversations_that_grow_share_their_beginning(self, tmp_path: Path) -> None:
        """Four bytes of a conversation are a token, and a longer one begins like the shorter one."""
        messages = [{"role": "user", "content": "one two three " * 60}]
        longer = [*messages, {"role": "assistant", "content": "four"}, {"role": "user", "content": "five " * 90}]
        first, second = read(
            tmp_path,
            {"timestamp": "2024-05-01T10:00:00Z", "messages": messages, "user": "u"},
            {"timestamp": "2024-05-01T10:00:02Z", "messages": longer, "user": "u"},
        ).turns

        shared = len(first.keys)
        assert shared >= 2
        assert len(second.keys) > shared
        assert first.keys.tolist() == second.keys.tolist()[:shared]
        assert (second.arrival, second.session) == (2.0, "u")

    @pytest.mark.parametrize(
        ("beside", "tokens"),
        [
            ({"output_length": 3}, 3),
            ({"usage": {"completion_tokens": 4}}, 4),
            ({"response": {"usage": {"output_tokens": 5}}}, 5),
            ({"response": {"body": {"usage": {"completion_tokens": 6}}}}, 6),
            ({}, 9),
        ],
    )
    def test_the_answers_length_is_where_logs_have_it(
        self, tmp_path: Path, beside: dict[str, Any], tokens: int
    ) -> None:
        """Beside the body, in a usage, in the response; else what the request allows."""
        (turn,) = read(tmp_path, LOGGED | beside).turns

        assert turn.output_tokens == tokens

    def test_without_timestamps_a_rate_is_needed(self, tmp_path: Path) -> None:
        """Arrivals are then drawn, the same ones each time."""
        lines = [{"prompt": [1, 2, 3]}] * 5

        with pytest.raises(TraceError, match="--rate"):
            read(tmp_path, *lines)
        trace = read(tmp_path, *lines, rate=2.0)

        assert [turn.arrival for turn in trace.turns] == [
            turn.arrival for turn in read(tmp_path, *lines, rate=2.0).turns
        ]
        assert trace.turns[-1].arrival > 0

    def test_batch_files_name_their_endpoint(self, tmp_path: Path) -> None:
        """As OpenAI's batch API has them."""
        line = {
            "custom_id": "1",
            "method": "POST",
            "url": "/v1/completions",
            "body": {"prompt": [1] * 70},
            "timestamp": 0,
        }

        (turn,) = read(tmp_path, line).turns

        assert turn.input_tokens == 70


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["nonsense"], "trace.jsonl:1: is not JSON"),
        (["[1]"], "trace.jsonl:1: is a list; a JSON object is needed"),
        (['{"a": 1}'], "is of no known form: it has 'a'; hash_ids, turns"),
        ([MOONCAKE, MOONCAKE | {"timestamp": None}], "trace.jsonl:2: timestamp is missing; a number is needed"),
        ([MOONCAKE | {"timestamp": -1}], "timestamp is -1; it must be at least 0 and finite"),
        ([MOONCAKE | {"timestamp": 1e300}], "timestamp is 1e+300; it must be at most 1e+15"),
        ([MOONCAKE | {"input_length": "5"}], "input_length is '5'; a whole number is needed"),
        ([MOONCAKE | {"input_length": 0}], "input_length is 0; it must be 1.."),
        ([MOONCAKE | {"input_length": True}], "input_length is True; a whole number is needed"),
        ([MOONCAKE | {"hash_ids": 5}], "hash_ids is 5; a list of block ids is needed"),
        (
            [MOONCAKE | {"hash_ids": [1, 2**64, 3]}],
            "hash_ids[1] is 18446744073709551616; a block id is a whole number of",
        ),
        ([MOONCAKE | {"hash_ids": [1]}], "hash_ids has 1 ids; 1100 tokens fill 2 blocks of 512"),
        (["", MOONCAKE, "", "{"], "trace.jsonl:4: is not JSON"),
        ([MOONCAKE, SESSION], "trace.jsonl:2: is of the form sessions, and the first line of mooncake"),
        ([SESSION | {"turns": []}], "turns is []; a list of at least one turn is needed"),
        ([SESSION | {"turns": [5]}], "turns[0] is 5; an object is needed"),
        ([SESSION | {"start": "now"}], "start is 'now'; a number is needed"),
        ([SESSION | {"block_tokens": 0}], "block_tokens is 0; it must be 1.."),
        ([SESSION | {"turns": [SESSION["turns"][0] | {"runs": [[0]]}]}], "turns[0].runs[0] is [0]; [first, count]"),
        ([SESSION | {"turns": [SESSION["turns"][0] | {"runs": [[0, 0]]}]}], "turns[0].runs[0] is [0, 0]; ids are 0.."),
        ([SESSION | {"turns": [SESSION["turns"][0] | {"runs": [[0, 9999999]]}]}], "runs name more than 4194304 blocks"),
        ([SESSION | {"turns": [SESSION["turns"][0] | {"runs": []}]}], "turns[0].runs name 0 blocks; 40 tokens fill 2"),
        ([{"timestamp": 0, "body": 5}], "body is a number; a request body is needed"),
        ([{"timestamp": 0, "prompt": ""}], "body has no prompt; `messages` or `prompt` is needed"),
        ([{"timestamp": "soon", "prompt": [1]}], "timestamp is 'soon'; seconds or an ISO 8601 date is needed"),
        ([LOGGED, {"prompt": [1]}], "trace.jsonl:2: timestamp is missing, unlike in line 1"),
        ([{"timestamp": 0, "prompt": [1], "stream": "x"}], "stream cannot be read"),
        ([LOGGED | {"usage": {"completion_tokens": -1}}], "usage.completion_tokens is -1; it must be 0.."),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(tmp_path: Path, lines: list[object], said: str) -> None:
    """File, line, field and limit."""
    with pytest.raises(TraceError) as caught:
        read(tmp_path, *lines)

    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_packed_files_and_marks_of_byte_order_are_read(tmp_path: Path) -> None:
    """What gzip packed, and what begins as some editors begin their files."""
    plain = json.dumps(MOONCAKE).encode()
    for name, data in [
        ("day.jsonl.gz", gzip.compress(plain + b"\n" + plain)),
        ("day.jsonl", b"\xef\xbb\xbf" + plain + b"\r\n\r\n" + plain),
    ]:
        (tmp_path / name).write_bytes(data)
        trace = load_trace(tmp_path / name)

        assert (trace.name, len(trace.turns)) == ("day", 2)


@pytest.mark.parametrize("cut", [2, 12, -5])
def test_a_packed_file_that_ends_early_is_said(tmp_path: Path, cut: int) -> None:
    """At its end, with the line that was to come."""
    (tmp_path / "day.jsonl.gz").write_bytes(gzip.compress(json.dumps(MOONCAKE).encode() + b"\n")[:cut])

    with pytest.raises(TraceError, match="the gzip file is damaged or ends early"):
        load_trace(tmp_path / "day.jsonl.gz")


def test_ids_may_be_hashes(tmp_path: Path) -> None:
    """Of 64 bits, with a sign or without; equal ones are equal blocks, and small ids are what they were."""
    wide, signed = 2**64 - 1, -(2**63)
    lines = [MOONCAKE | {"hash_ids": ids} for ids in ([wide, signed], [wide, 8], [signed, 8], [7, 8], [2**31, 8])]

    keys = [turn.keys.tolist() for turn in read(tmp_path, *lines).turns]

    assert keys[0][0] == keys[1][0]
    assert len({tuple(each) for each in keys}) == 5
    assert len({each[0] for each in keys}) == 4
    assert keys[3] == keys_of_ids([7, 8]).tolist()


def test_the_examples_of_the_page_are_read(tmp_path: Path) -> None:
    """As they are printed in docs/replay.md, one of each form; the log's has no length but its text's."""
    page = (Path(__file__).parents[2] / "docs" / "replay.md").read_text(encoding="utf-8")
    examples = [" ".join(each.split()) for each in re.findall(r"```json\n(.*?)```", page, re.DOTALL)]

    found = [read(tmp_path, each) for each in examples]

    assert [[turn.input_tokens for turn in trace.turns] for trace in found[:2]] == [[6955], [1740, 2150]]
    assert [trace.block_tokens for trace in found] == [512, 64, 64]
    assert [found[1].turns[1].follows, found[1].turns[1].arrival] == [0, 4.0]
    assert found[2].turns[0].output_tokens == 120


def test_no_prompt_stands_in_what_is_said_of_a_line(tmp_path: Path) -> None:
    """Only what kind of thing is there instead of an object."""
    for lines in (['["a secret"]'], [LOGGED, LOGGED | {"body": "a secret"}], ['"a secret"']):
        with pytest.raises(TraceError) as caught:
            read(tmp_path, *lines)

        assert "secret" not in str(caught.value)


def test_a_rate_that_is_not_used_is_said(tmp_path: Path) -> None:
    """Arrivals of a file are its own."""
    told: list[str] = []
    unstamped = {name: value for name, value in LOGGED.items() if name != "timestamp"}
    for line in (LOGGED, MOONCAKE, unstamped):
        load_trace(written(tmp_path, line), LoadOptions(rate=2.0), warn=told.append)

    assert len(told) == 2
    assert "--rate-scale" in told[0]


def test_files_that_cannot_be_read_are_wrong_calls(tmp_path: Path) -> None:
    """Absent, a folder, empty."""
    (tmp_path / "empty.jsonl").write_text("\n\n")

    for path, said in [("absent.jsonl", "No such file"), (".", "directory"), ("empty.jsonl", "is empty")]:
        with pytest.raises(SettingsError, match=said):
            load_trace(tmp_path / path)


def test_a_line_without_end_is_not_read_into_memory(tmp_path: Path) -> None:
    """There is a bound, and it is named."""
    path = tmp_path / "long.jsonl"
    with path.open("wb") as file:
        file.truncate(LINE_BYTES_MAX + 2)

    with pytest.raises(TraceError, match=str(LINE_BYTES_MAX)):
        load_trace(path)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
_FIELDS = ("timestamp", "input_length", "output_length", "hash_ids", "turns", "start", "session", "runs", "messages")
_MORE = ("prompt", "input", "body", "request", "url", "usage", "response", "block_tokens", "think", "model", "stream")


@given(
    base=st.sampled_from([MOONCAKE, SESSION, LOGGED, SESSION["turns"][0]]),
    changes=st.dictionaries(st.sampled_from(_FIELDS + _MORE), _VALUES, max_size=4),
    inside=st.booleans(),
)
def test_any_line_is_read_or_refused(
    base: dict[str, Any], changes: dict[str, Any], inside: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Nothing but our own errors, whatever stands in a line."""
    line = SESSION | {"turns": [base | changes]} if inside else base | changes
    path = written(tmp_path_factory.mktemp("fuzz"), line)

    said = ""
    try:
        assert all(turn.input_tokens > 0 for turn in load_trace(path, LoadOptions(rate=1.0)).turns)
    except KvrouterError as error:
        said = str(error)

    assert "\n" not in said


@given(data=st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Files that are no traces at all."""
    path = tmp_path_factory.mktemp("fuzz") / "trace.jsonl"
    path.write_bytes(data)

    with pytest.raises(KvrouterError):
        load_trace(path)


class TestResampling:
    def test_bins_are_filled_evenly_and_in_order(self) -> None:
        """Every arrival stays in its bin, and two seeds differ."""
        trace = _open([3.0 * (number // 8) for number in range(40)], bin_seconds=3.0)
        played = resampled(trace, 1)
        arrivals = [turn.arrival for turn in played.turns]

        assert arrivals == sorted(arrivals)
        assert all(0 <= new - old.arrival < 3.0 for new, old in zip(arrivals, trace.turns, strict=True))
        assert len(set(arrivals)) == 40
        assert arrivals == [turn.arrival for turn in resampled(trace, 1).turns]
        assert arrivals != [turn.arrival for turn in resampled(trace, 2).turns]

    def test_exact_arrivals_are_played_as_they_are_and_then_shaken(self) -> None:
        """Seed 0 is the trace itself."""
        trace = _open([float(number) for number in range(20)])

        assert resampled(trace, 0) is trace
        moved = [turn.arrival - number for number, turn in enumerate(resampled(trace, 1).turns)]
        assert all(0 <= each < 1.0 for each in moved)
        assert len(set(moved)) == 20

    def test_a_rate_changes_arrivals_and_not_thinking(self) -> None:
        """People do not think faster because there are more of them."""
        trace = Trace(name="t", turns=[_turn(8.0), _turn(3.0, follows=0)])

        assert [turn.arrival for turn in trace.at_rate(2.0).turns] == [4.0, 3.0]

    def test_a_beginning_keeps_what_follows_what(self) -> None:
        """Turns of sessions that are left out are left out too."""
        turns = [_turn(9.0), _turn(1.0, follows=0), _turn(0.0), _turn(1.0, follows=2)]
        head = Trace(name="t", turns=turns).head(seconds=5.0)

        assert [(turn.arrival, turn.follows) for turn in head.turns] == [(0.0, None), (1.0, 0)]
        assert len(Trace(name="t", turns=turns).head(requests=3).turns) == 3


def _turn(arrival: float, follows: int | None = None) -> Turn:
    return Turn(arrival=arrival, input_tokens=10, output_tokens=1, keys=keys_of_ids([]), follows=follows)


def _open(arrivals: list[float], bin_seconds: float = 0.0) -> Trace:
    return Trace(name="t", turns=[_turn(arrival) for arrival in arrivals], bin_seconds=bin_seconds)
