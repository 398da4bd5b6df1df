"""Which service the cases run against: one that is given by its URL, else a `kvrouter serve` of our own."""

import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from typing import Any

import pytest

from tests.conformance.engines import BLOCK, WireEngine
from tests.conformance.services import KINDS, Held, IndexService
from tests.service.processes import Processes

SETTLE_SECONDS = float(os.environ.get("INDEX_SERVICE_SECONDS") or 60.0)
"""How long a service may take to say what is so: a lost tail is found by asking, not at once."""

_WORKERS = itertools.count(1 + time.time_ns() % 10**9 * 1000)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take the service from the command line; the variables INDEX_SERVICE and INDEX_SERVICE_KIND say the same."""
    parser.addoption("--service", help="URL of an index service; without it a kvrouter is started")
    parser.addoption("--service-kind", choices=sorted(KINDS), help="whose shapes it speaks (default: kvrouter)")


@pytest.fixture(scope="session")
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[IndexService]:
    """The service that is judged."""
    url = request.config.getoption("--service", None) or os.environ.get("INDEX_SERVICE")
    kind = request.config.getoption("--service-kind", None) or os.environ.get("INDEX_SERVICE_KIND") or "kvrouter"
    processes = Processes(tmp_path_factory.mktemp("conformance"))
    try:
        with closing(KINDS[kind](url) if url else KINDS["kvrouter"](processes.router().url)) as service:
            yield service
    finally:
        processes.stop()


class Worker:
    """A registered engine, and what the service says of it."""

    def __init__(self, service: IndexService, number: int, engine: WireEngine) -> None:
        self.service, self.number, self.engine = service, number, engine

    def register(self) -> None:
        """Let the service follow, and wait until it has subscribed."""
        replay = self.engine.replay_endpoint
        self.service.register(self.number, self.engine.endpoint, replay=replay, block_size=BLOCK)
        self.is_followed()

    def is_followed(self) -> None:
        """Wait until the service has subscribed; its replay requests are answered meanwhile."""
        self._until(lambda: self.engine.subscribers > 0, "nobody subscribed")
        quiet = time.monotonic() + 0.3
        self._until(lambda: time.monotonic() > quiet, "")

    def held(self, tokens: Sequence[int]) -> Held:
        """What the service says now."""
        return self.service.held(tokens).get(self.number, Held())

    def comes_to_hold(self, tokens: Sequence[int], **expected: int) -> None:
        """Wait until the service says so, in blocks."""
        last: dict[str, int] = {}

        def agrees() -> bool:
            held = self.held(tokens)
            last.update({name: getattr(held, name) // BLOCK for name in expected})
            return last == expected

        try:
            self._until(agrees, "")
        except AssertionError:
            raise AssertionError(f"expected {expected}, and the service says {last}") from None

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + SETTLE_SECONDS
        while not condition():
            self.engine.serve()
            assert time.monotonic() < deadline, what
            time.sleep(0.01)


@pytest.fixture
def new_worker(service: IndexService) -> Iterator[Callable[..., Worker]]:
    """Make engines that are registered at once, unless `registered` is false; all are gone after the test."""
    with ExitStack() as stack:

        def new(*, registered: bool = True, **options: Any) -> Worker:
            worker = Worker(service, next(_WORKERS), stack.enter_context(WireEngine(**options)))
            if registered:
                worker.register()
            stack.callback(unregister, worker)
            return worker

        yield new


def unregister(worker: Worker) -> None:
    """Leave nothing behind, also where the case has unregistered it itself."""
    try:
        worker.service.unregister(worker.number)
    except Exception:  # noqa: BLE001 - it is gone, or was never there
        return
