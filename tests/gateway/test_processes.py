"""Several processes behind one port: together they are one gateway (A-431, A-432)."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from tests.gateway.scene import INFER, GatewayProcess, ScriptedProcess, gateway, infer
from tests.servers import NatsServer
from tests.service.processes import eventually

REQUESTS = 24


@pytest.fixture(scope="module")
def three(
    server: NatsServer, service: ScriptedProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    """A gateway of three processes."""
    with gateway(tmp_path_factory.mktemp("three"), server, "--processes", "3") as running:
        yield running


@pytest.fixture
def two(server: NatsServer, tmp_path: Path) -> Iterator[GatewayProcess]:
    """A gateway of two processes that a test may end."""
    with gateway(tmp_path, server, "--processes", "2") as running:
        yield running


def ask_anew(of: GatewayProcess) -> int:
    """Ask over a new connection, which any of the processes may take."""
    return httpx.post(of.url + INFER, json=infer("echo"), timeout=60).status_code


def children(of: GatewayProcess) -> list[int]:
    """Its processes."""
    return [child.pid for child in psutil.Process(of.pid).children()]


def test_whoever_is_asked_answers_for_all(three: GatewayProcess) -> None:
    """A-425, A-432: the figures of a scrape are those of all processes."""
    labels = {"route": "ai/llm/infer", "code": "200"}
    before = three.metric("gateway_request_latency_seconds_count", **labels)

    assert {ask_anew(three) for _ in range(REQUESTS)} == {200}

    assert three.metric("gateway_request_latency_seconds_count", **labels) == before + REQUESTS
    assert three.metric("gateway_processes_read") == three.metric("gateway_processes") == 3
    assert len(children(three)) == 3


def test_a_key_means_one_request_whichever_process_is_asked(three: GatewayProcess, service: ScriptedProcess) -> None:
    """A-406: each key is looked after by one of them, so a replay and a conflict are the same from all."""
    body = infer("count", "keyed") | {"idempotency_key": "keyed"}
    answers = [httpx.post(three.url + INFER, json=body, timeout=60) for _ in range(REQUESTS)]
    conflicts = [httpx.post(three.url + INFER, json=body | {"model_id": "echo"}, timeout=60) for _ in range(6)]

    assert {answer.json()["output"]["text"] for answer in answers} == {"1"}
    assert [answer.headers.get("idempotent-replayed") for answer in answers[1:]] == ["true"] * (REQUESTS - 1)
    assert {answer.status_code for answer in conflicts} == {409}


def test_requests_under_one_key_at_a_time_are_one(three: GatewayProcess, service: ScriptedProcess) -> None:
    """A-406: over several processes too."""
    body = infer("count:wait", "at-once") | {"idempotency_key": "at-once"}
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(httpx.post, three.url + INFER, json=body, timeout=60) for _ in range(8)]
        three.eventually_metric("gateway_idempotency_total", 7, event="joined")
        service.go("at-once")
        answers = [each.result() for each in asked]

    assert {answer.json()["output"]["text"] for answer in answers} == {"1"}


def test_one_that_dies_is_started_again_and_nobody_is_refused(three: GatewayProcess) -> None:
    """Its socket is held meanwhile, so connections wait for the next one."""
    victim = children(three)[0]

    os.kill(victim, signal.SIGKILL)
    eventually(lambda: victim not in children(three) and len(children(three)) == 3)
    answers = {ask_anew(three) for _ in range(REQUESTS)}

    assert answers == {200}
    died = three.event("process_died")
    assert died["code"] == -signal.SIGKILL
    eventually(lambda: three.metric("gateway_processes_read") == 3)


def test_a_stop_ends_them_all(two: GatewayProcess) -> None:
    """With one exit code, 0."""
    processes = children(two)

    two.signal(signal.SIGTERM)

    assert two.wait() == 0
    assert not any(psutil.pid_exists(pid) for pid in processes)


def test_they_do_not_outlive_the_one_that_looks_after_them(two: GatewayProcess) -> None:
    """However that one ends."""
    processes = [psutil.Process(pid) for pid in children(two)]

    two.signal(signal.SIGKILL)

    eventually(lambda: not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in processes))


def test_a_port_that_is_taken_is_refused(three: GatewayProcess, server: NatsServer, tmp_path: Path) -> None:
    """Sockets that share a port would not notice another gateway on it."""
    port = three.url.rpartition(":")[2]

    with pytest.raises(AssertionError, match=f"cannot listen on 127.0.0.1:{port}"):
        GatewayProcess(tmp_path, server.url, "--processes", "2", "--port", port)
