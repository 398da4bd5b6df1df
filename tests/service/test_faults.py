"""Engines that die, come back, hang and talk nonsense: what clients notice, and what the router does about it."""

import json
import signal

import httpx
import pytest
import zmq

from tests.service.processes import Engine, Processes, Router, eventually, raw_server, stopped, until_cut

PROMPT = list(range(2000, 2200))
QUICK = ("--health-interval-seconds", "0.2", "--health-timeout-seconds", "0.5", "--health-failures", "2")


@pytest.fixture
def engines(processes: Processes) -> dict[str, Engine]:
    """Two engines, by the names that their workers have."""
    return {"a": processes.engine(), "b": processes.engine()}


@pytest.fixture
def router(processes: Processes, engines: dict[str, Engine]) -> Router:
    """A router that looks at its workers often."""
    flags = [each for name, engine in engines.items() for each in ("--worker", f"{engine.spec},id={name}")]
    return processes.router(*flags, *QUICK, workers=2)


def _complete(router: Router, prompt: list[int] | None = None) -> httpx.Response:
    return router.post("/v1/completions", {"model": "simulated", "prompt": prompt or PROMPT, "max_tokens": 4})


def _worker(router: Router, worker_id: str) -> dict[str, object]:
    record: dict[str, object] = router.get(f"/workers/{worker_id}")
    return record


def _blocks(router: Router, worker_id: str) -> int:
    return int(next(row["blocks"] for row in router.get("/sources") if row["worker_id"] == worker_id))


def test_an_engine_killed_in_mid_stream_ends_the_stream_with_an_error(
    router: Router, engines: dict[str, Engine]
) -> None:
    """The client is told in the stream, the next request goes elsewhere, and the dead worker's blocks go."""
    with httpx.stream(
        "POST",
        f"{router.url}/v1/completions",
        json={"prompt": PROMPT, "max_tokens": 2000, "ignore_eos": True, "stream": True},
        timeout=60,
    ) as stream:
        victim = stream.headers["x-kvrouter-worker"]
        lines = stream.iter_lines()
        next(lines)
        engines[victim].signal(signal.SIGKILL)
        last = until_cut(lines)[-1]

    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "worker_lost"
    after = _complete(router)
    assert after.status_code == 200
    assert after.headers["x-kvrouter-worker"] != victim
    eventually(lambda: _worker(router, victim)["lifecycle"] == "unschedulable")
    eventually(lambda: _blocks(router, victim) == 0)
    eventually(lambda: "refused" in str(_worker(router, victim)["not_schedulable_reasons"]))


def test_a_restarted_engine_is_used_again_with_an_empty_cache(
    router: Router, engines: dict[str, Engine], processes: Processes
) -> None:
    """Its new life is found by health checks and by its events; nothing of the old one is believed."""
    held = _complete(router).headers["x-kvrouter-worker"]
    eventually(lambda: _blocks(router, held) == 12)

    engines[held].signal(signal.SIGKILL)
    engines[held].wait()
    eventually(lambda: _worker(router, held)["lifecycle"] == "unschedulable")
    processes.again(engines[held])
    eventually(lambda: router.schedulable(2))

    eventually(lambda: _blocks(router, held) == 0)
    spread = {
        _complete(router, prompt=list(range(n, n + 40))).headers["x-kvrouter-worker"] for n in range(0, 4000, 500)
    }
    assert spread == {"a", "b"}
    eventually(lambda: _blocks(router, held) > 0)


def test_a_stalled_engine_gets_no_requests_and_keeps_its_blocks(router: Router, engines: dict[str, Engine]) -> None:
    """A process that stands still answers no health check, but its cache is still there when it goes on."""
    held = _complete(router).headers["x-kvrouter-worker"]
    eventually(lambda: _blocks(router, held) == 12)

    with stopped(engines[held]):
        eventually(lambda: _worker(router, held)["lifecycle"] == "unschedulable")
        elsewhere = _complete(router)
        assert _blocks(router, held) == 12

    assert elsewhere.status_code == 200
    assert elsewhere.headers["x-kvrouter-worker"] != held
    eventually(lambda: router.schedulable(2))
    assert _blocks(router, held) == 12


def test_a_refused_connection_is_retried_on_the_next_worker(router: Router, engines: dict[str, Engine]) -> None:
    """Between two health checks the client notices nothing, and the worker is left out at once."""
    held = _complete(router).headers["x-kvrouter-worker"]
    engines[held].signal(signal.SIGKILL)
    engines[held].wait()

    answer = _complete(router)

    assert answer.status_code == 200
    assert answer.headers["x-kvrouter-worker"] != held
    assert _worker(router, held)["lifecycle"] == "unschedulable"


def test_garbage_before_the_first_byte_is_retried_elsewhere(processes: Processes, engines: dict[str, Engine]) -> None:
    """A worker that does not speak HTTP never reaches a client."""
    with raw_server(b"\x00\x01 this is not HTTP \xff\r\n\r\n") as port:
        router = processes.router("--worker", f"{engines['a'].spec},id=a", *QUICK, "--policy", "round-robin", workers=1)
        router.post("/workers", {"worker_id": "nonsense", "url": f"http://127.0.0.1:{port}", "model": "simulated"})

        answers = [_complete(router).status_code for _ in range(4)]
        record = _worker(router, "nonsense")

    assert answers == [200] * 4
    assert record["lifecycle"] == "incomplete"
    assert "malformed" in str(record["not_schedulable_reasons"])


def test_garbage_events_are_counted_and_harm_nobody(processes: Processes, engines: dict[str, Engine]) -> None:
    """A publisher of nonsense shows in `/sources`; the other workers' events go on."""
    with zmq.Context() as context, context.socket(zmq.PUB) as publisher:
        port = publisher.bind_to_random_port("tcp://127.0.0.1")
        router = processes.router("--worker", f"{engines['a'].spec},id=a", *QUICK, workers=1)
        router.post("/workers", {"worker_id": "liar", "endpoint": "x", "kv_events_endpoint": f"tcp://127.0.0.1:{port}"})

        def quarantined() -> int:
            publisher.send_multipart([b"", (0).to_bytes(8, "big"), b"\xc1 nonsense"])
            publisher.send_multipart([b"nonsense"])
            rows = {row["worker_id"]: row for row in router.get("/sources")}
            return int(rows["liar"]["quarantined"])

        eventually(quarantined)
        _complete(router)

        eventually(lambda: _blocks(router, "a") == 12)


def test_an_overloaded_worker_is_not_punished(router: Router, engines: dict[str, Engine]) -> None:
    """503 from an engine is backpressure: the client gets it, the worker stays."""
    for engine in engines.values():
        httpx.post(f"{engine.url}/fault", json={"kind": "error", "status": 503, "requests": 1000})
    statuses = {_complete(router).status_code for _ in range(10)}
    for engine in engines.values():
        httpx.post(f"{engine.url}/fault", json={"kind": "none"})

    assert statuses == {503}
    assert router.schedulable(2)
    assert _complete(router).status_code == 200


def test_client_mistakes_never_count_against_a_worker(router: Router) -> None:
    """However many bad requests come, nobody is ejected."""
    for _ in range(20):
        assert router.post("/v1/completions", {"prompt": PROMPT, "max_tokens": -5}).status_code == 400

    assert router.schedulable(2)
    assert [record["health"]["state"] for record in router.get("/workers")] == ["ready", "ready"]
