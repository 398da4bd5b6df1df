"""Requests that a benchmark sends: of one size, and as different as they claim to be."""

import json
from pathlib import Path

import pytest

from benchmarks.load import wrk
from benchmarks.load.workload import (
    Workload,
    ready_bodies,
    text_completions,
    token_completions,
    token_selections,
)
from kvrouter.blocks import sequence_hashes

BLOCK_SIZE = 16


@pytest.mark.parametrize("size", [1024, 32 * 1024])
@pytest.mark.parametrize("conversations", [False, True])
@pytest.mark.parametrize("make", [token_completions, text_completions])
def test_all_bodies_are_json_of_exactly_the_stated_size(make: object, size: int, conversations: bool) -> None:
    """A request head is made once for all bodies of a workload."""
    workload: Workload = make("test", size, conversations=conversations)  # type: ignore[operator]

    bodies = [workload.body(counter, seed=7) for counter in (0, 1, 79_999, 80_000, 1_234_567)]

    assert {len(body) for body in bodies} == {size}
    assert all(json.loads(body)["model"] == "bench" for body in bodies)


def test_distinct_prompts_share_no_block() -> None:
    """Nothing that a router remembers of one request helps it with the next."""
    workload = token_completions("test", 1024, conversations=False)

    prompts = [json.loads(workload.body(counter, seed))["prompt"] for counter in range(50) for seed in (1, 2)]

    hashes = [int(each) for prompt in prompts for each in sequence_hashes(prompt, BLOCK_SIZE)]
    assert len(set(hashes)) == len(hashes)


def test_conversations_continue_with_new_tokens() -> None:
    """Two requests of one conversation share what was said before, and nothing after it."""
    workload = token_completions("test", 1024, conversations=True)
    stems = workload.stem_ids()

    first, second = (json.loads(workload.body(counter, seed=1))["prompt"] for counter in (3, 3 + len(stems)))

    assert first[: len(stems[3])] == second[: len(stems[3])] == stems[3]
    assert first[len(stems[3]) :] != second[len(stems[3]) :]


def test_a_selection_has_exactly_the_stated_tokens() -> None:
    """A row named 2k is about 2048 tokens."""
    workload = token_selections("test", 2048, conversations=True)

    assert len(json.loads(workload.body(9, seed=1))["token_ids"]) == 2048
    assert workload.path == "/select"


def test_ready_bodies_come_in_turn() -> None:
    """Bodies that cannot be made from pieces are repeated."""
    workload = ready_bodies("test", "/select", ["{}", '{"a":1}'])

    assert [workload.body(counter, seed=0) for counter in range(3)] == [b"{}", b'{"a":1}', b"{}"]
    assert workload.request(1, 0, "h").startswith(b"POST /select HTTP/1.1\r\nHost: h\r\n")
    assert b"Content-Length: 7\r\n" in workload.request(1, 0, "h")


def test_a_workload_survives_being_written_to_a_file(tmp_path: Path) -> None:
    """A generator in another process sends the same bytes."""
    workload = text_completions("test", 1024, conversations=True, stream=True)

    workload.save(tmp_path / "workload.json")

    assert Workload.load(tmp_path / "workload.json") == workload


def test_the_wrk_script_holds_the_same_pieces() -> None:
    """What wrk sends is made as our own generator makes it."""
    workload = token_completions("test", 1024, conversations=True)

    script = wrk.script(workload, "127.0.0.1:1", seed=3)

    assert all(json.dumps(piece) in script for piece in (*workload.stems, *workload.tails, workload.closing))
    assert "Content-Length: 1024" in script


def test_the_summary_of_wrk_is_found_in_its_output() -> None:
    """The load generator prints a report of its own around ours."""
    output = 'Running 1s test\n{"requests":5,"bytes":10,"microseconds":1000000,"failed":0}\nother\n'

    assert wrk.summary(output) == {"requests": 5, "bytes": 10, "microseconds": 1_000_000, "failed": 0}
