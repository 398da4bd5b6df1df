"""What every transport of the request plane must do; each one passes this suite.

Subclass `RequestPlaneContract` and say how to make a plane and how a worker of its own is started; pytest does the
rest. A-381, A-384: one protocol, one semantic of closing and of errors, whatever carries it.
"""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from kvrouter.errors import (
    DeadlineError,
    DisconnectedError,
    HandlerError,
    RefusedError,
    TransportError,
    UnreachableError,
)
from kvrouter.transport.context import Context
from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.messages import Request
from kvrouter.transport.planes import RequestClient, RequestServer
from tests.transport.handlers import Handlers
from tests.transport.worker import WorkerProcess, make_server, started_worker

__all__ = ["Plane", "RequestPlaneContract", "eventually", "run"]

_DEADLINE_SECONDS = 100.0


@dataclass
class Plane:
    """A server, a client, and what the server serves."""

    server: RequestServer
    client: RequestClient
    endpoints: Endpoints
    handlers: Handlers = field(default_factory=Handlers)

    async def ask(self, endpoint: str, body: bytes = b"", context: Context | None = None) -> list[bytes]:
        """Every item of an answer."""
        stream = await self.client.request(
            self.server.address, Request(endpoint=endpoint, body=body), context or Context()
        )
        async with stream:
            return await stream.collect()


def run(scenario: Coroutine[Any, Any, None]) -> None:
    """Run a scenario, with a bound."""

    async def bounded() -> None:
        async with asyncio.timeout(_DEADLINE_SECONDS):
            await scenario

    asyncio.run(bounded())


async def eventually(condition: Callable[[], object]) -> None:
    """Wait until something holds; the scenario's own bound ends the wait."""
    while not condition():
        await asyncio.sleep(0.005)


class RequestPlaneContract:
    """A-107, A-123, A-230, A-301, A-381, A-384: every transport passes these. A class says what it can do."""

    transport: str
    """The module of `planes` that makes its servers."""
    bidirectional = True
    notices_silence = True
    """Whether a peer that is silent is noticed by the transport itself; else deadlines are for that."""
    nobody: type[TransportError] = UnreachableError
    """What is raised where nobody is at an address."""
    message_bytes_max = 32 << 20

    @asynccontextmanager
    async def plane(self, endpoints: Endpoints) -> AsyncIterator[tuple[RequestServer, RequestClient]]:
        """A server that has started, and a client."""
        server, client = make_server(self.transport, endpoints, *self.arguments()), self.client()
        await server.start()
        try:
            yield server, client
        finally:
            await client.aclose()
            await server.stop()

    def arguments(self) -> tuple[str, ...]:
        """What the server is made with beside its endpoints."""
        return ()

    def client(self, **options: Any) -> RequestClient:
        """A client alone; `heartbeat_seconds` may be given."""
        raise NotImplementedError

    def worker(self) -> AbstractAsyncContextManager[WorkerProcess]:
        """A worker process with the same handlers."""
        return started_worker(self.transport, *self.arguments())

    def nowhere(self) -> str:
        """An address where nobody listens."""
        raise NotImplementedError

    def scene(self, scenario: Callable[[Plane], Coroutine[Any, Any, None]], **limits: Any) -> None:
        """Run a scenario on a plane; afterwards nothing of it may be left."""

        async def whole() -> None:
            endpoints = Endpoints(**limits)
            handlers = Handlers()
            handlers.register(endpoints)
            async with self.plane(endpoints) as (server, client):
                await scenario(Plane(server, client, endpoints, handlers))
                handlers.release.set()
                await eventually(lambda: not len(endpoints))
            left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            await eventually(lambda: all(task.done() for task in left))

        run(whole())

    # -- answers -----------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("body", [b"", b"x", bytes(70_000), bytes(1_000_000)])
    def test_one_request_has_one_answer(self, body: bytes) -> None:
        """A-113: what goes in comes out, whatever its length."""

        async def scenario(plane: Plane) -> None:
            assert await plane.ask("echo", body) == [body]

        self.scene(scenario)

    def test_the_largest_message_passes(self) -> None:
        """B.1: messages up to the limit of 32 MiB, both ways."""
        body = bytes(self.message_bytes_max - 4096)

        async def scenario(plane: Plane) -> None:
            (item,) = await plane.ask("echo", body)
            assert len(item) == len(body)

        self.scene(scenario)

    def test_many_items_come_in_order(self) -> None:
        """A-113: one in, many out."""

        async def scenario(plane: Plane) -> None:
            assert await plane.ask("count", b"2000") == [b"%d" % number for number in range(2000)]

        self.scene(scenario)

    def test_an_answer_without_items_ends(self) -> None:
        """Nothing is an answer too."""

        async def scenario(plane: Plane) -> None:
            assert await plane.ask("count", b"0") == []

        self.scene(scenario)

    def test_items_go_both_ways_at_once(self) -> None:
        """A-151, A-212, A-280: each item is answered before the next one is sent; or it is refused in words."""

        async def refused(plane: Plane) -> None:
            request = Request(endpoint="upper", many_in=True)
            with pytest.raises(TransportError, match="further items") as refusal:
                await plane.client.request(plane.server.address, request, Context())
            assert refusal.value.code == "UNIMPLEMENTED"

        async def scenario(plane: Plane) -> None:
            answers: asyncio.Queue[bytes] = asyncio.Queue()
            heard = []

            async def items() -> AsyncIterator[bytes]:
                for word in (b"one", b"two", b"three"):
                    yield word
                    heard.append(await answers.get())

            request = Request(endpoint="upper", many_in=True, items=items())
            async with await plane.client.request(plane.server.address, request, Context()) as stream:
                async for item in stream:
                    answers.put_nowait(item)
            assert heard == [b"ONE", b"TWO", b"THREE"]

        self.scene(scenario if self.bidirectional else refused)

    def test_context_travels_with_the_request(self) -> None:
        """A-110, A-145: id, trace context, codec and metadata arrive as they were sent."""
        headers = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01", "tracestate": "a=b", "x-request-id": "r-1"}

        async def scenario(plane: Plane) -> None:
            request = Request(endpoint="headers", codec="raw", metadata={"tenant": "blue"})
            context = Context("the-id", headers=headers)
            async with await plane.client.request(plane.server.address, request, context) as stream:
                (told,) = await stream.collect()
            assert json.loads(told) == {
                "id": "the-id", "headers": headers, "codec": "raw", "meta": {"tenant": "blue"},
            }  # fmt: skip

        self.scene(scenario)

    def test_a_thousand_streams_at_once_keep_apart(self) -> None:
        """A-237: each gets its own answer."""

        async def scenario(plane: Plane) -> None:
            bodies = [b"%d" % number * 50 for number in range(1000)]
            answers = await asyncio.gather(*(plane.ask("echo", body) for body in bodies))
            assert answers == [[body] for body in bodies]

        self.scene(scenario)

    # -- refusals and failures ---------------------------------------------------------------------------------------

    def test_an_unknown_endpoint_is_refused(self) -> None:
        """A-384: with the name that was asked for."""

        async def scenario(plane: Plane) -> None:
            with pytest.raises(RefusedError, match="nonsense") as refusal:
                await plane.ask("nonsense")
            assert refusal.value.code == "NOT_FOUND"
            assert not refusal.value.retryable

        self.scene(scenario)

    def test_a_busy_worker_refuses(self) -> None:
        """B.6: a bound on work at a time; the refusal says that it may be tried elsewhere."""

        async def scenario(plane: Plane) -> None:
            request = Request(endpoint="hang", body=b"x")
            async with await plane.client.request(plane.server.address, request, Context()):
                with pytest.raises(RefusedError) as refusal:
                    await plane.ask("echo")
            assert refusal.value.code == "RESOURCE_EXHAUSTED"
            assert refusal.value.retryable

        self.scene(scenario, streams_max=1)

    def test_a_request_is_taken_once(self) -> None:
        """A-302: a repeated request is known by its id, and not worked on again."""

        async def scenario(plane: Plane) -> None:
            assert await plane.ask("echo", b"x", Context("same")) == [b"x"]
            with pytest.raises(RefusedError) as refusal:
                await plane.ask("echo", b"x", Context("same"))
            assert refusal.value.code == "ALREADY_EXISTS"

        self.scene(scenario)

    def test_a_failure_before_the_first_item_fails_the_request(self) -> None:
        """A-384: with the handler's own code, or without a word of what an unknown exception says."""

        async def scenario(plane: Plane) -> None:
            with pytest.raises(HandlerError, match="no such model") as typed:
                await plane.ask("fail_before", b"typed")
            assert typed.value.code == "NOT_FOUND"
            with pytest.raises(HandlerError, match="ValueError") as untyped:
                await plane.ask("fail_before")
            assert untyped.value.code == "INTERNAL"
            assert "secret" not in str(untyped.value)

        self.scene(scenario)

    def test_a_failure_after_items_comes_after_them(self) -> None:
        """A-383: what was sent before it still arrives."""

        async def scenario(plane: Plane) -> None:
            request = Request(endpoint="fail_after")
            async with await plane.client.request(plane.server.address, request, Context()) as stream:
                assert [await anext(stream), await anext(stream)] == [b"one", b"two"]
                with pytest.raises(HandlerError, match="out of memory") as failure:
                    await anext(stream)
            assert failure.value.code == "RESOURCE_EXHAUSTED"

        self.scene(scenario)

    def test_nobody_there_is_an_error_of_its_own(self) -> None:
        """A-137: connection refused."""

        async def scenario() -> None:
            client = self.client()
            with pytest.raises(self.nobody) as failure:
                await client.request(self.nowhere(), Request(endpoint="echo"), Context())
            assert failure.value.retryable
            await client.aclose()

        run(scenario())

    def test_a_deadline_ends_the_work(self) -> None:
        """A-106: the requester is told, and the handler is cancelled."""

        async def scenario(plane: Plane) -> None:
            seconds = 0.3
            while not plane.handlers.cancelled:  # On a slow machine it may be over before the worker has the request.
                deadline = asyncio.get_running_loop().time() + seconds
                with pytest.raises(DeadlineError):
                    await plane.ask("hang", b"x", Context(f"within {seconds:g}", deadline=deadline))
                await eventually(lambda: not len(plane.endpoints))
                seconds *= 2
            assert plane.handlers.cancelled == [f"within {seconds / 2:g}"]

        self.scene(scenario)

    # -- stop and kill -----------------------------------------------------------------------------------------------

    def test_a_stop_lets_the_work_end_by_itself(self) -> None:
        """A-307: what is produced until then is delivered."""

        async def scenario(plane: Plane) -> None:
            context = Context("s")
            async with await plane.client.request(
                plane.server.address, Request(endpoint="until_stopped"), context
            ) as stream:
                assert await anext(stream) == b"first"
                context.stop()
                assert await stream.collect() == [b"last"]
            assert plane.handlers.stopped == ["s"]

        self.scene(scenario)

    @pytest.mark.parametrize("how", ["kill", "leave"])
    def test_a_kill_cancels_the_work(self, how: str) -> None:
        """A-307: at once, when the requester kills it or goes away."""

        async def scenario(plane: Plane) -> None:
            context = Context("k")
            stream = await plane.client.request(plane.server.address, Request(endpoint="hang", body=b"x"), context)
            assert await anext(stream) == b"x"
            if how == "kill":
                context.kill()
                with pytest.raises(TransportError) as failure:
                    await anext(stream)
                assert failure.value.code == "CANCELLED"
            else:
                await stream.aclose()
            await eventually(lambda: plane.handlers.cancelled == ["k"])

        self.scene(scenario)

    def test_a_killed_parent_kills_its_requests(self) -> None:
        """A-307: contexts are trees."""

        async def scenario(plane: Plane) -> None:
            parent = Context()
            request = Request(endpoint="hang", body=b"x")
            streams = [
                await plane.client.request(plane.server.address, request, parent.child(f"c{number}"))
                for number in range(3)
            ]
            parent.kill()
            await eventually(lambda: sorted(plane.handlers.cancelled) == ["c0", "c1", "c2"])
            for stream in streams:
                await stream.aclose()

        self.scene(scenario)

    # -- slow, silent and dead peers ---------------------------------------------------------------------------------

    def test_a_slow_reader_holds_up_its_own_stream_only(self) -> None:
        """A-212: memory is bounded at both ends, others go on, and nothing is lost."""

        async def scenario(plane: Plane) -> None:
            request = Request(endpoint="flood", body=b"1000")
            async with await plane.client.request(plane.server.address, request, Context()) as stream:
                assert await anext(stream)
                assert await plane.ask("echo", b"meanwhile") == [b"meanwhile"]
                seen = -1
                while seen != plane.handlers.produced:
                    seen = plane.handlers.produced
                    for _ in range(10):
                        await plane.ask("echo", b"meanwhile")
                assert seen < 900
                assert len(await stream.collect()) == 999

        self.scene(scenario)

    def test_a_dead_worker_ends_its_streams(self) -> None:
        """A-275, A-384: a lost connection is told, and whether the request may be repeated."""

        async def scenario() -> None:
            async with self.worker() as worker:
                client = self.client()
                begun = await client.request(worker.address, Request(endpoint="hang", body=b"x"), Context())
                waiting = await client.request(worker.address, Request(endpoint="hang"), Context())
                assert await anext(begun) == b"x"
                worker.signal(signal.SIGKILL)
                with pytest.raises(DisconnectedError) as late:
                    await anext(begun)
                assert not late.value.retryable
                with pytest.raises(DisconnectedError) as early:
                    await anext(waiting)
                assert early.value.retryable
                await client.aclose()

        run(scenario())

    def test_a_frozen_worker_is_noticed(self) -> None:
        """A-213: a peer that is silent beyond the time-out is lost, whatever the kernel says."""

        async def scenario() -> None:
            async with self.worker() as worker:
                client = self.client(heartbeat_seconds=1.0)
                deadline = None if self.notices_silence else asyncio.get_running_loop().time() + 10.0
                context = Context(deadline=deadline)
                stream = await client.request(worker.address, Request(endpoint="hang", body=b"x"), context)
                assert await anext(stream) == b"x"
                worker.signal(signal.SIGSTOP)
                with pytest.raises(DisconnectedError if self.notices_silence else DeadlineError):
                    await anext(stream)
                worker.signal(signal.SIGCONT)
                await client.aclose()

        run(scenario())

    def test_a_worker_that_comes_back_is_reached_again(self) -> None:
        """A-232: broken connections are replaced by themselves."""

        async def scenario() -> None:
            client = self.client()
            for body in (b"first", b"second"):
                async with self.worker() as worker:
                    request = Request(endpoint="echo", body=body)
                    async with await client.request(worker.address, request, Context()) as stream:
                        assert await stream.collect() == [body]
                    worker.signal(signal.SIGKILL)
            await client.aclose()

        run(scenario())

    def test_draining_lets_work_finish_and_takes_no_more(self) -> None:
        """A-164: graceful shutdown with what is in flight."""

        async def scenario(plane: Plane) -> None:
            request = Request(endpoint="hang", body=b"x")
            async with await plane.client.request(plane.server.address, request, Context()) as stream:
                assert await anext(stream) == b"x"
                address = plane.server.address
                stopping = asyncio.create_task(plane.server.stop(drain_seconds=30))
                await eventually(lambda: plane.endpoints.draining)
                with pytest.raises((RefusedError, self.nobody)):
                    await plane.client.request(address, Request(endpoint="echo"), Context())
                plane.handlers.release.set()
                assert await stream.collect() == [b"released"]
                await stopping

        self.scene(scenario)

    def test_stopping_at_once_tells_the_requesters(self) -> None:
        """A-384: no stream ends without a word."""

        async def scenario(plane: Plane) -> None:
            request = Request(endpoint="hang", body=b"x")
            async with await plane.client.request(plane.server.address, request, Context()) as stream:
                assert await anext(stream) == b"x"
                await plane.server.stop()
                with pytest.raises(TransportError) as failure:
                    await stream.collect()
                assert failure.value.code == "UNAVAILABLE"

        self.scene(scenario)

    def test_aborted_requests_leave_nothing_behind(self) -> None:
        """A-275: no stream and no task of them is left; the connection goes on."""

        async def scenario(plane: Plane) -> None:
            for _ in range(50):
                request = Request(endpoint="flood", body=b"1000000")
                stream = await plane.client.request(plane.server.address, request, Context())
                await stream.aclose()
            await eventually(lambda: not len(plane.endpoints))
            assert await plane.ask("echo", b"still here") == [b"still here"]

        self.scene(scenario)
