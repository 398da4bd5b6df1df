"""`kvrouter events stats` shows a running router's sources; the command is a real process, and so is the router."""

import json
import subprocess
import sys

import httpx
import pytest

from kvrouter.errors import KvrouterError
from kvrouter.events_cli import stats
from kvrouter.events_cli.stats import Rates
from tests.service.processes import Processes, eventually, raw_server


def events_stats(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    command = [sys.executable, "-m", "kvrouter", "events", "stats", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_live_source_has_a_line_and_the_exit_code_is_0(processes: Processes) -> None:
    """What an operator asks first: does anything come, and is all of it there?"""
    engine = processes.engine()
    router = processes.router("--worker", f"{engine.spec},id=one", workers=1)
    model = httpx.get(f"{engine.url}/v1/models", timeout=120).json()["data"][0]["id"]
    prompt = {"model": model, "prompt": list(range(64)), "max_tokens": 1}
    httpx.post(f"{engine.url}/v1/completions", json=prompt, timeout=120).raise_for_status()
    eventually(lambda: router.get("/sources")[0]["applied_batches"] > 0)

    shown = events_stats("--url", router.url, "--seconds", "0.1")
    read = events_stats("--url", router.url, "--seconds", "0.1", "--json")

    head, line = shown.stdout.splitlines()
    assert (shown.returncode, read.returncode) == (0, 0), shown.stderr + read.stderr
    assert head.split()[:4] == ["worker", "rank", "transport", "state"]
    assert line.split()[:4] == ["one", "0", "zmq", "live"]
    assert json.loads(read.stdout)[0]["batches_per_second"] == 0.0


def test_a_reader_that_went_away_ends_the_watch_quietly(processes: Processes) -> None:
    """`kvrouter events stats --watch | head -1`."""
    router = processes.router()
    command = [sys.executable, "-m", "kvrouter", "events", "stats", "--url", router.url, "--seconds", "0.05", "--watch"]

    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as watching:
        assert watching.stdout is not None
        assert watching.stderr is not None
        watching.stdout.readline()
        watching.stdout.close()
        errors = watching.stderr.read()
        code = watching.wait(60)

    assert (code, errors) == (0, b"")


def test_a_source_that_is_not_live_makes_the_exit_code_1(processes: Processes) -> None:
    """For scripts that wait until a fleet is heard."""
    router = processes.router("--worker", "http://127.0.0.1:9,events=tcp://127.0.0.1:9,id=gone")

    shown = events_stats("--url", router.url, "--seconds", "0.1")

    assert shown.returncode == 1
    assert "predicted" in shown.stdout


def test_a_router_without_workers_is_said_to_have_none(processes: Processes) -> None:
    """An empty table explains nothing."""
    router = processes.router()

    shown = events_stats("--url", router.url, "--seconds", "0.1")

    assert shown.stdout == "no sources: the router knows no workers\n"


def test_who_needs_a_key_is_told_so(processes: Processes) -> None:
    """The admin API of a router with keys answers nobody else."""
    router = processes.router("--admin-key", "operator", "--api-key", "client")

    refused = events_stats("--url", router.url)
    allowed = events_stats("--url", router.url, "--api-key", "operator", "--seconds", "0.1")

    assert refused.returncode == 1
    assert "--api-key" in refused.stderr
    assert allowed.returncode == 0


@pytest.mark.parametrize("answer", [b"[1]", b"{}", b"\xff", b'{"error": "x"}'])
def test_something_else_at_that_address_is_called_so(answer: bytes) -> None:
    """A wrong port is the commonest mistake."""
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(answer)

    with raw_server(head + answer) as port, pytest.raises(KvrouterError, match="is it a kvrouter"):
        stats._ask(f"http://127.0.0.1:{port}/sources", None)


def test_nobody_at_that_address_is_one_sentence() -> None:
    """And no traceback."""
    missed = events_stats("--url", "http://127.0.0.1:9")

    assert missed.returncode == 1
    assert missed.stderr.count("\n") == 1
    assert "is the router running there?" in missed.stderr


@pytest.mark.parametrize("wrong", [("--url", "127.0.0.1:8080"), ("--seconds", "0"), ("--seconds", "nan")])
def test_a_wrong_call_ends_with_2(wrong: tuple[str, str]) -> None:
    """It names the flag."""
    refused = events_stats(*wrong)

    assert refused.returncode == 2
    assert wrong[0] in refused.stderr


def test_rates_are_taken_per_source_and_forget_restarts() -> None:
    """A router that was restarted counts from 0 again, which is no negative rate."""
    rates = Rates()
    one, two = {"worker_id": "a", "rank": 0}, {"worker_id": "a", "rank": 1}
    rates.rows([{**one, "applied_batches": 10}, {**two, "applied_batches": 10}], now=1.0)

    later = rates.rows([{**one, "applied_batches": 40}, {**two, "applied_batches": 3}], now=3.0)

    assert [row["batches_per_second"] for row in later] == [15.0, None]
