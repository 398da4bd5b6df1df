"""Split requests whose client or worker leaves at any moment: both stages are booked off exactly once."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from kvrouter.errors import NoWorkerError
from kvrouter.service.proxy import Reply, Route
from kvrouter.settings import LimitSettings, QueueSettings
from tests.service.inprocess import InProcess

BODY = {"model": "m", "prompt": list(range(1600)), "max_tokens": 4, "stream": True}
GIVEN = b'{"kv_transfer_params":{"do_remote_prefill":true},"usage":{"prompt_tokens":1600,"completion_tokens":1}}'
DEADLINE_SECONDS = 30.0


def _answer(status: int, body: bytes = b"{}") -> bytes:
    return b"HTTP/1.1 %d Said\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        status,
        len(body),
        body,
    )


class Worker:
    """A server that answers every request with the next of `answers`, or, where that is None, not at all."""

    def __init__(self, *answers: bytes | None) -> None:
        self.answers = list(answers)
        self.requests: list[bytes] = []
        self.left = 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(length))
                answer = self.answers.pop(0)
                if answer is not None:
                    writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.left += 1
        finally:
            writer.close()


@asynccontextmanager
async def _serving(*workers: Worker) -> AsyncIterator[None]:
    servers = [await asyncio.start_server(each.serve, "127.0.0.1", 0) for each in workers]
    for each, server in zip(workers, servers, strict=True):
        each.port = server.sockets[0].getsockname()[1]
    try:
        yield
    finally:
        for server in servers:
            server.close()


def _fleet(*prefillers: Worker, engine: str = "vllm", **sections: Any) -> InProcess:
    service = InProcess(**sections)
    service.add(url="http://127.0.0.1:1", worker_id="d", model="m", block_size=16, role="decode", engine=engine)
    for number, each in enumerate(prefillers):
        url = f"http://127.0.0.1:{each.port}"
        service.add(url=url, worker_id=f"p{number}", model="m", block_size=16, role="prefill", engine=engine)
    return service


def _route(service: InProcess, first: int = 0) -> "Route | asyncio.Task[Route | Reply]":
    body = {**BODY, "prompt": list(range(first, first + 1600))}
    found = service.service.dispatcher.route(service.request("POST", "/v1/completions", body), ())
    assert isinstance(found, (Route, asyncio.Task))
    return found


def _is_idle(service: InProcess) -> bool:
    loads = [service.service.router.book.load(rank) for rank in range(len(service.service.registry))]
    active = sum(worker.active for worker in service.service.registry)
    assert service.service.splits is not None
    return not active and not len(service.service.splits) and not any(load.active_requests for load in loads)


async def _until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not holds():
            await asyncio.sleep(0.005)


def _outcomes(service: InProcess, worker: str) -> dict[str, int]:
    return service.service.registry.find(worker).counters.outcomes


def _run(work: Awaitable[None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE_SECONDS):
            await work

    asyncio.run(bounded())


def test_the_way_of_the_second_stage_has_what_the_first_one_said() -> None:
    """And the first is asked for one token, in one piece, whatever the client asked for."""

    async def work() -> None:
        prefill = Worker(_answer(200, GIVEN))
        async with _serving(prefill):
            service = _fleet(prefill)
            route = await _route(service)  # type: ignore[misc]
            assert isinstance(route, Route)

            assert route.worker_id == "d"
            assert route.body is not None
            assert route.body.endswith(b'"stream":true,"kv_transfer_params":{"do_remote_prefill":true}}')
            asked = prefill.requests[0]
            assert b'"max_tokens":1,"stream":false,"kv_transfer_params":{"do_remote_decode":true,' in asked
            assert b"x-request-id: request-1" in asked
            assert _outcomes(service, "p0") == {"ok": 1}
            service.service.dispatcher.finished(route, "ok", None)
            assert _is_idle(service)

    _run(work())


@pytest.mark.parametrize("started", [False, True])
def test_a_client_that_leaves_while_its_prompt_is_computed(started: bool) -> None:
    """Also in the moment in which the first stage has not even begun; its worker sees the connection close."""

    async def work() -> None:
        prefill = Worker(None)
        async with _serving(prefill):
            service = _fleet(prefill)
            task = _route(service)
            assert isinstance(task, asyncio.Task)
            if started:
                await _until(lambda: prefill.requests)

            task.cancel()
            await _until(lambda: _is_idle(service))

            await _until(lambda: prefill.left == started)
            assert _outcomes(service, "p0") == _outcomes(service, "d") == {"client_gone": 1}

    _run(work())


def test_a_client_that_leaves_in_the_moment_of_its_route_ends_it() -> None:
    """Whoever holds the route then tells its end, as the data plane does."""

    async def work() -> None:
        prefill = Worker(_answer(200, GIVEN))
        async with _serving(prefill):
            service = _fleet(prefill)
            task = _route(service)
            assert isinstance(task, asyncio.Task)
            await asyncio.wait([task])

            assert not task.cancel()
            route = task.result()
            assert isinstance(route, Route)
            service.service.dispatcher.finished(route, "client_gone", None)
            assert _is_idle(service)

    _run(work())


@pytest.mark.parametrize("failed", [_answer(500), _answer(503), _answer(429), b"not HTTP at all\r\n\r\n"])
def test_another_worker_computes_what_one_did_not(failed: bytes) -> None:
    """Whichever of them is asked first."""

    async def work() -> None:
        one, other = Worker(failed, failed), Worker(_answer(200, GIVEN))
        async with _serving(one, other):
            service = _fleet(one, other)
            route = await _route(service)  # type: ignore[misc]

            assert isinstance(route, Route)
            assert route.worker_id == "d"
            assert (len(one.requests), len(other.requests)) == (1, 1)
            service.service.dispatcher.finished(route, "ok", None)
            assert _is_idle(service)

    _run(work())


def test_with_nobody_left_one_worker_does_it_all() -> None:
    """It is told nothing of blocks, and booked for the whole prompt."""

    async def work() -> None:
        workers = [Worker(_answer(500)) for _ in range(3)]
        async with _serving(*workers):
            service = _fleet(*workers, limits=LimitSettings(attempts_max=2))
            route = await _route(service)  # type: ignore[misc]
            assert isinstance(route, Route)

            assert (route.worker_id, route.body) == ("d", None)
            assert sum(len(each.requests) for each in workers) == 2
            assert service.service.router.book.load(0).prefill_tokens == 1600
            assert service.service.splits is not None
            assert service.service.splits.counts.fallbacks == 1
            service.service.dispatcher.finished(route, "ok", None)
            assert _is_idle(service)

    _run(work())


def test_a_refusal_is_the_clients_answer() -> None:
    """As it was said."""

    async def work() -> None:
        prefill = Worker(_answer(400, b'{"error":"too long"}'))
        async with _serving(prefill):
            service = _fleet(prefill)
            reply = await _route(service)  # type: ignore[misc]

            assert isinstance(reply, Reply)
            assert (reply.status, reply.body) == (400, b'{"error":"too long"}')
            assert reply.headers == [(b"content-type", b"application/json")]
            assert _is_idle(service)

    _run(work())


@pytest.mark.parametrize("another", [True, False])
def test_a_decode_worker_that_leaves_meanwhile_is_replaced(another: bool) -> None:
    """By another one, which gets the same blocks; or the client is told that there is none."""

    async def work() -> None:
        prefill = Worker(_answer(200, GIVEN))
        async with _serving(prefill):
            service = _fleet(prefill)
            task = _route(service)
            assert isinstance(task, asyncio.Task)
            service.service.registry.remove("d", now=service.clock.now)
            if another:
                service.add(url="http://127.0.0.1:2", worker_id="e", model="m", block_size=16, role="decode")

            if another:
                route = await task
                assert isinstance(route, Route)
                assert route.worker_id == "e"
                assert route.body is not None
                assert b"do_remote_prefill" in route.body
                service.service.dispatcher.finished(route, "ok", None)
            else:
                with pytest.raises(NoWorkerError):
                    await task
            await _until(lambda: _is_idle(service))

    _run(work())


def test_sglangs_first_stage_ends_with_the_second() -> None:
    """Aborted if that failed or its client left; left alone if it was answered."""

    async def work() -> None:
        prefill = Worker(None, None)
        async with _serving(prefill):
            service = _fleet(prefill, engine="sglang")
            dispatcher = service.service.dispatcher
            route = _route(service)
            assert isinstance(route, Route)
            await _until(lambda: len(prefill.requests) == 1)
            dispatcher.finished(route, "client_gone", None)
            await _until(lambda: prefill.left == 1)
            await _until(lambda: _is_idle(service))

            route = _route(service)
            assert isinstance(route, Route)
            dispatcher.finished(route, "upstream_lost", None)  # before anything was sent
            await _until(lambda: _is_idle(service))
            assert _outcomes(service, "p0") == {"client_gone": 2}

    _run(work())


def test_sglangs_first_stage_may_end_later() -> None:
    """Its answer says nothing that the client waits for."""

    async def work() -> None:
        prefill = Worker(_answer(200))
        async with _serving(prefill):
            service = _fleet(prefill, engine="sglang")
            route = _route(service)
            assert isinstance(route, Route)
            service.service.dispatcher.finished(route, "ok", None)

            await _until(lambda: _is_idle(service))
            assert _outcomes(service, "p0") == {"ok": 1}
            assert _outcomes(service, "d") == {"ok": 1}

    _run(work())


def test_requests_that_wait_for_room_are_split_when_there_is_some() -> None:
    """A queue in front changes nothing for who leaves it, or gives up in it."""

    async def work() -> None:
        prefill = Worker(None, _answer(200, GIVEN))
        async with _serving(prefill):
            service = _fleet(prefill, queue=QueueSettings(rank_requests_max=1))
            first = _route(service)
            assert isinstance(first, asyncio.Task)
            await _until(lambda: prefill.requests)
            second, third = _route(service, 5000), _route(service, 9000)
            assert isinstance(second, asyncio.Task)
            assert isinstance(third, asyncio.Task)
            await asyncio.sleep(0)
            assert service.service.admission is not None
            assert service.service.admission.queue.requests == 2

            third.cancel()
            first.cancel()
            route = await second

            assert isinstance(route, Route)
            assert route.body is not None
            assert b"do_remote_prefill" in route.body
            service.service.dispatcher.finished(route, "ok", None)
            await _until(lambda: _is_idle(service))
            assert service.service.admission.queue.requests == 0

    _run(work())


def test_closing_stops_what_is_under_way() -> None:
    """A router that ends leaves no request behind."""

    async def work() -> None:
        prefill = Worker(None)
        async with _serving(prefill):
            service = _fleet(prefill)
            task = _route(service)
            assert isinstance(task, asyncio.Task)
            await _until(lambda: prefill.requests)

            assert service.service.splits is not None
            await service.service.splits.close()

            assert task.cancelled()
            await _until(lambda: _is_idle(service))
            await _until(lambda: prefill.left == 1)

    _run(work())
