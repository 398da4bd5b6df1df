"""Requests of OpenAI clients reach workers over the request planes, end and fail there as they do over HTTP."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvrouter.errors import RefusedError, TransportError
from kvrouter.settings import LimitSettings
from kvrouter.transport.calls import answer_head
from kvrouter.transport.context import Context
from kvrouter.transport.messages import Request
from kvrouter.transport.openai import openai_handler
from kvrouter.transport.server_stream import Handler
from tests.planes.inprocess import MODEL, Routed, Words, chat, eventually, routed, run, worker
from tests.servers import NatsServer, nats_server


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """A nats-server."""
    with nats_server(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest.mark.parametrize("transport", ["tcp", "http", "zmq", "grpc"])
def test_a_worker_that_discovery_finds_answers_over_its_plane(tmp_path: Path, transport: str) -> None:
    """A-101, A-113, A-116, A-123, A-147: no broker, one handler, any plane; a whole answer and a streamed one."""

    async def scenario() -> None:
        words = Words("a")
        async with worker(tmp_path, words, transport) as served, routed(tmp_path, preferred=transport) as router:
            await router.ready()
            assert await router.said("one two") == "a one two"
            async with router.stream("three") as heard:
                assert [word async for word in heard] == ["a", "three"]
            [found] = router.service.registry
            assert found.spec.address == f"{transport}:{served.addresses[transport]}"
            assert found.models == (MODEL,)
            assert found.counters.outcomes == {"ok": 2}
            await eventually(lambda: router.figure("request_plane_inflight") == 0)
            assert not len(served.endpoints)

    run(scenario())


@pytest.mark.parametrize("transport", ["nats", "http", "tcp"])
def test_answers_that_call_home_come_home(tmp_path: Path, nats: NatsServer, transport: str) -> None:
    """A-119, A-201: requests over one way, answers over TCP, as the first Dynamo releases had it; a loss is noticed."""

    async def scenario() -> None:
        words = Words("a")
        options: dict[str, Any] = {"nats_server": nats.url, "answers_home": True}
        async with (
            worker(tmp_path, words, transport, **options),
            routed(tmp_path, preferred=transport, nats_server=nats.url) as router,
        ):
            await router.ready()
            assert await router.said("one two") == "a one two"
            async with router.stream("three") as heard:
                assert [word async for word in heard] == ["a", "three"]
            async with router.stream("wait") as heard:
                assert await anext(heard) == "a"
            await eventually(lambda: words.cancelled == 1)
            assert router.figure("transport_requests_total", transport="tcp", plane="response") >= 3
            assert router.figure("transport_requests_total", transport=transport, plane="request") >= 3
            planes = router.service.planes
            assert planes is not None
            async with router.stream("wait") as heard:
                assert await anext(heard) == "a"
                [instance] = planes.discovered.instances.values()
                planes.ways.lose(instance)  # as a minute after its record has gone
                assert [word async for word in heard] == ["error", "worker_lost", "cut"]

    run(scenario())


def test_what_a_client_says_beside_its_request_comes_along(tmp_path: Path) -> None:
    """A-110, A-145: trace context and ids; what concerns a connection only does not."""

    async def scenario() -> None:
        words = Words("a")
        async with worker(tmp_path, words), routed(tmp_path) as router:
            await router.ready()
            headers = {"traceparent": "00-1-2-01", "X-Request-Id": "mine", "X-Custom": "é", "Connection": "keep-alive"}
            encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
            answer = await router.client.post("/v1/chat/completions", json=chat("x"), headers=encoded)
            [told] = words.headers
            assert {name: told[name] for name in ("traceparent", "x-request-id", "x-custom")} == {
                "traceparent": "00-1-2-01", "x-request-id": "mine", "x-custom": "é",
            }  # fmt: skip
            assert not told.keys() & {"connection", "host", "content-length"}
            assert answer.headers["x-request-id"] == "mine"
            assert answer.headers["x-kvrouter-worker"] == next(iter(router.service.registry)).spec.worker_id

    run(scenario())


def test_a_worker_with_too_much_to_do_is_passed_over(tmp_path: Path) -> None:
    """A-120: nothing was done, so the next one is asked, whatever the plane; the first one is not left out for it."""

    async def scenario() -> None:
        busy, free = Words("busy"), Words("free")
        async with (
            worker(tmp_path, _overloaded(busy), handler=True, worker={"worker_id": "a"}),
            worker(tmp_path, free, worker={"worker_id": "b"}),
            routed(tmp_path) as router,
        ):
            await router.ready(2)
            said = {await router.said(f"{number}") for number in range(4)}
            assert said == {f"free {number}" for number in range(4)}
            assert router.service.proxy.statistics.retries == len(busy.asked) > 0
            assert all(each.health == "ready" for each in router.service.registry)

    run(scenario())


@pytest.mark.parametrize(("status", "after"), [(503, "3"), (529, "3"), (429, "3")])
def test_where_everybody_has_too_much_to_do_the_client_is_told_when_to_come_again(
    tmp_path: Path, status: int, after: str
) -> None:
    """B.3, B.6: 503 or what is set for it, and `Retry-After`, in OpenAI's shape."""

    async def scenario() -> None:
        async with (
            worker(tmp_path, _overloaded(Words("a")), handler=True),
            routed(tmp_path, overload_status=status) as router,
        ):
            await router.ready()
            answer = await router.chat()
            assert answer.status_code == status
            assert answer.headers["retry-after"] == after
            assert answer.json()["error"]["code"] == "worker_saturated"
            assert "too much to do" in answer.json()["error"]["message"]

    run(scenario())


def test_a_worker_that_takes_no_more_streams_is_passed_over(tmp_path: Path) -> None:
    """A-131, A-164: its own bound is as good as its handler's word."""

    async def scenario() -> None:
        waiting, free = Words("a"), Words("b")
        async with worker(tmp_path, waiting, streams_max=1, worker={"worker_id": "a"}), routed(tmp_path) as router:
            await router.ready()
            async with router.stream("wait") as heard:
                assert await anext(heard) == "a"
                refused = await router.chat()
                assert refused.status_code == 503
                assert refused.headers["retry-after"] == "1"
                async with worker(tmp_path, free):
                    await eventually(lambda: len(router.service.registry) == 2)
                    await eventually(lambda: any(not each.reasons() for each in router.service.registry))
                    await _said_by(router, "b")
                waiting.release.set()
                assert [word async for word in heard] == ["wait"]

    run(scenario())


def test_a_worker_that_is_lost_before_its_first_item_is_replaced(tmp_path: Path) -> None:
    """A-129, A-302: the request goes on elsewhere; the one that failed is looked at."""

    async def scenario() -> None:
        asked = []

        async def dies(request: Request, context: Context) -> AsyncIterator[bytes]:
            asked.append(context.id)
            if asked:
                raise TransportError("the engine is gone", code="UNAVAILABLE", retryable=True)
            yield b""

        async with (
            worker(tmp_path, _chats(dies), handler=True),
            worker(tmp_path, Words("left")),
            routed(tmp_path) as router,
        ):
            await router.ready(2)
            for number in range(4):
                assert await router.said(f"{number}") == f"left {number}"
            assert asked

    run(scenario())


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (TransportError("no such adapter", code="NOT_FOUND"), 404, "not_found"),
        (TransportError("the prompt is too long", code="INVALID_ARGUMENT"), 400, "invalid_argument"),
        (TransportError("not yours", code="PERMISSION_DENIED"), 403, "permission_denied"),
        (TransportError("not here", code="UNIMPLEMENTED"), 501, "unimplemented"),
        (ValueError("secret"), 500, "internal"),
    ],
)
def test_what_a_handler_refuses_is_an_error_as_clients_know_it(
    tmp_path: Path, error: Exception, status: int, code: str
) -> None:
    """A-210: its code is a status, and its text is told where it is one of ours; nobody else is asked."""

    async def scenario() -> None:
        async def refuses(body: dict[str, Any], context: Context) -> AsyncIterator[dict[str, Any]]:
            if body:
                raise error
            yield {}

        async with worker(tmp_path, refuses), routed(tmp_path) as router:
            await router.ready()
            answer = await router.chat()
            assert answer.status_code == status
            told = answer.json()["error"]
            assert told["code"] == code
            assert told["type"] == ("invalid_request_error" if status < 500 else "server_error")
            assert "secret" not in answer.text
            assert router.service.proxy.statistics.retries == 0

    run(scenario())


def test_an_answer_that_breaks_off_says_so_within_its_stream(tmp_path: Path) -> None:
    """A-384: after the first item nothing is repeated; the stream's last event is an error."""

    async def scenario() -> None:
        async def breaks(body: dict[str, Any], context: Context) -> AsyncIterator[dict[str, Any]]:
            yield {"choices": [{"index": 0, "delta": {"content": "begun"}}]}
            raise TransportError("out of memory", code="INTERNAL")

        async with worker(tmp_path, breaks), routed(tmp_path) as router:
            await router.ready()
            async with router.stream("x") as heard:
                assert [word async for word in heard] == ["begun", "error", "worker_failed", "cut"]
            [found] = router.service.registry
            assert found.counters.outcomes == {"error_status": 1}
            assert not found.reasons()

    run(scenario())


@pytest.mark.parametrize(
    ("items", "code"),
    [
        ([], "worker_bad_response"),
        ([b"no head"], "worker_bad_response"),
        ([b'{"status":99}'], "worker_bad_response"),
        ([b'{"status":200,"headers":{"x":"a\\r\\ny: b"}}'], "worker_bad_response"),
    ],
)
def test_an_answer_that_is_none_is_a_fault_of_the_worker(tmp_path: Path, items: list[bytes], code: str) -> None:
    """A-384: whoever cannot be understood has not answered, and headers are lines."""

    async def scenario() -> None:
        async def nonsense(request: Request, context: Context) -> AsyncIterator[bytes]:
            for item in items:
                yield item

        async with worker(tmp_path, _chats(nonsense), handler=True), routed(tmp_path) as router:
            await router.ready()
            answer = await router.chat()
            assert answer.status_code == 502
            assert answer.json()["error"]["code"] == code

    run(scenario())


def test_an_answer_that_is_shorter_than_it_says_is_cut(tmp_path: Path) -> None:
    """A-383: only an end makes an answer whole."""

    async def scenario() -> None:
        async def short(request: Request, context: Context) -> AsyncIterator[bytes]:
            yield answer_head("application/json", length=10)
            yield b"12345"

        async with worker(tmp_path, _chats(short), handler=True), routed(tmp_path) as router:
            await router.ready()
            with pytest.raises(Exception, match="without sending complete message body"):
                await router.chat()

    run(scenario())


def test_a_client_that_leaves_ends_the_work(tmp_path: Path) -> None:
    """A-307: the handler is cancelled, before its first item and after it, and what was booked is given back."""

    async def scenario() -> None:
        words = Words("a")
        async with worker(tmp_path, words) as served, routed(tmp_path) as router:
            await router.ready()
            async with router.stream("wait") as heard:
                assert await anext(heard) == "a"
            await eventually(lambda: words.cancelled == 1)
            asking = asyncio.create_task(router.chat("wait", stream=True))
            await eventually(lambda: len(words.asked) == 2)
            asking.cancel()
            await eventually(lambda: words.cancelled == 2)
            await eventually(lambda: not len(served.endpoints))
            await eventually(lambda: len(router.service.router.book) == 0)
            [found] = router.service.registry
            assert found.counters.outcomes == {"client_gone": 2}
            assert not found.reasons()
            assert router.figure("request_plane_inflight") == 0

    run(scenario())


def test_a_client_that_reads_slowly_holds_up_its_worker(tmp_path: Path) -> None:
    """A-381: credit reaches from the client's socket to the handler, and the rest comes when it reads again."""
    pieces, size = 2000, 16_384

    async def scenario() -> None:
        sent = 0

        async def floods(request: Request, context: Context) -> AsyncIterator[bytes]:
            nonlocal sent
            yield answer_head("application/json", length=pieces * size)
            for _ in range(pieces):
                yield b"x" * size
                sent += 1

        async with worker(tmp_path, _chats(floods), handler=True), routed(tmp_path) as router:
            await router.ready()
            reader, writer = await _raw_chat(router)
            await eventually(lambda: any(each.write_paused for each in router.service.proxy._connections))
            for _ in range(50):  # others are answered meanwhile; and time enough for a worker that nobody holds up
                assert (await router.client.get("/livez")).status_code == 200
            assert sent < pieces
            received = await reader.readexactly(pieces * size)
            assert received == b"x" * (pieces * size)
            await eventually(lambda: sent == pieces)
            writer.close()

    run(scenario())


def test_a_worker_that_says_nothing_is_given_up(tmp_path: Path) -> None:
    """A-106: the router's own bound, 504 for the client, a kill for the worker."""

    async def scenario() -> None:
        words = Words("a")
        limits = LimitSettings(first_byte_seconds=0.5, connect_seconds=30.0)
        async with worker(tmp_path, words), routed(tmp_path, limits=limits) as router:
            await router.ready()
            words.name = "wait"
            while not words.asked:  # A machine that stalls may not bring the first one there in time.
                answer = await router.chat("wait", stream=True)
                assert (answer.status_code, answer.json()["error"]["code"]) == (504, "worker_timeout")
            await eventually(lambda: words.cancelled == len(words.asked))

    run(scenario())


def test_headers_that_no_request_may_have_are_refused(tmp_path: Path) -> None:
    """A-110: what exceeds a request's bounds is the client's to change."""

    async def scenario() -> None:
        async with worker(tmp_path, Words("a")), routed(tmp_path) as router:
            await router.ready()
            headers = {f"x-{number}": "y" * 1000 for number in range(20)}
            answer = await router.client.post("/v1/chat/completions", json=chat("x"), headers=headers)
            assert answer.status_code == 413
            assert "16384" in answer.json()["error"]["message"]
            assert await router.said() == "a hello"

    run(scenario())


def test_a_client_that_asks_too_often_is_told_so_at_once(tmp_path: Path) -> None:
    """A-141: too much of one client is not too much of all: 429, `Retry-After`, and nobody else is asked."""

    async def scenario() -> None:
        async with worker(tmp_path, Words("a")) as served, routed(tmp_path) as router:
            await router.ready()
            admit = served.endpoints._admit

            def refuse(decoded: Any) -> Any:
                if decoded.request.metadata["target"] == "/v1/chat/completions":
                    raise RefusedError("slowly", code="RESOURCE_EXHAUSTED", retryable=False, retry_after_seconds=7)
                return admit(decoded)

            served.endpoints._admit = refuse  # type: ignore[method-assign]
            answer = await router.chat()
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
            assert answer.json()["error"]["code"] == "resource_exhausted"

    run(scenario())


def _answers(words: Words) -> Any:
    """The handler of a plain worker, for what another one does not answer itself."""
    return openai_handler([MODEL], {"/v1/chat/completions": words})


def _chats(answering: Handler) -> Handler:
    """A handler that answers chats so, and everything else as a plain worker does."""

    def handle(request: Request, context: Context) -> Any:
        chats = request.metadata["target"] == "/v1/chat/completions"
        return (answering if chats else _answers(Words("a")))(request, context)

    return handle


def _overloaded(words: Words) -> Any:
    """A handler that is well, and has too much to do."""

    async def refuse(request: Request, context: Context) -> AsyncIterator[bytes]:
        words.asked.append(json.loads(bytes(request.body)))
        if words.asked:
            raise RefusedError("too much to do", code="RESOURCE_EXHAUSTED", retry_after_seconds=2.5)
        yield b""

    return _chats(refuse)


async def _said_by(router: Routed, name: str) -> None:
    """Ask until a worker of that name has answered."""
    while not (await router.chat()).text.count(f'"{name} '):
        await asyncio.sleep(0.01)


async def _raw_chat(router: Routed) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Ask with a client of small buffers; the reader begins after the head of the answer."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", router.service.proxy.port))
    reader, writer = await asyncio.open_connection(sock=connection, limit=65_536)
    body = json.dumps(chat("x")).encode()
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
    assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
    return reader, writer
