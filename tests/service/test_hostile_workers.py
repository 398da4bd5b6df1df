"""Workers whose answers are meant to break whoever reads them: the router and everybody else go on."""

import subprocess
import sys
from collections.abc import Callable

import httpx
import pytest

from tests.service.processes import Processes, eventually, raw_server

QUICK = ("--health-interval-seconds", "0.2", "--health-timeout-seconds", "0.5", "--health-failures", "2")
DEEP = b'{"data": ' + b"[" * 100_000
HALF_CHARACTER = b'{"data": [{"id": "\\ud800"}]}'


def _liar(models: bytes) -> Callable[[bytes], bytes]:
    """Answer as a healthy worker whose `GET /v1/models` gives these bytes."""
    answers = {b"/health": b"{}", b"/v1/models": models}

    def answer(asked: bytes) -> bytes:
        body = answers.get(asked.partition(b" ")[2].partition(b" ")[0], b"")
        return b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body

    return answer


@pytest.mark.parametrize("models", [DEEP, HALF_CHARACTER], ids=["deep", "half-character"])
def test_a_hostile_list_of_models_harms_only_its_worker(processes: Processes, models: bytes) -> None:
    """The process lives, the good worker serves, and what is told of the fleet can still be told."""
    engine = processes.engine()
    with raw_server(_liar(models)) as port:
        router = processes.router("--worker", f"{engine.spec},id=good", *QUICK, workers=1)
        router.post("/workers", {"worker_id": "liar", "url": f"http://127.0.0.1:{port}"})
        eventually(lambda: router.get("/workers/liar")["health"]["state"] == "ready")

        served = router.post("/v1/completions", {"prompt": [1, 2, 3], "max_tokens": 1})
        told = {path: httpx.get(router.url + path).status_code for path in ("/v1/models", "/readyz", "/workers")}

        assert router.running
        assert (served.status_code, served.headers["x-kvrouter-worker"]) == (200, "good")
        assert set(told.values()) == {200}, told
        assert router.get("/workers/liar")["lifecycle"] == "incomplete"


def test_two_workers_with_one_event_endpoint_are_a_wrong_call() -> None:
    """As two with one id are: one line that names it, and exit 2."""
    workers = [f"--worker=http://127.0.0.1:{port},id=w{port},events=tcp://127.0.0.1:9000" for port in (1, 2)]
    command = [sys.executable, "-m", "kvrouter", "serve", "--port=0", *workers]

    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    assert ended.returncode == 2
    assert "worker 'w2': event endpoint tcp://127.0.0.1:9000 already belongs to worker w1" in ended.stderr
