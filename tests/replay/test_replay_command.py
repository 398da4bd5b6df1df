"""`kvrouter replay` as a real process: what it prints, what it writes, and how it ends."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.replay.serving import engine_process

DEADLINE_SECONDS = 60.0
SMALL = ("--synthetic", "multi-turn:requests=80", "--workers", "2", "--seeds", "2", "--processes", "1")


def replay(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("KVROUTER_")}
    return subprocess.run(
        [sys.executable, "-m", "kvrouter", "replay", *arguments],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        cwd=folder,
        env=inherited,
    )


def mooncake(folder: Path, *, requests: int = 60) -> Path:
    """Write a trace of requests of which every third repeats its beginning."""
    path = folder / "recorded.jsonl"
    path.write_text(
        "".join(
            json.dumps(
                {
                    "timestamp": 250 * number,
                    "input_length": 1500,
                    "output_length": 20,
                    "hash_ids": [number % 3, 10 + number // 6, 100 + number],
                }
            )
            + "\n"
            for number in range(requests)
        )
    )
    return path


def test_made_up_traffic_gives_a_table() -> None:
    """Nothing is needed for it: no file, no network, no flag."""
    answer = replay(*SMALL)

    assert answer.returncode == 0, answer.stderr
    assert answer.stderr == ""
    policies = [line.split()[0] for line in answer.stdout.splitlines() if line.startswith(("kv", "least", "sticky"))]
    assert policies == ["kv", "least-loaded", "sticky"]
    assert "multi-turn: 80 requests" in answer.stdout


def test_a_recorded_trace_gives_json(tmp_path: Path) -> None:
    """One object on standard output and nothing else."""
    answer = replay(
        str(mooncake(tmp_path)), "--policies", "kv,round-robin", "--seeds", "2", "--processes", "1", "--json"
    )
    document = json.loads(answer.stdout)

    assert (answer.returncode, answer.stderr) == (0, "")
    (trace,) = document["traces"]
    assert (trace["name"], trace["requests"], trace["block_tokens"]) == ("recorded", 60, 512)
    assert document["runs"] == 4
    assert 0 < trace["policies"][0]["figures"]["hit_share"]["mean"] <= trace["bounds"]["pooled_share"] + 0.01


def test_several_processes_find_the_same(tmp_path: Path) -> None:
    """Who computes a run makes no difference to it."""
    path = str(mooncake(tmp_path))
    alone, together = (
        json.loads(replay(path, "--json", "--seeds", "2", "--processes", count).stdout)["traces"][0]["policies"]
        for count in ("1", "3")
    )

    assert alone == together


def test_a_report_is_written(tmp_path: Path) -> None:
    """Where it was asked for, and the table tells where."""
    answer = replay(*SMALL, "--capacity-curve", "0.5,1", "--html", "report.html", folder=tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")

    assert answer.returncode == 0, answer.stderr
    assert "report.html" in answer.stdout
    assert page.startswith("<!doctype html>")
    assert page.rstrip().endswith("</html>")
    assert "Goodput by rate" in page


def test_a_plan_says_how_many(tmp_path: Path) -> None:
    """For a goal that a few workers reach."""
    answer = replay(
        str(mooncake(tmp_path)), "--plan", "--slo-ttft", "1", "--workers-max", "16", "--policies", "kv", "--seeds", "1",
        "--processes", "1", "--json",
    )  # fmt: skip
    (row,) = json.loads(answer.stdout)["traces"][0]["plan"]

    assert answer.returncode == 0, answer.stderr
    assert 1 <= row["workers"] <= 16
    assert row["goodput"] >= 0.99


def test_a_worker_is_measured() -> None:
    """Without traffic the rates are all that was asked for. What a busy machine spoils is measured again."""
    with engine_process("--prefill-tokens-per-second", "8000", "--blocks", "1000", "--context-tokens", "2400") as (
        _,
        ready,
    ):
        deadline = time.monotonic() + DEADLINE_SECONDS
        answer = replay("--calibrate", ready["url"], "--json")
        while answer.returncode == 1 and time.monotonic() < deadline:
            answer = replay("--calibrate", ready["url"], "--json")

    assert answer.returncode == 0, answer.stderr
    document = json.loads(answer.stdout)
    assert document["rates"]["cache_tokens"] == 16_000
    assert document["rates"]["prefill_tokens_per_second"] > 0


def test_help_teaches() -> None:
    """What to try, how to read the table, and what exit codes mean."""
    answer = replay("--help")

    assert answer.returncode == 0
    for words in ("try it:", "reading the table:", "Exit codes:", "--synthetic", "--plan", "--calibrate"):
        assert words in answer.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "replay needs traffic: name a trace file, or try --synthetic multi-turn"),
        (["absent.jsonl"], "cannot read absent.jsonl: No such file or directory"),
        (["--synthetic", "chat"], "synthetic trace 'chat' is unknown; known: shared-prompt"),
        (["--synthetic", "uniform", "--policies", "best"], "routing policy 'best' is unknown; known: kv"),
        (["--synthetic", "uniform", "--policies", ","], "--policies names none"),
        (["--synthetic", "uniform", "--workers", "0"], "--workers: must be between 1 and 1024, got 0"),
        (["--synthetic", "uniform", "--event-loss", "2"], "--event-loss: must be at least 0 and at most 1, got 2"),
        (["--synthetic", "uniform", "--rate-scale", "nan"], "--rate-scale: must be above 0"),
        (["--synthetic", "uniform", "--capacity-curve", "a,b"], "--capacity-curve 'a,b' is not a list of numbers"),
        (["--synthetic", "uniform", "--capacity-curve", "0,1"], "--capacity-curve '0,1': at most 64 numbers above 0"),
        (
            ["--synthetic", "uniform", "--running-max", "9000"],
            "--running-max 9000 must be below --step-tokens-max 8192",
        ),
        (["--synthetic", "uniform", "--cache-tokens", "100"], "needs"),
        (["--synthetic", "uniform", "--wrokers", "2"], "replay: unknown argument --wrokers; did you mean --workers?"),
        (["--calibrate", "worker"], "--calibrate 'worker' must be like http://HOST:PORT"),
    ],
)
def test_wrong_calls_end_with_one_line(arguments: list[str], said: str, tmp_path: Path) -> None:
    """Exit code 2, the flag and the limit, and no traceback."""
    answer = replay(*arguments, folder=tmp_path)

    assert answer.returncode == 2
    assert said in answer.stderr
    assert (answer.stderr.count("\n"), answer.stdout) == (1, "")


def test_a_malformed_trace_ends_with_one_line(tmp_path: Path) -> None:
    """Exit code 1: the call was right, the file is not."""
    path = mooncake(tmp_path)
    path.write_text(path.read_text() + '{"timestamp": 1, "input_length": 5}\n')
    answer = replay("recorded.jsonl", folder=tmp_path)

    assert answer.returncode == 1
    assert answer.stderr == ("kvrouter: recorded.jsonl:61: output_length is missing; a whole number is needed\n")


def test_a_report_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    """Before the work, in one line."""
    for name, problem in (("absent/report.html", "No such file or directory"), (".", "Is a directory")):
        answer = replay(*LONG, "--html", name, folder=tmp_path)

        assert answer.returncode == 2
        assert answer.stderr == f"kvrouter: --html: cannot write {name}: {problem}\n"


def test_a_trace_may_come_through_a_pipe(tmp_path: Path) -> None:
    """As it comes out of another program, packed or not."""
    packed = gzip.compress(mooncake(tmp_path).read_bytes())

    answer = subprocess.run(
        [sys.executable, "-m", "kvrouter", "replay", "-", "--seeds", "1", "--policies", "kv", "--json"],
        input=packed,
        capture_output=True,
        check=True,
        cwd=tmp_path,
        timeout=120,
    )

    assert json.loads(answer.stdout)["traces"][0]["name"] == "standard input"


LONG = ("--synthetic", "uniform:requests=2000", "--seeds", "1000", "--processes", "2", "--policies", "kv")


@contextmanager
def long_replay() -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """Start more work than anybody waits for; gives the command and one process that simulates for it."""
    command = [sys.executable, "-m", "kvrouter", "replay", *LONG]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process, _simulating(process.pid)
        finally:
            process.kill()


def _simulating(pid: int) -> psutil.Process:
    """Wait for a child that has begun to simulate: it takes processor time."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        for child in psutil.Process(pid).children():
            if "spawn_main" in " ".join(child.cmdline()) and child.cpu_times().user > 0.5:
                return child
        time.sleep(0.05)
    raise AssertionError("nobody simulates")


def test_an_interrupt_ends_it_and_its_processes() -> None:
    """Exit code 130 and nothing said, long before all is done."""
    with long_replay() as (process, child):
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=DEADLINE_SECONDS)

        assert (process.returncode, out, err) == (130, "", "")
        assert not child.is_running()


def test_a_process_that_is_ended_from_outside_is_said() -> None:
    """As the system does when memory is short."""
    with long_replay() as (process, child):
        child.kill()
        out, err = process.communicate(timeout=DEADLINE_SECONDS)

    assert (process.returncode, out) == (1, "")
    assert "if memory is short, use fewer with --processes" in err
    assert err.count("\n") == 1
