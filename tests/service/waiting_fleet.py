"""A fleet whose requests may have to wait, without sockets, time moved by hand: what tests of admission stand on."""

import asyncio
from typing import Any

from kvrouter.service.admission import Admission
from kvrouter.service.proxy import Route
from kvrouter.settings import QueueSettings
from tests.service.inprocess import InProcess

TENANT = {"tenant_by": "header"}


class Fleet:
    """A service whose requests may have to wait, and the answers under way."""

    def __init__(self, workers: str = "a", **queue: Any) -> None:
        queue.setdefault("rank_requests_max", 1)
        self.service = InProcess(queue=QueueSettings(**queue))
        for name in workers:
            self.add(name)
        self.dispatcher = self.service.service.dispatcher
        self.asked: list[asyncio.Future[Route]] = []

    @property
    def admission(self) -> Admission:
        """The queue at work."""
        found = self.service.service.admission
        assert found is not None
        return found

    def add(self, name: str, model: str = "m", **fields: Any) -> None:
        """One more worker that is ready."""
        self.service.add(url=f"http://{name}:1", worker_id=name, model=model, block_size=16, **fields)

    def ask(
        self, tenant: str = "t", *, start: int = 0, tokens: int = 64, excluded: tuple[str, ...] = (), **hints: Any
    ) -> "Route | asyncio.Future[Route]":
        """Send a request; hints are headers, `model` and `priority` fields."""
        body: dict[str, Any] = {"model": "m", "prompt": list(range(start, start + tokens)), "max_tokens": 4}
        body |= {name: hints.pop(name) for name in ("model", "priority") if name in hints}
        headers = {"x-kvrouter-tenant": tenant, **{name.replace("_", "-"): str(value) for name, value in hints.items()}}
        request = self.service.request("POST", "/v1/completions", body, headers)
        found = self.dispatcher.route(request, excluded)
        assert isinstance(found, Route | asyncio.Future)
        return found

    def sent(self, *arguments: Any, **hints: Any) -> Route:
        """Send a request that need not wait."""
        found = self.ask(*arguments, **hints)
        assert isinstance(found, Route)
        return found

    def waiting(self, *arguments: Any, **hints: Any) -> "asyncio.Future[Route]":
        """Send a request that has to wait."""
        found = self.ask(*arguments, **hints)
        assert isinstance(found, asyncio.Future)
        assert not found.done()
        self.asked.append(found)
        return found

    def end(self, found: "Route | asyncio.Future[Route]") -> None:
        """The answer is whole."""
        self.dispatcher.finished(found if isinstance(found, Route) else found.result(), "ok", None)

    def later(self, seconds: float) -> None:
        """Let time pass, and what waits too long end."""
        self.service.clock.now += seconds
        self.admission.work()

    @property
    def active(self) -> int:
        """Requests booked on all ranks."""
        book = self.service.service.router.book
        return sum(load.active_requests for load in book.loads().values())


def latest(fleet: Fleet) -> Route:
    """The route that is under way."""
    return next(each.result() for each in reversed(fleet.asked) if each.done() and not each.cancelled())


async def turns() -> None:
    """Let what was scheduled happen."""
    for _ in range(5):
        await asyncio.sleep(0)
