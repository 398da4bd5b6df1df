"""Peers that answer wrongly, slowly or not at all: counted and survived, and never believed."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import parse_qs, urlsplit

import pytest

from kvrouter.errors import WireError
from kvrouter.events import Source
from kvrouter_subscribers.http_frames import split_frames
from tests.subscribers.http_scene import HASTY, PATIENT, ScriptedCore, http_scene, publisher
from tests.subscribers.scene import WORKER, run, stored, until

GOOD_HEAD = "KV-Incarnation: 0000000000000001\r\nKV-Next-Sequence: 3\r\n"
POSITION = f"HTTP/1.1 204 No Content\r\n{GOOD_HEAD}\r\n".encode()
Script = Callable[[str], bytes | None]


class RawPublisher:
    """A TCP server that answers every question as a script says; None is silence for ever."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.questions: list[str] = []
        self.connections = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                target = head.split(b" ")[1].decode()
                self.questions.append(target)
                answer = self.script(target)
                if answer is None:
                    await asyncio.Event().wait()
                    return
                writer.write(answer)
                await writer.drain()
                if b"Content-Length" not in answer and b" 204 " not in answer and b"chunked" not in answer:
                    break
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()


@asynccontextmanager
async def raw(script: Script) -> AsyncIterator[tuple[str, RawPublisher]]:
    """A raw publisher on a free port, and its endpoint."""
    served = RawPublisher(script)
    server = await asyncio.start_server(served.serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", served
    finally:
        server.close()
        served.stop()
        await asyncio.sleep(0)


def is_position(target: str) -> bool:
    """Whether a question is the first one of a connection."""
    return urlsplit(target).path == "/kv_events" and "after" not in parse_qs(urlsplit(target).query)


def body(data: bytes, *, status: str = "200 OK", head: str = GOOD_HEAD) -> bytes:
    """A whole answer."""
    return f"HTTP/1.1 {status}\r\n{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def frames(*sequences: int, source: Source = WORKER) -> bytes:
    """Stores of blocks, one per batch."""
    core = ScriptedCore(source)
    return b"".join(core.frame(sequence, [stored(sequence)]) for sequence in sequences)


GARBAGE = {
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "a web page": b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>",
    "no length": b"HTTP/1.1 200 OK\r\n\r\nabc",
    "a length that is no number": b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "a length and chunks": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "an unknown coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "a body that is cut": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc",
    "more than is allowed": b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
    "an endless head": b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200_000,
    "a malformed header": b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
    "an error without a reason": body(b"", status="500 Oops", head=""),
    "bad chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n\r\n",
    "chunks that lie": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabcd\r\n0\r\n\r\n",
    "a redirect": b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
    "nothing": b"",
}


@pytest.mark.parametrize("answer", list(GARBAGE.values()), ids=list(GARBAGE))
@pytest.mark.parametrize("when", ["at first", "after the position"])
def test_whatever_a_peer_answers_the_subscriber_tries_again(answer: bytes, when: str) -> None:
    """With pauses, with the reason in the status, and believing nothing."""

    async def scenario() -> None:
        def script(target: str) -> bytes:
            return POSITION if when != "at first" and is_position(target) else answer

        async with raw(script) as (endpoint, served), http_scene(HASTY) as stage:
            stage.listen(endpoint)
            await until(lambda: served.connections >= 4)
            await until(lambda: stage.status().last_error)

            assert stage.sink.receipts == []
            assert stage.status().connected in {False, when != "at first"}
            assert (stage.status().connects > 0) is (when != "at first")

    run(scenario())


WRONG_BATCHES = {
    "another worker's": frames(0, source=Source("other", 0)),
    "another rank's": frames(0, source=Source("worker", 1)),
    "cut": frames(0)[:-1],
    "followed by garbage": frames(0) + b"garbage",
    "no envelope": b"\x93\x00\x90\xc0",
    "of a later major version": frames(0).replace(b"kvrouter\x92\x01", b"kvrouter\x92\x02"),
}


@pytest.mark.parametrize("data", list(WRONG_BATCHES.values()), ids=list(WRONG_BATCHES))
def test_batches_that_are_not_the_sources_own_are_counted(data: bytes) -> None:
    """And the connection that brought them is given up."""

    async def scenario() -> None:
        def script(target: str) -> bytes:
            return POSITION if is_position(target) else body(data)

        async with raw(script) as (endpoint, _), http_scene() as stage:
            stage.listen(endpoint)
            await until(lambda: stage.status().malformed >= 3)

            assert stage.status().connects >= 2
            assert {sequence for _, sequence, _ in stage.sink.receipts} <= {0}

    run(scenario())


def test_a_peer_that_repeats_itself_does_not_turn_the_loop() -> None:
    """A cursor that does not move is an error, with a pause, and not another question at once."""

    async def scenario() -> None:
        def script(target: str) -> bytes:
            return POSITION if is_position(target) else body(frames(0, 1, 2))

        async with raw(script) as (endpoint, served), http_scene() as stage:
            stage.listen(endpoint)
            await until(lambda: stage.status().malformed >= 3)

            assert "came where one after" in str(stage.status().last_error)
            assert len(served.questions) <= 6 * served.connections

    run(scenario())


def test_lives_that_alternate_are_followed_ever_more_slowly() -> None:
    """Two publishers behind one address: each answer is of another life, and each costs a replay."""

    async def scenario() -> None:
        cores = [ScriptedCore(incarnation=1), ScriptedCore(incarnation=2)]
        turns = iter(range(10**9))

        def script(target: str) -> bytes:
            if is_position(target):
                return POSITION
            return body(cores[next(turns) % 2].frame(5, [stored(1)]))

        async with raw(script) as (endpoint, served), http_scene() as stage:
            stage.listen(endpoint)
            await until(lambda: len(served.questions) > 30)

            assert len(served.questions) < 10 * served.connections

    run(scenario())


def test_a_peer_that_never_answers_is_given_up_and_tried_again() -> None:
    """That is what a half-open connection looks like."""

    async def scenario() -> None:
        def script(target: str) -> bytes | None:
            return POSITION if is_position(target) else None

        async with raw(script) as (endpoint, _), http_scene(HASTY) as stage:
            stage.listen(endpoint)
            await until(lambda: stage.status().disconnects >= 2)

            assert "half open" in str(stage.status().last_error)
            assert ("disconnected", WORKER) in stage.sink.calls

    run(scenario())


def test_an_answer_that_stops_in_the_middle_is_given_up() -> None:
    """What came of it is not handed over: it could not be told from a whole one."""

    async def scenario() -> None:
        data = frames(0, 1)

        def script(target: str) -> bytes:
            return POSITION if is_position(target) else body(data)[:-5] + b""

        async with raw(script) as (endpoint, _), http_scene(HASTY) as stage:
            stage.listen(endpoint)
            await until(lambda: stage.status().disconnects >= 2)

            assert stage.sink.receipts == []

    run(scenario())


def test_a_connection_that_is_closed_between_polls_is_replaced_in_silence() -> None:
    """Proxies close kept connections whenever they like; nothing is lost by it."""

    async def scenario() -> None:
        core = ScriptedCore()
        async with publisher(core) as served, http_scene(PATIENT) as stage:
            stage.listen(served.endpoint)
            for number in range(20):
                served.publish(core, number)
                await until(lambda number=number: stage.sink.holds(number))  # type: ignore[misc]
                for connection in list(served.server.connections):
                    connection.cut()

            assert stage.status().connected
            assert [sequence for _, sequence, _ in stage.sink.receipts] == list(range(20))

    run(scenario())


def test_chunked_answers_are_read() -> None:
    """A proxy may send them so."""

    async def scenario() -> None:
        data = frames(0, 1, 2)
        chunks = b"".join(b"%x;a=b\r\n%b\r\n" % (len(piece), piece) for piece in (data[:7], data[7:100], data[100:]))
        whole = f"HTTP/1.1 200 OK\r\n{GOOD_HEAD}Transfer-Encoding: chunked\r\n\r\n".encode() + chunks

        def script(target: str) -> bytes | None:
            if is_position(target):
                return POSITION
            if parse_qs(urlsplit(target).query)["after"] == ["-1"]:
                return whole + b"0\r\nTrailer: 1\r\n\r\n"
            return None

        async with raw(script) as (endpoint, _), http_scene() as stage:
            stage.listen(endpoint)
            await until(lambda: stage.sink.holds(0, 1, 2))

    run(scenario())


def test_nothing_listens_and_then_something_does() -> None:
    """A publisher may come later than its subscriber."""

    async def scenario() -> None:
        core = ScriptedCore()
        async with publisher(core) as first:
            port = first.port
        async with http_scene() as stage:
            stage.listen(f"http://127.0.0.1:{port}")
            await until(lambda: stage.status().last_error)
            async with publisher(core, port=port) as served:
                served.publish(core, 1)
                await stage.holds(1)

                assert stage.status().connects == 1

    run(scenario())


def test_a_prefix_stands_before_every_path() -> None:
    """As where an engine's own web server has the application mounted."""

    async def scenario() -> None:
        async with raw(lambda _: None) as (endpoint, served), http_scene() as stage:
            stage.listen(f"{endpoint}/a/kv/")
            await until(lambda: served.questions)

            assert served.questions[0] == "/a/kv/kv_events?worker=worker&rank=0"

    run(scenario())


def test_any_bytes_as_a_body_are_cut_into_frames_or_refused() -> None:
    """A million ways to be wrong, one error."""
    good, chance = frames(0, 1, 2), random.Random(7)
    assert [len(frame) for frame in split_frames(good)] == [len(frames(0))] * 3

    for _ in range(3000):
        data = bytearray(good)
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            pieces = list(split_frames(bytes(data[: chance.randrange(len(data))])))
        except WireError:
            continue
        assert sum(map(len, pieces)) <= len(data)
