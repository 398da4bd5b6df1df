"""Whole benchmarks, short, in an environment without any peer."""

import json
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def no_peers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment in which nothing is installed."""
    folder = tmp_path_factory.mktemp("no-peers")
    venv.create(folder, with_pip=False, symlinks=True)
    return folder / "bin" / "python"


def run(name: str, *arguments: object) -> dict[str, Any]:
    """Run a benchmark and return what it prints for programs."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--json", "--quick", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


def test_proxy_runs_without_peers_and_says_that_they_are_missing(no_peers: Path) -> None:
    """Our own figures are there; a peer's are null, each with its reason."""
    printed = run("proxy", "--seconds", 0.2, "--rounds", 1, "--only", "sglang-router", "--peers-python", no_peers)

    rows = {row["name"]: row for row in printed["rows"]}
    assert {"requests-per-second-1k", "requests-per-second-32k", "streams-per-second"} <= rows.keys()
    assert {"added-latency-p50", "added-latency-p99"} <= rows.keys()
    assert all(row["peer"] is None and "sglang-router is not installed" in row["reason"] for row in rows.values())
    assert rows["requests-per-second-1k"]["ours"] > 0
    assert rows["streams-per-second"]["ours"] > 0
    assert all(tokens > 0 for tokens in printed["conditions"]["overlap_tokens"].values())


def test_proxy_compares_with_the_pass_through_of_the_same_run(no_peers: Path) -> None:
    """The floor needs no peer, so its rows have both figures and a ratio."""
    printed = run("proxy", "--seconds", 0.2, "--rounds", 1, "--only", "pass-through", "--peers-python", no_peers)

    row = next(row for row in printed["rows"] if row["name"] == "cpu-per-request-1k")
    assert row["peer_name"] == "pass-through"
    assert row["ratio"] == pytest.approx(row["peer"] / row["ours"], rel=0.01)


def test_selection_runs_without_dynamo_and_says_so(no_peers: Path) -> None:
    """Selections are measured, matched against real events, and Dynamo's figures are null."""
    printed = run("selection", "--seconds", 0.2, "--rounds", 1, "--peers-python", no_peers)

    rows = {row["name"]: row for row in printed["rows"]}
    assert {"select-2k-cpu", "select-16k-cpu", "select-hashes-cpu"} <= rows.keys()
    assert all(row["ours"] > 0 for row in rows.values())
    assert all(row["peer"] is None and "ai-dynamo-runtime" in row["reason"] for row in rows.values())
    assert all(tokens > 0 for tokens in printed["conditions"]["matched_tokens"]["kvrouter"].values())
