"""An engine behind a plane: its answers come out as items of calls, its failures as errors that routers understand."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from kvrouter.errors import DisconnectedError, ProtocolError, RefusedError, TransportError, UnreachableError
from kvrouter.transport.calls import call_request, read_answer_head
from kvrouter.transport.context import Context
from kvrouter.transport.messages import Request
from kvrouter.worker.engine import EngineHandler, engine_handler
from tests.planes.inprocess import eventually, run
from tests.proxy.wire import Conversation, Worker, answering, answering_then_closing, chunk, silence, worker
from tests.servers import free_port

WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\nserver: x\r\n\r\n{}"
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


@asynccontextmanager
async def behind(engine: Worker, *, api_key: str | None = None) -> AsyncIterator[EngineHandler]:
    """A handler for an engine that the test has written."""
    async with engine_handler(f"http://127.0.0.1:{engine.endpoint.port}/base", api_key=api_key) as handler:
        yield handler


async def asked(handler: EngineHandler, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of an answer."""
    request = call_request("generate", "POST", "/v1/completions?x=1", b'{"a":1}')
    head, *body = [item async for item in handler(request, Context(headers=headers))]
    told = read_answer_head(head)
    return told.status, told.headers, b"".join(body)


def test_a_request_arrives_as_the_client_made_it() -> None:
    """A-123: method, target, headers and body; the engine's own key replaces the client's."""

    async def scenario() -> None:
        async with worker(answering(WHOLE)) as engine:
            async with behind(engine) as handler:
                await asked(handler, **{"x-request-id": "r", "call-authorization": "Bearer client"})
            async with behind(engine, api_key="engine-key") as handler:
                await asked(handler, **{"call-authorization": "Bearer client"})
            (head, body), (keyed, _) = engine.requests
            lines = head.decode().split("\r\n")
            assert lines[0] == "POST /base/v1/completions?x=1 HTTP/1.1"
            assert {"x-request-id: r", "authorization: Bearer client", "content-length: 7"} <= set(lines)
            assert body == b'{"a":1}'
            assert b"authorization: Bearer engine-key" in keyed
            assert b"client" not in keyed

    run(scenario())


def test_an_answer_comes_out_as_head_and_body() -> None:
    """A-123: status, type and length are told; what is about the engine's connection is not, which is used again."""

    async def scenario() -> None:
        async with worker(answering(WHOLE)) as engine, behind(engine) as handler:
            for _ in range(3):
                told = await asked(handler)
                assert told == (200, {"content-type": "application/json", "content-length": "2"}, b"{}")
            assert engine.connections == 1

    run(scenario())


def test_a_stream_comes_out_as_it_is_made() -> None:
    """A-113: each piece when it is there, without HTTP's framing."""

    async def scenario() -> None:
        more = asyncio.Event()

        async def script(conversation: Conversation) -> None:
            await conversation.request()
            conversation.send(STREAM + chunk(b"data: 1\n\n"))
            await more.wait()
            conversation.send(chunk(b"data: 2\n\n") + b"0\r\n\r\n")

        async with worker(script) as engine, behind(engine) as handler:
            items = handler(call_request("generate", "POST", "/v1/completions", b"{}"), Context())
            assert read_answer_head(await anext(items)).headers == {"content-type": "text/event-stream"}
            assert await anext(items) == b"data: 1\n\n"
            more.set()
            assert [item async for item in items] == [b"data: 2\n\n"]

    run(scenario())


@pytest.mark.parametrize("status", [503, 529])
def test_an_engine_that_is_too_busy_is_told_apart(status: int) -> None:
    """B.3: the router asks somebody else."""

    async def scenario() -> None:
        busy = b"HTTP/1.1 %d x\r\ncontent-length: 0\r\n\r\n" % status
        async with worker(answering(busy)) as engine, behind(engine) as handler:
            with pytest.raises(RefusedError) as refused:
                await asked(handler)
            assert (refused.value.code, refused.value.retryable) == ("RESOURCE_EXHAUSTED", True)

    run(scenario())


def test_refusals_of_an_engine_pass_as_they_are() -> None:
    """A-210: what it says of the request is for the client."""

    async def scenario() -> None:
        answer = b"HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\nnone"
        async with worker(answering(answer)) as engine, behind(engine) as handler:
            assert await asked(handler) == (404, {"content-length": "4"}, b"none")

    run(scenario())


def test_an_engine_that_is_not_there_is_unreachable() -> None:
    """A-137: nothing was done, so that the router asks somebody else."""

    async def scenario() -> None:
        async with engine_handler(f"http://127.0.0.1:{free_port()}") as handler:
            with pytest.raises(UnreachableError, match="the engine: cannot connect"):
                await asked(handler)

    run(scenario())


def test_a_kept_connection_that_was_closed_is_replaced() -> None:
    """A-232: engines close idle connections whenever they like."""

    async def scenario() -> None:
        async with worker(answering_then_closing(WHOLE)) as engine, behind(engine) as handler:
            for _ in range(3):
                assert (await asked(handler))[0] == 200
            assert len(engine.requests) == 3

    run(scenario())


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", DisconnectedError),
        (STREAM + chunk(b"data: 1\n\n"), DisconnectedError),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}", DisconnectedError),
        (b"nonsense\r\n\r\n", ProtocolError),
        (STREAM + b"zz\r\n", ProtocolError),
    ],
)
def test_an_answer_that_is_not_whole_is_an_error(answer: bytes, error: type[TransportError]) -> None:
    """A-383: the end of a connection is no end of an answer."""

    async def scenario() -> None:
        async with worker(answering_then_closing(answer)) as engine, behind(engine) as handler:
            with pytest.raises(error):
                await asked(handler)

    run(scenario())


def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    """RFC 9112 section 6.3: that is what such an answer says."""

    async def scenario() -> None:
        answer = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\nall of it"
        async with worker(answering_then_closing(answer)) as engine, behind(engine) as handler:
            assert await asked(handler) == (200, {"content-type": "text/plain"}, b"all of it")

    run(scenario())


def test_a_kill_ends_the_engines_work() -> None:
    """A-307: the engine sees that its client has left, before its answer and within it."""

    async def scenario() -> None:
        async with worker(silence) as engine, behind(engine) as handler:
            asking = asyncio.create_task(asked(handler))
            await eventually(lambda: engine.requests)
            asking.cancel()
            await eventually(lambda: engine.closed == 1)

        async def begins(conversation: Conversation) -> None:
            await conversation.request()
            conversation.send(STREAM + chunk(b"data: 1\n\n"))
            await conversation.closed()

        async with worker(begins) as engine, behind(engine) as handler:
            items = handler(call_request("generate", "POST", "/v1/completions", b"{}"), Context())
            assert [await anext(items), await anext(items)][1] == b"data: 1\n\n"
            await items.aclose()
            await eventually(lambda: engine.closed == 1)

    run(scenario())


def test_a_stop_ends_the_answer_with_what_there_is() -> None:
    """A-307: what was produced is delivered, then the engine may stop."""

    async def scenario() -> None:
        async def begins(conversation: Conversation) -> None:
            await conversation.request()
            conversation.send(STREAM + chunk(b"data: 1\n\n"))
            await conversation.closed()

        async with worker(begins) as engine, behind(engine) as handler:
            context = Context()
            items = handler(call_request("generate", "POST", "/v1/completions", b"{}"), context)
            await anext(items)
            assert await anext(items) == b"data: 1\n\n"
            context.stop()
            assert [item async for item in items] == []
            await eventually(lambda: engine.closed == 1)

    run(scenario())


def test_an_engine_is_read_no_faster_than_its_answer_is_taken() -> None:
    """A-381: what nobody takes waits at the engine, not here."""
    size, pieces = 65_536, 800

    async def scenario() -> None:
        sent = 0

        async def floods(conversation: Conversation) -> None:
            nonlocal sent
            await conversation.request()
            conversation.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (size * pieces))
            for _ in range(pieces):
                conversation.send(b"x" * size)
                await conversation.flush()
                sent += 1
            await conversation.closed()

        async with worker(floods) as engine, behind(engine) as handler:
            items = handler(call_request("generate", "POST", "/v1/completions", b"{}"), Context())
            await anext(items)
            taken = len(await anext(items))
            async for item in items:
                await asyncio.sleep(0)
                taken += len(item)
                assert sent * size - taken < size * pieces / 2, "the engine is far ahead"
            assert taken == size * pieces
            assert engine.connections == 1

    run(scenario())


@pytest.mark.parametrize(
    ("request_", "headers"),
    [
        (Request(endpoint="generate"), {}),
        (call_request("generate", "POST", "no path", b""), {}),
        (call_request("generate", "POST", "/v1/x y", b""), {}),
        (call_request("generate", "POST", "/v1/x", b""), {"x": "a\r\nb: c"}),
    ],
)
def test_what_is_no_call_is_refused(request_: Request, headers: dict[str, str]) -> None:
    """A-134: nothing that a peer says becomes a line of its own at the engine."""

    async def scenario() -> None:
        async with worker(answering(WHOLE)) as engine, behind(engine) as handler:
            with pytest.raises(TransportError) as refused:
                [item async for item in handler(request_, Context(headers=headers))]
            assert refused.value.code == "INVALID_ARGUMENT"
            assert not engine.requests

    run(scenario())
