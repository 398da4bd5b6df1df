"""Failures after the first byte: the answer is cut so that the client can tell, and nobody else is asked."""

import asyncio
import json

import pytest

from .wire import (
    OK,
    STREAM_HEAD,
    Conversation,
    Script,
    answering,
    chunk,
    connected,
    post,
    proxying,
    until,
    worker,
)

pytestmark = pytest.mark.usefixtures("http_core")

EVENT = b'data: {"choices":[{"text":"a"}]}\n\n'


def _dying_after(*pieces: bytes) -> Script:
    """Script: answer this much, then reset the connection."""

    async def script(conversation: Conversation) -> None:
        await conversation.request()
        for piece in pieces:
            conversation.send(piece)
            await conversation.flush()

    return script


def _events(body: bytes) -> list[bytes]:
    return [event for event in body.split(b"\n\n") if event]


async def test_an_event_stream_ends_with_an_error_event_and_no_final_chunk() -> None:
    """A client library sees the error, a byte counter sees that the stream is short."""
    script = _dying_after(STREAM_HEAD, chunk(EVENT), chunk(EVENT))
    async with (
        worker(script) as w,
        worker(answering(OK)) as other,
        proxying(w.endpoint, other.endpoint) as (server, fleet),
        connected(server) as client,
    ):
        answer = await client.ask(post())

        *good, last = _events(answer.raw_body.replace(b"\r\n", b""))
        assert answer.raw_body.startswith(chunk(EVENT) + chunk(EVENT))
        assert len(good) == 2
        error = json.loads(last[last.index(b"data: ") + 6 :])["error"]
        assert (error["type"], error["code"]) == ("server_error", "worker_lost")
        assert not answer.whole
        assert await client.closed() == b""
        assert fleet.told == [("first_token", "w0"), ("upstream_lost", "w0")]
        assert other.requests == []
        assert server.statistics.truncated == 1


@pytest.mark.parametrize("lost", [1, 3, 20, len(EVENT) - 1, len(EVENT) + 1])
async def test_a_stream_cut_inside_a_chunk_still_reads_as_events(lost: int) -> None:
    """The error event is put where the client expects payload, after ending the event that was cut."""
    script = _dying_after(STREAM_HEAD, chunk(EVENT) + chunk(EVENT)[:-lost])
    async with worker(script) as w, proxying(w.endpoint) as (server, _), connected(server) as client:
        client.send(post())
        await client.head()
        raw = await client.closed()

        payload, position = b"", 0
        while (end := raw.find(b"\r\n", position)) >= 0:
            size = int(raw[position:end], 16)
            payload += raw[end + 2 : end + 2 + size]
            position = end + 4 + size
        last = _events(payload)[-1].strip()
        assert last.startswith(b"data: ")
        assert json.loads(last[6:])["error"]["code"] == "worker_lost"


async def test_a_json_answer_is_cut_short() -> None:
    """Fewer bytes than announced; no error text is mixed into the body."""
    script = _dying_after(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n", b'{"a":')
    async with worker(script) as w, proxying(w.endpoint) as (server, fleet), connected(server) as client:
        answer = await client.ask(post())

        assert answer.body == b'{"a":'
        assert not answer.whole
        assert fleet.outcomes == ["upstream_lost"]


async def test_a_chunked_answer_that_is_no_event_stream_is_cut_short() -> None:
    """Without its final chunk."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    async with (
        worker(_dying_after(head, chunk(b"[1,"))) as w,
        proxying(w.endpoint) as (server, _),
        connected(server) as client,
    ):
        answer = await client.ask(post())

        assert answer.raw_body == chunk(b"[1,")
        assert not answer.whole


async def test_an_answer_without_length_is_reset() -> None:
    """Its end is its close, so only a reset says that it is short."""

    async def script(conversation: Conversation) -> None:
        await conversation.request()
        conversation.send(b"HTTP/1.1 200 OK\r\n\r\npart")
        await conversation.closed()

    async with (
        worker(script) as w,
        proxying(w.endpoint, idle_seconds=0.2) as (server, fleet),
        connected(server) as client,
    ):
        client.send(post())
        await client.head()
        assert await client.reader.readexactly(4) == b"part"
        with pytest.raises(ConnectionResetError):
            await client.reader.readexactly(1)

        assert fleet.outcomes == ["timeout"]


async def test_a_malformed_chunk_cuts_the_answer() -> None:
    """What cannot be framed is not passed on."""
    received = asyncio.Event()

    async def script(conversation: Conversation) -> None:
        await conversation.request()
        conversation.send(STREAM_HEAD + chunk(EVENT))
        await received.wait()
        conversation.send(chunk(EVENT) + b"zz\r\nxx\r\n")
        await conversation.closed()

    async with worker(script) as w, proxying(w.endpoint) as (server, fleet), connected(server) as client:
        client.send(post())
        await client.head()
        assert await client.reader.readexactly(len(chunk(EVENT))) == chunk(EVENT)
        received.set()
        rest = await client.closed()

        assert b"zz" not in rest
        assert not rest.endswith(b"0\r\n\r\n")
        assert fleet.outcomes == ["bad_response"]


async def test_a_stream_that_falls_silent_is_ended() -> None:
    """The idle time within an answer is bounded; the worker is told to stop."""

    async def script(conversation: Conversation) -> None:
        await conversation.request()
        conversation.send(STREAM_HEAD + chunk(EVENT))
        await conversation.closed()

    async with (
        worker(script) as w,
        proxying(w.endpoint, idle_seconds=0.2) as (server, fleet),
        connected(server) as client,
    ):
        answer = await client.ask(post())

        assert b'"code":"worker_timeout"' in answer.raw_body
        assert not answer.whole
        assert fleet.outcomes == ["timeout"]
        await until(lambda: w.closed == 1)


async def test_an_http_10_event_stream_gets_its_error_event_too() -> None:
    """Without chunk framing, which that client does not know."""
    script = _dying_after(STREAM_HEAD, chunk(EVENT))
    async with worker(script) as w, proxying(w.endpoint) as (server, _), connected(server) as client:
        answer = await client.ask(b"POST /v1/completions HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}")

        assert answer.body.startswith(EVENT + b'data: {"error":')


async def test_usage_seen_before_the_cut_is_told() -> None:
    """Engines that repeat usage in every event have said what was cached."""
    event = b'data: {"usage":{"prompt_tokens":4,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":2}}}\n\n'
    async with (
        worker(_dying_after(STREAM_HEAD, chunk(event))) as w,
        proxying(w.endpoint) as (server, fleet),
        connected(server) as client,
    ):
        await client.ask(post())

        assert fleet.usages[0] is not None
        assert fleet.usages[0].cached_tokens == 2
