"""The events benchmark: what its publishers say, and a short run."""

import json
import subprocess
import sys
import venv
from pathlib import Path

from benchmarks.events_side import BLOCK_SIZE, MARK_EVERY, RESIDENT_BLOCKS, mark_tokens, payloads
from kvrouter.blocks import Prompt
from kvrouter.events import Source
from kvrouter.index import PrefixIndex
from kvrouter.ingest import Ingest


def test_what_a_publisher_says_is_taken_in_wholly() -> None:
    """Nothing in it is unknown to the router, marks are found, and the oldest blocks make room."""
    said, blocks = payloads(0, blocks_per_event=64, events=500)
    index, source = PrefixIndex(), Source("1", 0)
    ingest = Ingest(index)
    ingest.open(source, 0, now=0.0)

    for sequence, payload in enumerate(said):
        ingest.receive(source, sequence, bytes(payload), now=0.0)

    (status,) = ingest.status(now=0.0)
    assert (status.applied_batches, status.quarantined, dict(status.ignored), status.orphans) == (500, 0, {}, 0)
    assert RESIDENT_BLOCKS <= index.blocks(0) < blocks
    last = -(-len(said) // MARK_EVERY) - 1
    assert ingest.usable_tokens(Prompt([*mark_tokens(0, last), 1])) == {0: BLOCK_SIZE}


def test_it_runs_without_dynamo_and_says_so(tmp_path: Path) -> None:
    """Our figures are there; Dynamo's are null, each with its reason."""
    venv.create(tmp_path, with_pip=False, symlinks=True)
    command = [sys.executable, "-m", "benchmarks.events", "--json", "--quick", "--transport", "zmq"]

    done = subprocess.run(
        [*command, "--peers-python", tmp_path / "bin" / "python"],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)["rows"]}
    assert {"zmq-blocks-per-second", "zmq-cpu-per-block", "staleness-p99"} <= rows.keys()
    assert all(row["ours"] > 0 and row["peer"] is None for row in rows.values())
    assert all("ai-dynamo-runtime is not installed" in row["reason"] for row in rows.values())
