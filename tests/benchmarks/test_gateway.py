"""The benchmark of the gateway: a short run has every figure (A-430, A-431)."""

import json
import subprocess
import sys


def test_a_short_run_has_every_figure() -> None:
    """A-430, A-431: what it adds, requests per second alone and together, and streams that are all whole."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gateway", "--json", "--quick", "--rounds", "1", "--seconds", "0.3",
         "--processes", "1", "--streams", "10"],
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)["rows"]}
    assert all(
        rows[name]["ours"] > 0 for name in ("requests-per-second-per-process", "requests-per-second-1-processes")
    )
    assert (rows["request-p50"]["peer"] > 0, rows["cpu-per-request"]["peer"] > 0) == (True, True)
    assert rows["overhead-p50"]["asked_for"] == 1.0
    assert rows["sse-streams-held"]["ours"] == 10
