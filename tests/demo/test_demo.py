"""The demo as a user runs it: a real command, real processes, and nothing left behind however it ends."""

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx
import pytest

from kvrouter.cli import main
from tests.replay.serving import within_deadline

SHORT = ("--engines", "3", "--seconds", "5", "--sessions", "6")
END_SECONDS = 250


@contextmanager
def demo(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start the demo as a process."""
    command = [sys.executable, "-m", "kvrouter", "demo", *SHORT, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def addresses(process: subprocess.Popen[str], policy: str) -> tuple[str, list[str]]:
    """Read what the demo says until a fleet is up; return the addresses of router and engines."""
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(f"{policy}: router "):
            router, *engines = re.findall(r"http://\S+", line)
            return router, engines
    raise AssertionError("the demo ended before its fleet was up")


def gone(url: str) -> bool:
    """Whether nobody listens there any more."""
    parts = urlsplit(url)
    with socket.socket() as probe:
        return probe.connect_ex((parts.hostname or "", parts.port or 0)) != 0


def test_kv_finds_more_in_the_caches_than_round_robin() -> None:
    """One JSON object and nothing else on standard output; exit code 0."""
    with demo("--json") as process:
        output, _ = process.communicate(timeout=END_SECONDS)

    result = json.loads(output)
    wanted = {
        "cached_token_share",
        "ttft_mean_seconds",
        "ttft_p50_seconds",
        "ttft_p99_seconds",
        "requests_per_second",
        "requests",
    }
    assert process.returncode == 0
    assert result["round_robin"].keys() >= wanted
    assert result["kv"].keys() >= wanted
    assert result["kv"]["requests"] == result["round_robin"]["requests"] == result["workload"]["requests"]
    assert result["kv"]["prompt_tokens"] == result["round_robin"]["prompt_tokens"]
    assert result["kv"]["cached_token_share"] > result["round_robin"]["cached_token_share"]
    times = [result[policy]["ttft_mean_seconds"] for policy in ("round_robin", "kv")]
    assert result["speedup_ttft_mean"] == pytest.approx(
        times[0] / times[1], rel=0.01, abs=0.01
    )  # Which is faster, load decides.


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_demo_leaves_nothing_behind(number: signal.Signals, code: int) -> None:
    """In the middle of its requests."""
    with demo("--json") as process:
        router, engines = addresses(process, "round-robin")
        process.send_signal(number)
        output, _ = process.communicate(timeout=END_SECONDS)

    assert (process.returncode, output) == (code, "")
    assert all(gone(url) for url in (router, *engines))


def test_a_killed_demo_leaves_nothing_behind() -> None:
    """Nobody cleans up then; the processes notice by themselves."""
    with demo() as process:
        router, engines = addresses(process, "round-robin")
        process.kill()
        process.wait(END_SECONDS)

        within_deadline(lambda: all(gone(url) for url in (router, *engines)))


def test_an_engine_that_dies_fails_the_demo_with_its_last_words() -> None:
    """A comparison with holes would be none."""
    with demo() as process:
        _, engines = addresses(process, "round-robin")
        httpx.post(engines[1] + "/fault", json={"kind": "die"})
        output, errors = process.communicate(timeout=END_SECONDS)

    assert (process.returncode, output) == (1, "")
    assert "kvrouter: the engine 1 ended with 1" in errors
    assert "Traceback" not in errors


def test_a_kept_fleet_answers_until_it_is_told_to_stop() -> None:
    """Then it goes, and the demo ends well."""
    with demo("--keep", "--seconds", "1", "--sessions", "2") as process:
        router, _ = addresses(process, "kv")
        assert process.stderr is not None
        suggested = any("still running" in line for line in process.stderr)
        answer = httpx.post(router + "/v1/completions", json={"model": "simulated", "prompt": "hi", "max_tokens": 2})
        sources = httpx.get(router + "/sources").json()
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=END_SECONDS)

    assert suggested
    assert answer.json()["usage"]["completion_tokens"] == 2
    assert [source["state"] for source in sources] == ["live"] * 3
    assert process.returncode == 0
    assert "time to first token, p99" in output
    assert gone(router)


def test_wrong_arguments_are_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, and the bounds."""
    assert main(["demo", "--engines", "0"]) == 2
    assert "must be between 1 and 32" in capsys.readouterr().err
