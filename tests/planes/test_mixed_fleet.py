"""Workers over NATS, HTTP and TCP in one deployment: real processes, a real broker, found by discovery alone."""

import json
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.planes.processes import PlaneProcesses
from tests.servers import NatsServer, nats_server
from tests.service.processes import Engine, Router, eventually

PROMPT = "".join(f"A sentence, number {number}, that everybody begins with. " for number in range(40))


class Deployment:
    """Two engines, a worker for each way in front of them, and a router that knows a folder only."""

    def __init__(self, processes: PlaneProcesses, nats: NatsServer) -> None:
        self.processes, self.nats = processes, nats
        self.engines = [processes.engine("--decode-seconds", "0.002"), processes.engine("--decode-seconds", "0.002")]
        first, second = self.engines
        self.router = processes.plane_router("--nats-server", nats.url, "--policy", "kv")
        self.workers = {
            "tcp": processes.worker(first.spec, "--transport", "tcp"),
            "nats": processes.worker(second.spec, "--transport", "nats", "--nats-server", nats.url),
            "http": processes.worker(first.url, "--transport", "http"),
            "http+tcp": processes.worker(second.url, "--transport", "http", "--answers-home"),
        }
        self._slow: Engine | None = None
        eventually(lambda: self.router.schedulable(4))

    @property
    def slow(self) -> Engine:
        """An engine of another model, whose answers take their time."""
        if self._slow is None:
            self._slow = self.processes.engine("--decode-seconds", "0.05", "--model", "slow")
        return self._slow

    def ids(self) -> dict[str, str]:
        """How each worker is reached, by its id."""
        told = self.router.get("/request-plane")["workers"]
        return {worker_id: next(iter(ways)) for worker_id, ways in told.items()}

    def metrics(self) -> dict[str, float]:
        """The router's figures, by name and labels."""
        lines = httpx.get(f"{self.router.url}/metrics", timeout=60).text.splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A deployment for all tests of this module."""
    processes = PlaneProcesses(tmp_path_factory.mktemp("fleet"))
    with nats_server(tmp_path_factory.mktemp("nats")) as nats:
        try:
            yield Deployment(processes, nats)
        finally:
            processes.stop()


def test_every_worker_is_found_and_asked_its_own_way(deployment: Deployment) -> None:
    """A-119, A-121, A-147, A-161, A-201, A-231: mixed ways in one deployment, whole and streamed answers over each."""
    ways, router = deployment.ids(), deployment.router

    for worker_id in ways:
        pin = {"x-kvrouter-worker": worker_id}
        answer = router.post("/v1/chat/completions", chat("something new"), headers=pin)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"]["content"]
        assert answer.headers["x-kvrouter-worker"] == worker_id
        events = streamed(router, chat("and streamed", stream=True), headers=pin)
        assert events[-1] == "[DONE]"
        assert len(events) > 2

    assert sorted(ways.values()) == ["http", "http+tcp", "nats", "tcp"]
    figures = deployment.metrics()
    for transport in ("tcp", "http", "nats"):
        assert figures[f'transport_requests_total{{plane="request",transport="{transport}"}}'] > 0
    workers = {worker["worker_id"]: worker for worker in router.get("/workers")}
    assert all(workers[worker_id]["requests"]["outcomes"]["ok"] > 0 for worker_id in ways)


def test_prompts_go_where_their_prefix_is(deployment: Deployment) -> None:
    """A-124: `kv` is the router's own decision; events come straight from the engine that the record names."""
    router = deployment.router

    def together() -> bool:
        """Two in a row find the prefix, and at the same place."""
        answers = [router.post("/v1/chat/completions", chat(f"{PROMPT} {number}")) for number in range(2)]
        overlaps = [int(answer.headers["x-kvrouter-overlap-tokens"]) for answer in answers]
        return min(overlaps) > 0 and len({answer.headers["x-kvrouter-worker"] for answer in answers}) == 1

    eventually(together)


def test_what_an_engine_says_is_what_the_client_gets(deployment: Deployment) -> None:
    """A-123: answers pass byte for byte, refusals of the engine too."""
    wrong = {"model": deployment.engines[0].ready["model"], "messages": "none"}

    direct = httpx.post(f"{deployment.engines[0].url}/v1/chat/completions", json=wrong, timeout=60)
    routed = deployment.router.post("/v1/chat/completions", wrong)

    assert routed.status_code == direct.status_code == 400
    assert routed.json().keys() == direct.json().keys()


def test_figures_of_planes_and_discovery_stand_beside_the_routers_own(deployment: Deployment) -> None:
    """A-236, A-251, A-257, A-261, B.16: on /metrics of router and worker, under the names of the seeds."""
    home = deployment.workers["http+tcp"]
    assert deployment.router.post("/v1/chat/completions", chat("x")).status_code == 200

    figures, theirs = deployment.metrics(), home.figures()

    assert figures["discovery_registrations_total"] >= 4
    assert figures["discovery_discoveries_total"] == 1
    assert figures["discovery_cache_hits_total"] > 0
    assert figures['discovery_store_latency_seconds_count{operation="watch"}'] > 0
    for name in ("queue", "send", "roundtrip_ttft"):
        assert figures[f"request_plane_{name}_seconds_count"] > 0
    assert "request_plane_inflight" in figures
    assert theirs['work_handler_requests_total{endpoint="generate"}'] > 0
    assert theirs["discovery_registrations_total"] == 2  # what it serves, and `load_metrics`
    assert any(name.startswith("tcp_pool_connections_created_total") for name in theirs)


def test_a_client_that_leaves_ends_the_engines_work(deployment: Deployment) -> None:
    """A-307: a kill travels over whatever plane to the engine behind the worker."""
    router = deployment.router
    body = chat("tell me everything", stream=True, max_tokens=30_000, ignore_eos=True)
    with httpx.stream("POST", f"{router.url}/v1/chat/completions", json=body, timeout=60) as answer:
        next(answer.iter_lines())
    eventually(lambda: not any(running(engine) for engine in deployment.engines))
    eventually(lambda: deployment.metrics()["kvrouter_active_requests"] <= 1)  # the scrape itself
    outcomes = [worker["requests"]["outcomes"] for worker in router.get("/workers")]
    assert sum(each.get("client_gone", 0) for each in outcomes) == 1


def test_a_worker_that_is_killed_is_not_missed(deployment: Deployment) -> None:
    """A-135, A-137, A-302: requests go elsewhere at once; its record ends with its lease."""
    router = deployment.router
    extra = deployment.processes.worker(deployment.engines[0].url, "--transport", "tcp")
    eventually(lambda: router.schedulable(5))

    extra.signal(signal.SIGKILL)
    for number in range(12):
        answer = router.post("/v1/chat/completions", chat(f"after its death {number}"))
        assert answer.status_code == 200, answer.text

    eventually(lambda: len(router.get("/workers")) == 4)


def test_a_worker_that_is_told_to_stop_finishes_first(deployment: Deployment) -> None:
    """A-164: SIGTERM takes the record away, the stream that runs is whole, the process ends with 0."""
    router = deployment.router
    leaving = deployment.processes.worker(deployment.slow.url, "--transport", "zmq")
    eventually(lambda: router.schedulable(5))
    body = {**chat("go on", stream=True, max_tokens=40, ignore_eos=True), "model": "slow"}

    with httpx.stream("POST", f"{router.url}/v1/chat/completions", json=body, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        leaving.signal(signal.SIGTERM)
        eventually(lambda: len(router.get("/workers")) == 4)
        rest = [line for line in lines if line]

    assert rest[-1] == "data: [DONE]"
    assert leaving.wait() == 0


def test_a_router_that_is_told_to_stop_finishes_first(deployment: Deployment) -> None:
    """A-164, A-384: streams over a plane are drained as any other. The last test here: nobody routes after it."""
    router = deployment.router
    deployment.processes.worker(deployment.slow.url, "--transport", "grpc")
    eventually(lambda: router.schedulable(5))
    body = {**chat("go on", stream=True, max_tokens=40, ignore_eos=True), "model": "slow"}

    with httpx.stream("POST", f"{router.url}/v1/chat/completions", json=body, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        router.signal(signal.SIGTERM)
        rest = [line for line in lines if line]

    assert rest[-1] == "data: [DONE]"
    assert router.wait() == 0
    assert router.errors.read_text() == ""
    assert not [line for line in router.lines() if line["level"] == "error"]


def chat(words: str, **members: Any) -> dict[str, Any]:
    """The body of a chat of a few tokens."""
    return {"messages": [{"role": "user", "content": words}], "model": "simulated", "max_tokens": 4, **members}


def streamed(router: Router, body: dict[str, Any], headers: dict[str, str] | None = None) -> list[str]:
    """The events of a streamed answer."""
    url = f"{router.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, headers=headers, timeout=60) as answer:
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert all(event == "[DONE]" or json.loads(event)["choices"] for event in events)
    return events


def running(engine: Engine) -> bool:
    """Whether an engine computes anything."""
    text = httpx.get(f"{engine.url}/metrics", timeout=60).text
    return any(
        line.startswith("vllm:num_requests_running") and float(line.rpartition(" ")[2]) for line in text.splitlines()
    )
