"""Whole exchanges: what goes in comes out, byte for byte, and nothing that concerns only a neighbour goes through."""

import asyncio
import json
import socket
import tempfile

import pytest

from kvrouter.service.proxy import Endpoint

from .wire import (
    OK,
    STREAM_HEAD,
    Conversation,
    Fleet,
    answering,
    answering_then_closing,
    chunk,
    connected,
    get,
    post,
    proxying,
    until,
    worker,
)

pytestmark = pytest.mark.usefixtures("http_core")


def _lines(head: bytes) -> dict[bytes, bytes]:
    pairs = [line.partition(b":") for line in head.split(b"\r\n")[1:] if line]
    return {name.lower(): value.strip() for name, _, value in pairs}


async def test_a_request_reaches_the_worker_unchanged() -> None:
    """Method, target, headers and body are kept; unknown fields and odd spacing too."""
    body = b'{"model": "m",\n  "unknown_field": [1,2 ,3], "text": "\xc3\xa9"}'
    async with worker(answering(OK)) as w, proxying(w.endpoint) as (server, _), connected(server) as client:
        await client.ask(post(body, "/v1/completions?a=1&b=%20", "X-Custom:  Some Value \r\nUser-Agent: t/1\r\n"))

        head, received = w.requests[0]
        assert head.startswith(b"POST /v1/completions?a=1&b=%20 HTTP/1.1\r\n")
        assert b"\r\nX-Custom:  Some Value \r\n" in head
        assert _lines(head)[b"user-agent"] == b"t/1"
        assert received == body


async def test_an_answer_reaches_the_client_unchanged() -> None:
    """Status line, headers and body are kept; only our own lines are added."""
    answer = b"HTTP/1.1 201 Very Created\r\nDate: now\r\nX-Odd:  value \r\nContent-Length: 5\r\n\r\n\x00\xff\r\n\r"
    async with worker(answering(answer)) as w, proxying(w.endpoint) as (server, _), connected(server) as client:
        received = await client.ask(post(headers="X-Request-Id: abc\r\n"))

        assert received.head.startswith(b"HTTP/1.1 201 Very Created\r\nDate: now\r\nX-Odd:  value \r\n")
        assert received.body == b"\x00\xff\r\n\r"
        added = set(received.headers) - {"date", "x-odd", "content-length"}
        assert added == {"x-request-id", "x-kvrouter-worker", "x-kvrouter-overlap-tokens"}
        assert received.headers["x-kvrouter-worker"] == "w0"
        assert received.headers["x-kvrouter-overlap-tokens"] == "128"


async def test_a_stream_keeps_its_chunks() -> None:
    """Chunks are passed on with their own sizes, extensions and trailers, not re-chunked."""
    raw = chunk(b"data: 1\n\n") + b"9;ext=1\r\ndata: 2\n\n\r\n" + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    async with (
        worker(answering(STREAM_HEAD, *[raw[i : i + 7] for i in range(0, len(raw), 7)])) as w,
        proxying(w.endpoint) as (server, fleet),
        connected(server) as client,
    ):
        received = await client.ask(post())

        assert received.raw_body == raw
        assert received.whole
        assert fleet.told == [("first_token", "w0"), ("ok", "w0")]


async def test_each_event_is_passed_on_at_once() -> None:
    """The client has an event before the worker writes the next one."""
    step = asyncio.Event()

    async def script(conversation: Conversation) -> None:
        await conversation.request()
        conversation.send(STREAM_HEAD)
        for number in range(3):
            conversation.send(chunk(b"data: %d\n\n" % number))
            await step.wait()
            step.clear()
        conversation.send(b"0\r\n\r\n")

    async with worker(script) as w, proxying(w.endpoint) as (server, _), connected(server) as client:
        client.send(post())
        await client.head()
        for number in range(3):
            assert await client.reader.readexactly(14) == chunk(b"data: %d\n\n" % number)
            step.set()

        assert await client.reader.readexactly(5) == b"0\r\n\r\n"


async def test_hop_by_hop_headers_go_no_further() -> None:
    """Connection, what it nominates, and the other single-hop headers are removed both ways."""
    hop = (
        "Connection: keep-alive, X-Private\r\nX-Private: 1\r\nKeep-Alive: 5\r\nTE: trailers\r\nProxy-Connection: x\r\n"
    )
    hop += "Upgrade: h2c\r\nProxy-Authorization: x\r\nX-Kvrouter-Worker: forged\r\nX-Public: 1\r\n"
    answer = OK.replace(b"\r\n\r\n", b"\r\n" + hop.encode() + b"\r\n", 1)
    async with worker(answering(answer)) as w, proxying(w.endpoint) as (server, _), connected(server) as client:
        received = await client.ask(post(headers=hop))

        sent = _lines(w.requests[0][0])
        assert set(sent) == {b"host", b"content-length", b"x-public", b"x-request-id"}
        got = {*received.headers} - {"x-request-id", "x-kvrouter-worker", "x-kvrouter-overlap-tokens"}
        assert got == {"content-type", "content-length", "x-public"}
        assert received.headers["x-kvrouter-worker"] == "w0"


@pytest.mark.parametrize(
    ("sent", "kept"),
    [("abc-1", True), ("x" * 128, True), ("x" * 129, False), ("a b", False), ("é", False), ("", False)],
)
async def test_a_request_id_is_kept_if_it_is_usable(sent: str, kept: bool) -> None:
    """1 to 128 visible ASCII characters are kept, anything else is replaced; both sides see the same id."""
    async with worker(answering(OK)) as w, proxying(w.endpoint) as (server, fleet), connected(server) as client:
        received = await client.ask(post(headers=f"X-Request-Id: {sent}\r\n"))

        identity = received.headers["x-request-id"]
        assert (identity == sent) is kept
        assert identity
        assert _lines(w.requests[0][0])[b"x-request-id"].decode() == identity == fleet.requests[0].id


async def test_ids_that_we_make_differ() -> None:
    """Two requests without an id get two."""
    async with worker(answering(OK)) as w, proxying(w.endpoint) as (server, _), connected(server) as client:
        first, second = await client.ask(post()), await client.ask(post())

        assert first.headers["x-request-id"] != second.headers["x-request-id"]


async def test_the_workers_own_request_id_is_replaced() -> None:
    """An engine that answers with another id does not confuse the client."""
    answer = OK.replace(b"\r\n\r\n", b"\r\nX-Request-Id: engine\r\n\r\n", 1)
    async with worker(answering(answer)) as w, proxying(w.endpoint) as (server, _), connected(server) as client:
        received = await client.ask(post(headers="X-Request-Id: mine\r\n"))

        assert received.head.lower().count(b"x-request-id") == 1
        assert received.headers["x-request-id"] == "mine"


async def test_route_headers_can_be_switched_off() -> None:
    """Without them an answer does not tell where it came from."""
    async with (
        worker(answering(OK)) as w,
        proxying(w.endpoint, route_headers=False) as (server, _),
        connected(server) as client,
    ):
        received = await client.ask(post())

        assert not [name for name in received.headers if name.startswith("x-kvrouter")]


async def test_the_endpoint_decides_host_prefix_and_authorization() -> None:
    """A worker behind a path, with a key of its own, sees these and not the client's."""
    async with (
        worker(answering(OK), host_header=b"engine:8000", path_prefix=b"/base", authorization=b"Bearer engine") as w,
        proxying(w.endpoint) as (server, _),
        connected(server) as client,
    ):
        await client.ask(post(headers="Authorization: Bearer client\r\n"))

        head = w.requests[0][0]
        assert head.startswith(b"POST /base/v1/completions HTTP/1.1\r\nhost: engine:8000\r\n")
        assert head.lower().count(b"authorization") == 1
        assert b"Bearer engine" in head


@pytest.mark.parametrize(("given", "expected"), [(None, b"Bearer client"), (b"", None)])
async def test_the_clients_authorization_is_kept_or_removed(given: bytes | None, expected: bytes | None) -> None:
    """None keeps the client's key, an empty value removes it."""
    async with (
        worker(answering(OK), authorization=given) as w,
        proxying(w.endpoint) as (server, _),
        connected(server) as client,
    ):
        await client.ask(post(headers="Authorization: Bearer client\r\n"))

        assert _lines(w.requests[0][0]).get(b"authorization") == expected


async def test_extra_headers_of_a_route_replace_the_clients() -> None:
    """A data-parallel rank is the router's choice, whatever the client sent."""
    async with worker(answering(OK)) as w:
        fleet = Fleet(w.endpoint, extra_headers=b"X-data-parallel-rank: 1\r\n")
        async with proxying(fleet=fleet) as (server, _), connected(server) as client:
            await client.ask(post(headers="x-Data-Parallel-Rank: 0\r\nX-Other: 2\r\n"))

            head = w.requests[0][0]
            assert head.lower().count(b"x-data-parallel-rank") == 1
            assert _lines(head)[b"x-data-parallel-rank"] == b"1"
            assert _lines(head)[b"x-other"] == b"2"


async def test_a_worker_on_a_unix_socket() -> None:
    """An endpoint may be a socket in the file system."""
    served: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(OK)
        await reader.read()
        writer.close()

    with tempfile.TemporaryDirectory() as folder:
        unix = await asyncio.start_unix_server(serve, f"{folder}/admin.sock")
        async with (
            proxying(Endpoint("", 0, unix_path=f"{folder}/admin.sock")) as (server, _),
            connected(server) as client,
        ):
            received = await client.ask(get())
        unix.close()

    assert received.body == b"{}"
    assert _lines(served[0])[b"host"] == b"localhost"


async def test_connections_are_reused_on_both_sides() -> None:
    """Many requests of one client need one connection to the worker."""
    async with worker(answering(OK)) as w, proxying(w.endpoint) as (server, _), connected(server) as client:
        for _ in range(20):
            received = await client.ask(post())

        assert w.connections == 1
        assert "connection" not in received.headers
        assert server.statistics.connections_accepted == 1


async def test_a_worker_that_says_close_is_not_reused() -> None:
    """Connection: close is between the worker and us; the client's connection stays."""
    answer = OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)
    async with worker(answering(answer)) as w, proxying(w.endpoint) as (server, _), connected(server) as client:
        first, second = await client.ask(post()), await client.ask(post())

        assert w.connections == 2
        assert "connection" not in first.headers
        assert second.body == b"{}"


async def test_the_client_may_ask_to_close() -> None:
    """Connection: close is answered in kind, and the connection ends."""
    async with worker(answering(OK)) as w, proxying(w.endpoint) as (server, _), connected(server) as client:
        received = await client.ask(post(headers="Connection: close\r\n"))

        assert received.headers["connection"] == "close"
        assert await client.closed() == b""
        await client.closed()
        assert b"connection" not in w.requests[0][0].lower()


async def test_head_has_no_body_whatever_its_length_says() -> None:
    """The next request on both connections is not confused."""
    head_only = b"HTTP/1.1 200 OK\r\ncontent-length: 999\r\n\r\n"

    async def script(conversation: Conversation) -> None:
        await conversation.request()
        conversation.send(head_only)
        await conversation.request()
        conversation.send(OK)
        await conversation.closed()

    async with worker(script) as w, proxying(w.endpoint) as (server, _), connected(server) as client:
        first = await client.ask(b"HEAD /v1/models HTTP/1.1\r\nHost: t\r\n\r\n", method="HEAD")
        second = await client.ask(post())

        assert first.headers["content-length"] == "999"
        assert second.body == b"{}"
        assert w.connections == 1


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
async def test_answers_without_a_body_by_status(status: bytes) -> None:
    """204 and 304 end with their head."""
    script = answering(b"HTTP/1.1 " + status + b"\r\nx: y\r\n\r\n")
    async with worker(script) as w, proxying(w.endpoint) as (server, _), connected(server) as client:
        first, second = await client.ask(post()), await client.ask(post())

        assert first.status == second.status == int(status[:3])
        assert w.connections == 1


async def test_an_answer_without_length_lasts_until_close() -> None:
    """The client sees the same: everything, then the end of the connection."""
    script = answering_then_closing(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n", b"one ", b"two")
    async with worker(script) as w, proxying(w.endpoint) as (server, fleet), connected(server) as client:
        received = await client.ask(post())

        assert received.body == b"one two"
        assert received.headers["connection"] == "close"
        assert fleet.outcomes == ["ok"]


async def test_interim_answers() -> None:
    """103 goes through, 100 is ours to send, the final answer follows."""
    early = b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"
    script = answering(b"HTTP/1.1 100 Continue\r\n\r\n" + early, OK)
    async with worker(script) as w, proxying(w.endpoint) as (server, _), connected(server) as client:
        first = await client.ask(post())
        second = await client.answer()

        assert first.head == early
        assert second.status == 200


async def test_an_http_10_client_gets_plain_bytes() -> None:
    """Chunked framing is taken off for a client that does not know it, and the end is the end of the connection."""
    script = answering(STREAM_HEAD, chunk(b"data: 1\n\n"), chunk(b"data: 2\n\n") + b"0\r\n\r\n")
    async with worker(script) as w, proxying(w.endpoint) as (server, _), connected(server) as client:
        received = await client.ask(b"POST /v1/completions HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}")

        assert "transfer-encoding" not in received.headers
        assert received.body == b"data: 1\n\ndata: 2\n\n"
        assert w.requests[0][0].startswith(b"POST /v1/completions HTTP/1.1\r\n")


async def test_an_http_10_client_may_keep_its_connection() -> None:
    """Where the length is known and the client asks for it."""
    request = b"GET /v1/models HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    async with worker(answering(OK)) as w, proxying(w.endpoint) as (server, _), connected(server) as client:
        first, second = await client.ask(request), await client.ask(request)

        assert first.headers["connection"] == second.headers["connection"] == "keep-alive"


async def test_an_upgrade_is_ignored() -> None:
    """A client that offers another protocol is answered in this one (RFC 9110 section 7.8)."""
    async with worker(answering(OK)) as w, proxying(w.endpoint) as (server, _), connected(server) as client:
        received = await client.ask(get(headers="Connection: Upgrade\r\nUpgrade: websocket\r\n"))

        assert received.status == 200
        assert b"upgrade" not in w.requests[0][0].lower()


async def test_nagle_is_off_on_both_sides() -> None:
    """A small event never waits for an acknowledgement."""
    flags: list[int] = []
    original = socket.TCP_NODELAY

    async def script(conversation: Conversation) -> None:
        await conversation.request()
        conversation.send(OK)
        await conversation.closed()

    async with worker(script) as w, proxying(w.endpoint) as (server, _), connected(server) as client:
        await client.ask(post())
        clients, workers = server._connections, server.pool._endpoints[w.endpoint].idle
        for transport in (*(each._transport for each in clients), *(each._transport for each in workers)):
            assert transport is not None
            flags.append(transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, original))

    assert flags == [1, 1]


async def test_usage_is_found_in_an_answer_and_in_a_stream() -> None:
    """The dispatcher learns what the engine says the request cost."""
    usage = {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 8}}
    whole = json.dumps({"choices": [{"text": "x" * 9000}], "usage": usage}).encode()
    events = chunk(b'data: {"choices":[{"text":"y"}],"usage":null}\n\n') * 300
    last = chunk(b'data: {"choices":[],"usage":' + json.dumps(usage).encode() + b"}\n\n") + chunk(b"data: [DONE]\n\n")

    async def script(conversation: Conversation) -> None:
        await conversation.request()
        conversation.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(whole) + whole)
        await conversation.request()
        conversation.send(STREAM_HEAD + events)
        await conversation.flush()
        conversation.send(last + b"0\r\n\r\n")
        await conversation.closed()

    async with worker(script) as w, proxying(w.endpoint) as (server, fleet), connected(server) as client:
        await client.ask(post())
        await client.ask(post())
        await until(lambda: len(fleet.usages) == 2)

        for found in fleet.usages:
            assert found is not None
            assert (found.prompt_tokens, found.completion_tokens, found.cached_tokens) == (9, 4, 8)


async def test_a_workers_error_is_passed_on_and_told() -> None:
    """500 and more count as error_status, 400 does not; first_token only for success."""
    script = answering(b"HTTP/1.1 %b\r\ncontent-length: 1\r\n\r\nx" % b"503 Busy")
    async with worker(script) as w, proxying(w.endpoint) as (server, fleet), connected(server) as client:
        received = await client.ask(post())

        assert (received.status, received.body) == (503, b"x")
        assert fleet.told == [("error_status", "w0")]
        assert fleet.statuses == [503]


async def test_a_local_reply_needs_no_worker() -> None:
    """The dispatcher's own answers carry length, date and request id."""
    async with proxying() as (server, _), connected(server) as client:
        alive = await client.ask(get("/livez"))
        head = await client.ask(b"HEAD /livez HTTP/1.1\r\nHost: t\r\n\r\n", method="HEAD")
        echo = await client.ask(post(b"hello", "/echo"))

        assert (alive.status, alive.body, head.body, echo.body) == (200, b"alive", b"", b"hello")
        assert {"x-request-id", "date", "content-length"} <= set(alive.headers)
        assert head.headers["content-length"] == "5"
