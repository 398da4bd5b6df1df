"""When workers are asked, what counts as a good answer, and that nothing about it piles up."""

import asyncio
import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from kvrouter.service.health import HealthMonitor
from kvrouter.service.proxy import Response, UpstreamError
from kvrouter.service.workers import Worker
from tests.service.inprocess import InProcess

MODELS = {"object": "list", "data": [{"id": "base"}, {"id": "adapter", "parent": "base"}]}
REFUSED = UpstreamError("cannot connect: Connection refused", outcome="connect_failed")


class Workers:
    """Answers checks as told, and counts them."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    async def __call__(self, worker: Worker, path: str, *, timeout_seconds: float, max_bytes: int) -> Response:
        """Give the answer for a path: an exception, a status, or a status with a body."""
        self.asked.append(path)
        answer = self.answers[path]
        if isinstance(answer, Exception):
            raise answer
        status, body = answer if isinstance(answer, tuple) else (answer, b"")
        return Response(status, [], body if isinstance(body, bytes) else json.dumps(body).encode())


def _watch(service: InProcess, workers: Workers, until: Callable[[], bool], interval: float = 0.01) -> None:
    """Run the monitor on real time until something is so."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        service.service.registry.check_due = asyncio.Event()
        monitor = HealthMonitor(
            service.service.registry,
            workers,
            interval_seconds=interval,
            timeout_seconds=30,
            clock=loop.time,
            jitter=random.Random(1),
        )
        for worker in service.service.registry:
            worker.next_check_at = 0.0
        task = asyncio.create_task(monitor.run())
        async with asyncio.timeout(60):
            while not until():
                await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


@pytest.fixture
def service() -> InProcess:
    """One worker, not reached yet."""
    service = InProcess()
    service.add(healthy=False, url="http://h:1")
    return service


def test_a_worker_tells_its_models_and_adapters(service: InProcess) -> None:
    """The base model and every LoRA adapter can be asked for."""
    (worker,) = service.service.registry

    _watch(service, Workers({"/health": 200, "/v1/models": (200, MODELS)}), lambda: worker.health == "ready")

    assert worker.models == ("base", "adapter")
    assert service.service.views.current().parents == {"adapter": "base"}


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ({"/health": REFUSED}, "Connection refused"),
        ({"/health": 503}, "GET /health answered 503"),
        ({"/health": 500}, "GET /health answered 500"),
        ({"/health": 302}, "GET /health answered 302"),
        ({"/health": 200, "/v1/models": REFUSED}, "Connection refused"),
        ({"/health": 404, "/v1/models": 404}, "GET /v1/models 404"),
    ],
)
def test_a_bad_answer_is_a_reason(service: InProcess, answers: dict[str, Any], says: str) -> None:
    """Whatever it was, it can be read in the worker's record."""
    (worker,) = service.service.registry

    _watch(service, Workers(answers), lambda: worker.failures_in_row >= 2)

    assert says in worker.reasons()[-1]


@pytest.mark.parametrize(
    "body",
    [
        b"nonsense",
        b"[]",
        b'{"data": 5}',
        b'{"data": [5, {"id": 7}]}',
        b'{"data": ' + b"[" * 100_000,
        b'{"data": [{"id": "deep", "x": ' + b"[" * 900 + b"]" * 900 + b"}]}",
        b'{"data": [{"id": "half a character \\ud800"}]}',
        b'{"data": [{"id": "\xff"}]}',
        b'{"data": [{"id": ""}, {"id": "' + b"x" * 1000 + b'"}]}',
    ],
)
def test_an_unreadable_list_of_models_is_no_list(service: InProcess, body: bytes) -> None:
    """The worker lives, but nobody knows what it serves."""
    (worker,) = service.service.registry

    _watch(service, Workers({"/health": 200, "/v1/models": (200, body)}), lambda: worker.health == "ready")

    assert worker.models == ()
    assert "no model known yet" in worker.reasons()[0]


def test_one_entry_that_cannot_be_told_on_harms_no_other(service: InProcess) -> None:
    """Readable entries are served, and everybody can be told of them."""
    (worker,) = service.service.registry
    deep = b'{"id": "deep", "x": ' + b"[" * 900 + b"]" * 900 + b"}"
    body = b'{"data": [' + deep + b', {"id": "good", "created": 1' + b"0" * 40 + b"}]}"

    _watch(service, Workers({"/health": 200, "/v1/models": (200, body)}), lambda: worker.health == "ready")

    assert service.call("GET", "/v1/models")[1]["data"] == [{"id": "good", "created": 10**40}]
    assert service.call("GET", "/readyz")[1]["models"]["good"]["schedulable_workers"] == 1


def test_a_check_that_fails_by_a_bug_is_a_failed_check(service: InProcess) -> None:
    """The other workers are checked on, and the next answer counts again."""
    (worker,) = service.service.registry
    workers = Workers({"/health": ZeroDivisionError("bug"), "/v1/models": (200, MODELS)})
    reasons = []

    def repaired() -> bool:
        if worker.failures_in_row:
            reasons.append(worker.reasons()[-1])
            workers.answers["/health"] = 200
        return worker.health == "ready"

    _watch(service, workers, repaired)

    assert "the check failed: ZeroDivisionError: bug" in reasons[0]


def test_an_engine_without_a_health_route_is_judged_by_its_models(service: InProcess) -> None:
    """Not every OpenAI server has `/health`."""
    (worker,) = service.service.registry

    _watch(service, Workers({"/health": 404, "/v1/models": (200, MODELS)}), lambda: worker.lifecycle == "schedulable")

    assert worker.health == "ready"


def test_one_check_at_a_time_however_slow(service: InProcess) -> None:
    """A worker that does not answer is not asked again meanwhile."""
    running, most = 0, 0

    class Slow(Workers):
        async def __call__(self, worker: Worker, path: str, *, timeout_seconds: float, max_bytes: int) -> Response:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.005)
            running -= 1
            return await super().__call__(worker, path, timeout_seconds=timeout_seconds, max_bytes=max_bytes)

    workers = Slow({"/health": 200, "/v1/models": (200, MODELS)})
    _watch(service, workers, lambda: len(workers.asked) > 10, interval=0.001)

    assert most == 1


def test_an_answer_about_a_removed_worker_is_forgotten(service: InProcess) -> None:
    """Whoever was removed while it was asked does not come back by its answer."""
    registry = service.service.registry
    (worker,) = registry

    class Removing(Workers):
        async def __call__(self, worker: Worker, path: str, *, timeout_seconds: float, max_bytes: int) -> Response:
            if path == "/v1/models":
                registry.remove("h:1", now=0.0)
            return await super().__call__(worker, path, timeout_seconds=timeout_seconds, max_bytes=max_bytes)

    workers = Removing({"/health": 200, "/v1/models": (200, MODELS)})
    _watch(service, workers, lambda: len(workers.asked) == 2 and not len(registry))

    assert worker.health == "starting"
    assert len(registry) == 0


def test_a_worker_added_later_is_asked_at_once(service: InProcess) -> None:
    """The monitor does not sleep through a registration."""
    registry = service.service.registry
    workers = Workers({"/health": 200, "/v1/models": (200, MODELS)})
    added: list[Worker] = []

    def later() -> bool:
        if workers.asked and not added:
            added.append(service.add(healthy=False, url="http://h:2"))
            added[0].next_check_at = 0.0
        return bool(added) and added[0].health == "ready"

    _watch(service, workers, later, interval=3600)

    assert len(registry) == 2
