"""The examples do what they say."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvrouter.blocks import Prompt
from kvrouter.routing import Router
from tests.servers import free_tcp

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_router_in_process_finds_the_worker_with_the_prefix() -> None:
    """Three blocks of 16 tokens are cached on worker b."""
    answer = subprocess.run(
        [sys.executable, str(EXAMPLES / "route_in_process.py")], capture_output=True, text=True, timeout=90, check=True
    )

    assert answer.stdout == "worker b: 48 of 100 tokens are cached there\n"


def test_published_events_can_be_watched() -> None:
    """`kvrouter events tail` shows what the example publishes."""
    endpoint = free_tcp()
    publisher = subprocess.Popen([sys.executable, str(EXAMPLES / "publish_events.py"), endpoint, "30"])
    tail = subprocess.Popen(
        [sys.executable, "-m", "kvrouter", "events", "tail", endpoint, "--json"], stdout=subprocess.PIPE, text=True
    )
    assert tail.stdout is not None
    try:
        batch = next(line for line in map(json.loads, tail.stdout) if line["kind"] == "batch")
    finally:
        for process in (publisher, tail):
            process.terminate()
            process.wait(60)
        tail.stdout.close()

    assert {event["type"] for event in batch["events"]} <= {"stored", "removed"}
    assert batch["skipped"] == {}


def test_a_policy_of_ones_own_is_taken_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its filter keeps full ranks out, its scorer sends long prompts where it is quiet."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    router = Router(policy="own_policy:make")
    for worker in ("a", "b", "c"):
        router.add_worker(worker, now=0.0)
    for number in range(33):
        router.book.reserve(number, 0, prefill_tokens=0, blocks=0, now=0.0)
        router.book.prefill_complete(number, now=0.0)
    router.book.reserve("long", 1, prefill_tokens=50_000, blocks=0, now=0.0)
    router.book.reserve("short", 2, prefill_tokens=50, blocks=0, now=0.0)

    decision = router.decide(Prompt(range(10_000)), now=0.0)

    assert (decision.worker_id, decision.policy, decision.reason) == ("c", "own", "score")


def test_a_policy_of_ones_own_can_be_replayed() -> None:
    """On made-up traffic, beside the built-in ones."""
    options = ["--synthetic", "shared-prompt:requests=60", "--workers", "2", "--seeds", "1", "--processes", "1"]

    answer = subprocess.run(
        [sys.executable, "-m", "kvrouter.cli", "replay", *options, "--policies", "kv,own_policy:make", "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(EXAMPLES), os.environ.get("PYTHONPATH", "")])},
    )

    assert "own_policy:make" in answer.stdout
