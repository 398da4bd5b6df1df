"""The example of the gateway runs out of the box: every route of the seed through real processes (A-411 to A-418)."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "gateway" / "run.py"


@pytest.fixture(scope="module")
def said() -> list[str]:
    """What it prints."""
    ended = subprocess.run([sys.executable, str(EXAMPLE)], capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


def answer_of(said: list[str], path: str) -> tuple[int, Any]:
    """The status and the body of the answer for a path."""
    (line,) = [line for line in said if line.startswith(f"POST {path} -> ")]
    status, _, body = line.partition(" -> ")[2].partition(" ")
    return int(status), json.loads(body)


@pytest.mark.parametrize(
    ("path", "member", "expected"),
    [
        ("/ai/llm/infer", "output", {"text": "Hello, world!"}),
        ("/ai/models/small", "model", "small"),
        ("/ai/models/small/select", "reason", "you asked for it, for a quick look"),
        ("/state/update", "version", "1"),
        ("/state/get", "state", {"health": 90.0, "inventory": ["sword"]}),
        ("/quest/generate", "quest", "quest-hero"),
        ("/npc/behavior", "npc_id", "smith"),
    ],
)
def test_a_route_of_the_seed_is_answered(said: list[str], path: str, member: str, expected: object) -> None:
    """A-411 to A-417: the path's variable is in the message, the answer comes from the subject's service."""
    status, body = answer_of(said, path)

    assert status == 200
    found = body[member]
    if isinstance(found, dict) and isinstance(expected, str):
        found = found.get("model_id") or found.get("quest_id")
    assert found == expected


def test_models_are_listed(said: list[str]) -> None:
    """A-412."""
    status, body = answer_of(said, "/ai/models")

    assert (status, [model["model_id"] for model in body["models"]]) == (200, ["gpt-5-pro", "small"])


def test_what_is_not_there_is_a_404(said: list[str]) -> None:
    """A-403: an error of the service."""
    assert answer_of(said, "/ai/models/absent") == (
        404,
        {"error": {"code": "NOT_FOUND", "message": "no model 'absent'"}},
    )


def test_a_retry_is_replayed_and_a_story_is_streamed(said: list[str]) -> None:
    """A-406, A-420: the same key, and tokens one by one."""
    assert "the same key again -> replayed: true" in said
    first = said.index("POST /ai/llm/infer, as a stream -> 200")
    assert said[first + 1 : first + 6] == ["  0: 'Tell '", "  1: 'me '", "  2: 'a '", "  3: 'story '", "  4: stop"]


def test_a_gateway_that_cannot_start_ends_the_example() -> None:
    """With its one line, and without waiting for a port on which nobody will ever listen."""
    environment = {**os.environ, "KVROUTER_GATEWAY__STORE": "nowhere://"}
    ended = subprocess.run(
        [sys.executable, str(EXAMPLE)], capture_output=True, text=True, timeout=240, check=False, env=environment
    )

    assert ended.returncode == 1
    assert "store 'nowhere://' must look like" in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("nobody serves port ")
