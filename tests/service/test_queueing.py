"""Requests that wait at a real router, in front of real (simulated) engines that are held still while they come.

Who went when is read from the router's decisions, so nothing here depends on how fast anything is.
"""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from tests.service.processes import Engine, Processes, Router, eventually

DEADLINE_SECONDS = 60.0
PATIENT = httpx.Timeout(120)


def _router(processes: Processes, engine: Engine, *options: str) -> Router:
    """A router whose only rank takes two requests at a time, unless told otherwise."""
    flags = () if "--queue-rank-requests-max" in options else ("--queue-rank-requests-max", "2")
    return processes.router(
        "--worker",
        f"{engine.spec},id=a",
        "--queue-seconds-max",
        "300",
        "--queue-tenant-by",
        "header",
        "--health-interval-seconds",
        "0.2",
        *flags,
        *options,
        workers=1,
    )


def _fault(engine: Engine, kind: str) -> None:
    httpx.post(f"{engine.url}/fault", json={"kind": kind}, timeout=30).raise_for_status()


class Clients:
    """Clients of one router, each with a connection of its own."""

    def __init__(self, router: Router, client: httpx.AsyncClient) -> None:
        self.router, self._client = router, client
        self.answers: dict[str, asyncio.Task[httpx.Response]] = {}

    def send(self, name: str, tenant: str = "t", *, tokens: int = 32, stream: bool = False, **hints: Any) -> None:
        """Ask for a prompt that nobody has asked for; the answer is `answers[name]`."""
        start = 1000 * len(self.answers)
        body = {"prompt": list(range(start, start + tokens)), "max_tokens": 2, "stream": stream}
        headers = {"x-request-id": name, "x-kvrouter-tenant": tenant}
        headers |= {key.replace("_", "-"): str(value) for key, value in hints.items()}
        asking = self._client.post(f"{self.router.url}/v1/completions", json=body, headers=headers)
        self.answers[name] = asyncio.create_task(asking)

    async def queue(self) -> dict[str, Any]:
        """What the router tells of its queue."""
        found: dict[str, Any] = (await self._client.get(f"{self.router.url}/queue")).json()
        return found

    async def wait(self, requests: int) -> None:
        """Until so many requests wait."""
        deadline = asyncio.get_running_loop().time() + DEADLINE_SECONDS
        while (found := (await self.queue())["waiting"]["requests"]) != requests:
            assert asyncio.get_running_loop().time() < deadline, f"{found} wait, not {requests}"
            await asyncio.sleep(0.02)

    async def statuses(self, *names: str) -> list[int]:
        """How the requests were answered, all or those named."""
        return [(await self.answers[name]).status_code for name in names or self.answers]

    async def admitted(self) -> list[str]:
        """The names of the requests in the order in which they went to a worker."""
        found = (await self._client.get(f"{self.router.url}/decisions", params={"limit": 1000})).json()
        return [each["id"] for each in reversed(found)]


@asynccontextmanager
async def _clients(router: Router) -> AsyncIterator[Clients]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(timeout=PATIENT, limits=limits) as client:
        clients = Clients(router, client)
        yield clients
        for task in clients.answers.values():
            task.cancel()


async def test_tenants_get_their_shares_in_an_overload(processes: Processes) -> None:
    """However many requests one of them has sent before; a share counts by weight."""
    engine = processes.engine()
    router = _router(processes, engine, "--queue-quantum-tokens", "600", "--queue-tenant-weights", "b=2")
    _fault(engine, "stall")
    async with _clients(router) as clients:
        for number in range(42):
            clients.send(f"a{number}", "a")
        await clients.wait(40)
        for number in range(40):
            clients.send(f"b{number}", "b")
        await clients.wait(80)
        tenants = {each["tenant"]: each for each in (await clients.queue())["tenants"]}
        _fault(engine, "none")
        statuses = await clients.statuses()
        admitted = await clients.admitted()

    assert (tenants["a"]["requests"], tenants["b"]["requests"]) == (40, 40)
    assert set(statuses) == {200}
    while_both_wait = [name[0] for name in admitted[2:56]]
    # By weight none is ahead by more than a quantum, which is two requests, and one request.
    assert abs(while_both_wait.count("a") - while_both_wait.count("b") / 2) <= 4


async def test_a_priority_overtakes_those_who_wait(processes: Processes) -> None:
    """The smaller number goes first, as in vLLM."""
    engine = processes.engine()
    router = _router(processes, engine, "--queue-priority-seconds", "1000")
    _fault(engine, "stall")
    async with _clients(router) as clients:
        for number in range(6):
            clients.send(f"usual{number}")
        await clients.wait(4)
        clients.send("later", x_kvrouter_priority=5)
        clients.send("sooner", x_kvrouter_priority=-5)
        await clients.wait(6)
        _fault(engine, "none")
        statuses = await clients.statuses()
        admitted = await clients.admitted()

    assert set(statuses) == {200}
    assert admitted[2] == "sooner"
    assert admitted[-1] == "later"


async def test_a_rank_never_has_more_than_its_bound(processes: Processes) -> None:
    """Streams wait like others, and come whole."""
    engine = processes.engine()
    router = _router(processes, engine, "--queue-rank-requests-max", "3")
    _fault(engine, "stall")
    async with _clients(router) as clients:
        for number in range(12):
            clients.send(f"r{number}", stream=True)
        await clients.wait(9)
        ranks = (await asyncio.to_thread(router.get, "/workers"))[0]["ranks"]
        _fault(engine, "none")
        answers = [await answer for answer in clients.answers.values()]

    assert [rank["active_requests"] for rank in ranks] == [3]
    assert all(each.text.rstrip().endswith("data: [DONE]") for each in answers)
    decisions = router.get("/decisions?limit=100")
    assert max(each["active_requests"] for one in decisions for each in one["candidates"]) <= 2


async def test_a_client_that_leaves_gives_its_place_up(processes: Processes) -> None:
    """Nothing is computed for it."""
    engine = processes.engine()
    router = _router(processes, engine)
    _fault(engine, "stall")
    async with _clients(router) as clients:
        for number in range(5):
            clients.send(f"r{number}")
            await clients.wait(max(0, number - 1))
        clients.answers.pop("r3").cancel()
        await clients.wait(2)
        counts = (await clients.queue())["counts"]
        _fault(engine, "none")
        statuses = await clients.statuses()
        admitted = await clients.admitted()

    assert counts["ended"]["client_gone"] == 1
    assert statuses == [200] * 4
    assert sorted(admitted) == ["r0", "r1", "r2", "r4"]


async def test_those_who_wait_outlive_a_worker(processes: Processes) -> None:
    """They go to its next life, and room that a gateway frees over the selection API is theirs too."""
    engine = processes.engine()
    router = _router(processes, engine, "--routing-reservation-seconds", "3600")
    for name in ("one", "two"):
        router.post("/select_and_reserve", {"token_ids": [1, 2, 3], "selection_id": name}).raise_for_status()
    async with _clients(router) as clients:
        for number in range(4):
            clients.send(f"r{number}")
        await clients.wait(4)
        engine.stop()
        await asyncio.to_thread(eventually, lambda: router.schedulable(0))
        await asyncio.to_thread(processes.again, engine)
        await asyncio.to_thread(eventually, lambda: router.schedulable(1))
        still_waiting = (await clients.queue())["waiting"]["requests"]
        await asyncio.to_thread(httpx.delete, f"{router.url}/reservations/one", timeout=30)
        statuses = await clients.statuses()

    assert still_waiting == 4
    assert statuses == [200] * 4


async def test_a_second_worker_relieves_the_first(processes: Processes) -> None:
    """As soon as it is registered and healthy."""
    engine, other = processes.engine(), processes.engine()
    router = _router(processes, engine)
    _fault(engine, "stall")
    async with _clients(router) as clients:
        for number in range(6):
            clients.send(f"r{number}")
        await clients.wait(4)
        await asyncio.to_thread(router.post, "/workers", {"url": other.url, "worker_id": "b"})
        done, _ = await asyncio.wait(clients.answers.values(), return_when=asyncio.FIRST_COMPLETED, timeout=60)
        first = done.pop().result()
        _fault(engine, "none")
        statuses = await clients.statuses()

    assert first.headers["x-kvrouter-worker"] == "b"
    assert statuses == [200] * 6


async def test_who_waits_when_the_router_stops_is_told(processes: Processes) -> None:
    """503 within the time to drain, and an orderly end."""
    engine = processes.engine()
    router = _router(processes, engine, "--drain-seconds", "0.5")
    _fault(engine, "stall")
    async with _clients(router) as clients:
        for number in range(4):
            clients.send(f"r{number}")
        await clients.wait(2)
        router.signal(signal.SIGTERM)
        answers = [await answer for answer in clients.answers.values()]

    assert [each.status_code for each in answers] == [503] * 4
    assert {each.json()["error"]["message"] for each in answers} == {"the router is stopping"}
    assert await asyncio.to_thread(router.wait) == 0


async def test_who_is_turned_away_is_told_why_and_when_to_come_again(processes: Processes) -> None:
    """In the one shape of errors, with a status that clients know."""
    engine = processes.engine()
    router = _router(processes, engine, "--queue-requests-max", "2")
    _fault(engine, "stall")
    async with _clients(router) as clients:
        for number in range(4):
            clients.send(f"r{number}", "greedy")
            await clients.wait(max(0, number - 1))
        clients.send("full", "greedy")
        full = await clients.answers["full"]
        clients.send("modest", "modest")
        displaced = await clients.answers["r3"]
        clients.send("hasty", "modest", x_kvrouter_deadline_ms=1)
        hasty = await clients.answers["hasty"]
        clients.send("odd", x_kvrouter_priority="high")
        odd = await clients.answers["odd"]
        counts = (await clients.queue())["counts"]["shed"]
        metrics = (await asyncio.to_thread(httpx.get, f"{router.url}/metrics")).text
        _fault(engine, "none")
        statuses = await clients.statuses("r0", "r1", "r2", "modest")

    told = [
        (each.status_code, each.json()["error"]["type"], each.json()["error"]["code"])
        for each in (full, displaced, hasty, odd)
    ]
    assert told == [
        (503, "server_error", "queue_full"),
        (429, "rate_limit_error", "tenant_over_share"),
        (504, "server_error", "deadline_unreachable"),
        (400, "invalid_request_error", "invalid_header"),
    ]
    assert all(int(each.headers["retry-after"]) >= 1 for each in (full, displaced, hasty))
    assert (counts["queue_full"], counts["tenant_over_share"], counts["deadline_unreachable"]) == (1, 1, 1)
    assert 'kvrouter_shed_requests_total{reason="queue_full"} 1.0' in metrics
    assert statuses == [200] * 4


async def test_a_prompt_that_would_take_too_long_is_refused(processes: Processes) -> None:
    """With nothing but a bound on the predicted time; others go on."""
    engine = processes.engine()
    router = _router(processes, engine, "--queue-rank-requests-max", "0", "--queue-ttft-seconds-max", "0.5")
    async with _clients(router) as clients:
        clients.send("long", tokens=20_000)
        clients.send("short", tokens=32)
        long, short = await clients.answers["long"], await clients.answers["short"]

    assert (long.status_code, long.json()["error"]["code"]) == (503, "overloaded")
    assert int(long.headers["retry-after"]) >= 2
    assert short.status_code == 200


async def test_without_a_queue_nothing_waits(processes: Processes) -> None:
    """And nothing is said or asked of it."""
    engine = processes.engine()
    router = processes.router("--worker", f"{engine.spec},id=a", workers=1)
    _fault(engine, "stall")
    async with _clients(router) as clients:
        for number in range(8):
            clients.send(f"r{number}", x_kvrouter_priority="odd", x_kvrouter_deadline_ms=1)
        deadline = asyncio.get_running_loop().time() + DEADLINE_SECONDS
        while len(await clients.admitted()) < 8:
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.02)
        queue = await clients.queue()
        _fault(engine, "none")
        statuses = await clients.statuses()

    assert queue == {"enabled": False}
    assert statuses == [200] * 8
