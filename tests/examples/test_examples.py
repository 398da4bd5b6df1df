"""The examples do what they say."""

import json
import subprocess
import sys
from pathlib import Path

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
            process.wait(20)
        tail.stdout.close()

    assert {event["type"] for event in batch["events"]} <= {"stored", "removed"}
    assert batch["skipped"] == {}
