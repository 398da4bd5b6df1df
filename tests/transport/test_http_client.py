"""The client of the request plane over HTTP/2 and what peers may do to it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from kvrouter.errors import (
    DeadlineError,
    DisconnectedError,
    ProtocolError,
    RefusedError,
    TransportError,
    UnreachableError,
)
from kvrouter.transport.context import Context
from kvrouter.transport.http_client import HttpAckClient, HttpRequestClient
from kvrouter.transport.http_connection import STREAM_WINDOW_BYTES
from kvrouter.transport.http_formats import answer_writer
from kvrouter.transport.http_origins import Origin, parse_http_address
from kvrouter.transport.messages import Request, encode_request
from kvrouter.transport.tcp_connection import Heartbeat
from tests.transport.conformance import eventually, run
from tests.transport.h2_peer import H2Peer, h2_peer

WRITER = answer_writer("binary", "raw")
ECHO = Request(endpoint="echo", body=b"x")


@asynccontextmanager
async def calling(
    on_request: Callable[[H2Peer, int], None],
    *,
    streams_max: int = 100,
    acknowledge_seconds: float = 60.0,
    connections_max: int = 50,
    heartbeat: Heartbeat | None = None,
) -> AsyncIterator[tuple[HttpRequestClient, str, list[H2Peer]]]:
    """A client and a peer that does as it is told."""
    client = HttpRequestClient(
        acknowledge_seconds=acknowledge_seconds,
        connect_seconds=30,
        connections_max=connections_max,
        heartbeat=heartbeat,
    )
    async with h2_peer(on_request, streams_max=streams_max) as (address, peers):
        try:
            yield client, address, peers
        finally:
            await client.aclose()


def begin(peer: H2Peer, stream_id: int) -> None:
    """Begin an answer, and leave it there."""
    peer.answer(stream_id, WRITER.prologue())


def ignore(peer: H2Peer, stream_id: int) -> None:
    """Never answer."""


# -- farewells and losses --------------------------------------------------------------------------------------------


def test_a_farewell_ends_the_streams_of_a_connection() -> None:
    """B.6, C.1.4: GOAWAY is a lost connection; retryable where no item was seen."""

    async def scenario() -> None:
        async with calling(begin) as (client, address, peers):
            waiting = await client.request(address, ECHO, Context())
            begun = await client.request(address, ECHO, Context())
            peers[0].h2.send_data(peers[0].requests[1], WRITER.item(0, b"one"))
            peers[0].goodbye()
            with pytest.raises(DisconnectedError, match="goodbye") as early:
                await waiting.collect()
            assert early.value.retryable
            assert await anext(begun) == b"one"
            with pytest.raises(DisconnectedError) as late:
                await anext(begun)
            assert not late.value.retryable
            assert client.origins.connections() == {}

    run(scenario())


def test_after_a_farewell_a_new_connection_is_made() -> None:
    """A-232: the next request does not know of the old one."""

    async def scenario() -> None:
        async with calling(begin) as (client, address, peers):
            await client.request(address, ECHO, Context())
            peers[0].goodbye()
            await eventually(lambda: not client.origins.connections())
            stream = await client.request(address, ECHO, Context())
            assert len(peers) == 2
            await stream.aclose()

    run(scenario())


@pytest.mark.parametrize("cut", [10, 24, 30])
def test_an_answer_that_is_cut_is_a_lost_connection(cut: int) -> None:
    """A-384: a body that ends within or between messages is no end of the stream."""

    def answer(peer: H2Peer, stream_id: int) -> None:
        peer.answer(stream_id, WRITER.prologue() + WRITER.item(0, b"one") + WRITER.item(1, b"two")[:cut], end=True)

    async def scenario() -> None:
        async with calling(answer) as (client, address, _):
            stream = await client.request(address, ECHO, Context())
            assert await anext(stream) == b"one"
            with pytest.raises((DisconnectedError, ProtocolError)):
                await stream.collect()

    run(scenario())


def test_a_cut_connection_ends_its_streams() -> None:
    """A-275: whatever was on its way."""

    async def scenario() -> None:
        async with calling(begin) as (client, address, peers):
            stream = await client.request(address, ECHO, Context())
            peers[0].transport.abort()
            with pytest.raises(DisconnectedError):
                await anext(stream)

    run(scenario())


def test_a_stream_that_the_peer_cancels_is_lost() -> None:
    """B.5: RST_STREAM instead of an end."""

    def answer(peer: H2Peer, stream_id: int) -> None:
        peer.answer(stream_id, WRITER.prologue())
        peer.h2.reset_stream(stream_id, 8)

    async def scenario() -> None:
        async with calling(answer) as (client, address, _):
            stream = await client.request(address, ECHO, Context())
            with pytest.raises(DisconnectedError, match="CANCEL"):
                await anext(stream)

    run(scenario())


def test_a_silent_connection_is_asked_for_a_sign_of_life() -> None:
    """B.6, B.12: pings are answered by the peer's HTTP/2, and the stream goes on."""

    async def scenario() -> None:
        beat = Heartbeat(interval_seconds=0.01, timeout_seconds=60)
        async with calling(begin, heartbeat=beat) as (client, address, peers):
            stream = await client.request(address, ECHO, Context())
            await eventually(lambda: peers[0].pings > 3)
            peers[0].h2.send_data(peers[0].requests[0], WRITER.item(0, b"one") + WRITER.end())
            peers[0].flush()
            assert await stream.collect() == [b"one"]

    run(scenario())


# -- who is there ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("greeting", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n" * 3, b"\0" * 100])
def test_a_peer_that_does_not_speak_http_2_is_not_reached(greeting: bytes) -> None:
    """A-137: silence, HTTP/1.1, anything else."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        await reader.read()
        writer.close()

    async def scenario() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        client = HttpRequestClient(connect_seconds=0.5)
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(UnreachableError):
            await client.request(f"http://127.0.0.1:{port}", ECHO, Context())
        await client.aclose()
        server.close()

    run(scenario())


def test_a_worker_that_does_not_take_the_request_is_given_up() -> None:
    """A-106, A-112: the acknowledgement has a time-out; the stream is cancelled."""

    async def scenario() -> None:
        async with calling(ignore, acknowledge_seconds=0.2) as (client, address, peers):
            with pytest.raises(UnreachableError, match="has not taken"):
                await client.request(address, ECHO, Context())
            await eventually(lambda: peers[0].resets == peers[0].requests)
            ack = HttpAckClient(acknowledge_seconds=0.2)
            with pytest.raises(UnreachableError, match="has not taken"):
                await ack.send(address, encode_request(ECHO, id="r", headers={}), Context())
            await ack.aclose()

    run(scenario())


def test_a_deadline_counts_before_the_acknowledgement_too() -> None:
    """A-106: whichever comes first."""

    async def scenario() -> None:
        async with calling(ignore) as (client, address, _):
            deadline = asyncio.get_running_loop().time() + 0.2
            with pytest.raises(DeadlineError):
                await client.request(address, ECHO, Context(deadline=deadline))
            with pytest.raises(DeadlineError):
                await client.request(address, ECHO, Context(deadline=deadline))

    run(scenario())


@pytest.mark.parametrize("address", ["127.0.0.1:80", "ftp://x", "http://", "http://x:99999", "http://[::1"])
def test_what_is_no_address_is_refused(address: str) -> None:
    """With the form that is expected."""
    with pytest.raises(TransportError, match="no address") as refusal:
        parse_http_address(address)
    assert refusal.value.code == "INVALID_ARGUMENT"


def test_addresses_have_a_path() -> None:
    """B.10: the base URL of the plane."""
    assert parse_http_address("http://[::1]:8081/v1/rpc/") == (Origin("http", "::1", 8081), "/v1/rpc")
    assert parse_http_address("https://worker") == (Origin("https", "worker", 443), "")
    assert Origin("http", "::1", 80).authority == "[::1]:80"


# -- answers that are none -------------------------------------------------------------------------------------------


def test_a_proxys_refusal_is_told() -> None:
    """A-210, A-211: whatever stands between."""

    def answer(peer: H2Peer, stream_id: int) -> None:
        peer.answer(stream_id, b"no healthy upstream", status="503", end=True, content_type="text/plain")

    async def scenario() -> None:
        async with calling(answer) as (client, address, _):
            with pytest.raises(RefusedError, match="no healthy upstream") as refusal:
                await client.request(address, ECHO, Context())
            assert refusal.value.code == "UNAVAILABLE"
            assert refusal.value.retryable

    run(scenario())


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"<html>", "text/html"),
        (b"\xff" * 40, "application/octet-stream"),
        (WRITER.item(0, b"")[:24] + WRITER.end()[:24].replace(b"\n", b"\x02") + b"[]", "application/octet-stream"),
        (b"event: bin\ndata: ***\n\n", "text/event-stream"),
        (b"no json\n", "application/x-ndjson"),
    ],
)
def test_an_answer_that_cannot_be_read_is_a_protocol_error(body: bytes, content_type: str) -> None:
    """The stream is cancelled; the connection goes on."""

    def answer(peer: H2Peer, stream_id: int) -> None:
        peer.answer(stream_id, body, content_type=content_type)

    async def scenario() -> None:
        async with calling(answer) as (client, address, peers):
            with pytest.raises(ProtocolError):
                await (await client.request(address, ECHO, Context())).collect()
            await eventually(lambda: peers[0].resets == peers[0].requests)
            assert len(peers) == 1

    run(scenario())


def test_headers_of_any_bytes_are_survived() -> None:
    """They are not looked at."""

    def answer(peer: H2Peer, stream_id: int) -> None:
        peer.answer(
            stream_id,
            WRITER.prologue() + WRITER.end(),
            end=True,
            x_odd="\udcff".encode(errors="surrogateescape").decode("latin-1"),
        )

    async def scenario() -> None:
        async with calling(answer) as (client, address, _):
            assert await (await client.request(address, ECHO, Context())).collect() == []

    run(scenario())


# -- connections and windows -----------------------------------------------------------------------------------------


def test_a_second_connection_is_made_when_the_first_is_nearly_full() -> None:
    """A-111, A-128, A-149, D-26: at four fifths of the streams that the peer takes."""

    async def scenario() -> None:
        async with calling(begin, streams_max=10) as (client, address, peers):
            streams = [await client.request(address, ECHO, Context()) for _ in range(9)]
            assert [len(peer.requests) for peer in peers] == [8, 1]
            for stream in streams:
                await stream.aclose()
            await client.request(address, ECHO, Context())
            assert len(peers) == 2

    run(scenario())


def test_with_all_connections_full_a_request_waits() -> None:
    """D-26: never more streams than the peer takes; the next one goes when one has ended."""

    async def scenario() -> None:
        async with calling(begin, streams_max=5, connections_max=1) as (client, address, peers):
            streams = [await client.request(address, ECHO, Context()) for _ in range(5)]
            waiting = asyncio.create_task(client.request(address, ECHO, Context()))
            soon = asyncio.get_running_loop().time() + 0.1
            with pytest.raises(DeadlineError):
                await client.request(address, ECHO, Context(deadline=soon))
            assert len(peers[0].requests) == 5
            await streams[0].aclose()
            await (await waiting).aclose()
            assert (len(peers), len(peers[0].requests)) == (1, 6)

    run(scenario())


def test_a_window_is_opened_only_as_the_reader_takes() -> None:
    """C.1.4: back-pressure from one end to the other; a second stream has a window of its own."""
    item = WRITER.item(0, bytes(16 << 10))

    def flood(peer: H2Peer, stream_id: int) -> None:
        peer.answer(stream_id, WRITER.prologue())
        while peer.h2.local_flow_control_window(stream_id) >= len(item):
            peer.h2.send_data(stream_id, item)

    async def scenario() -> None:
        async with calling(flood) as (client, address, peers):
            slow = await client.request(address, ECHO, Context())
            (peer,) = peers
            other = await client.request(address, ECHO, Context())
            assert len(await anext(other)) == 16 << 10
            first = peer.requests[0]
            assert peer.h2.local_flow_control_window(first) < len(item)
            for _ in range(STREAM_WINDOW_BYTES // len(item)):
                await anext(slow)
            await eventually(lambda: peer.h2.local_flow_control_window(first) >= STREAM_WINDOW_BYTES // 2)
            await slow.aclose()
            await other.aclose()
            await eventually(lambda: sorted(peer.resets) == sorted(peer.requests))

    run(scenario())


def test_a_closed_client_makes_no_requests() -> None:
    """It says so."""

    async def scenario() -> None:
        async with calling(begin) as (client, address, _):
            stream = await client.request(address, ECHO, Context())
            await client.aclose()
            with pytest.raises(DisconnectedError):
                await stream.collect()
            with pytest.raises(DisconnectedError, match="closed"):
                await client.request(address, ECHO, Context())

    run(scenario())


def test_further_items_need_an_answer_inline() -> None:
    """A GET has no way for them."""

    async def scenario() -> None:
        client = HttpRequestClient(answers="attached")
        with pytest.raises(TransportError) as failure:
            await client.request("http://127.0.0.1:1", Request(endpoint="upper", many_in=True), Context())
        assert failure.value.code == "UNIMPLEMENTED"
        await client.aclose()

    run(scenario())
