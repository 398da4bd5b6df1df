"""Connections that we read ourselves: real publishers, and peers that are wrong, slow, old or hostile."""

import asyncio
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import uvloop
import zmq

from kvrouter import native_core
from kvrouter.events import Source
from kvrouter_publishers import ZmqEventPublisher
from kvrouter_subscribers import CurveKeys, Receipt, ZmqEventSubscriber, zmtp_frames
from tests.subscribers.scene import (
    ANY_TCP,
    QUICK,
    WORKER,
    RecordingSink,
    listening,
    run,
    scene,
    scripted,
    stored,
    until,
)
from tests.subscribers.scene import payload as encoded
from tests.subscribers.zmtp_peer import GREETING, READY, Peer, batch, message, zmtp_peer

pytestmark = pytest.mark.usefixtures("direct")
HASTY = replace(QUICK, reconnect_seconds_max=0.05, handshake_seconds_max=5.0)


@pytest.fixture
def direct() -> Iterator[None]:
    """Without the core libzmq reads, and all of this is its business."""
    if native_core.present:
        yield
        return
    patch = pytest.MonkeyPatch()
    patch.setattr("kvrouter_subscribers.live_stream.native", _Reference)
    yield
    patch.undo()


class _Reference:
    """The core's part in it, done by the reference."""

    cut_messages = staticmethod(zmtp_frames.cut_messages)


def block(number: int) -> bytes:
    """The batch that stores block `number`."""
    return batch(number, encoded([stored(number)]))


async def hold(peer: Peer) -> None:
    """Stay connected until the subscriber goes."""
    await peer.until_closed()


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46",
        b"\xff" + bytes(8) + b"\x00",
        GREETING[:30],
        GREETING,
        GREETING + READY[:-3],
        GREETING + zmtp_frames.ready(b"SUB"),
        GREETING + zmtp_frames.ready(b"ROUTER"),
        GREETING + zmtp_frames.frame(b"\x05ERROR\x07Go away", command=True),
        GREETING + zmtp_frames.frame(b"\x05READY\x0bSocket-Type\xff\xff\xff\xffPUB", command=True),
        GREETING + zmtp_frames.frame(b"\x05READY", command=True),
        GREETING + zmtp_frames.frame(b"\x05HELLO", command=True),
        GREETING + zmtp_frames.frame(bytes(5000), command=True),
        GREETING + message(b"", bytes(8), b"too early"),
        GREETING + b"\xff" * 20,
    ],
)
def test_who_does_not_shake_hands_as_a_publisher_is_no_publisher(said: bytes) -> None:
    """He is reported, never counted as a connection, and tried again: the right one may come to that address."""

    async def scenario() -> None:
        calls = 0

        async def story(peer: Peer) -> None:
            nonlocal calls
            calls += 1
            peer.writer.write(said)
            await peer.writer.drain()
            if said != GREETING[:30]:
                await asyncio.wait_for(peer.reader.read(10_000), 30)

        async with zmtp_peer(story) as endpoint, scene(HASTY) as stage:
            stage.listen(endpoint)

            await until(lambda: calls >= 2)

            assert "handshake failed" in (stage.status().last_error or "")
            assert (stage.status().connects, stage.status().disconnects, stage.status().fallbacks) == (0, 0, 0)
            assert stage.sink.calls == []

    run(scenario())


@pytest.mark.parametrize("said", [b"", GREETING[:5], GREETING])
def test_a_handshake_that_takes_too_long_is_given_up(said: bytes) -> None:
    """Somebody who accepts connections and says nothing must not be waited for."""

    async def scenario() -> None:
        calls = 0

        async def story(peer: Peer) -> None:
            nonlocal calls
            calls += 1
            peer.writer.write(said)
            await peer.until_closed()

        async with zmtp_peer(story) as endpoint, scene(replace(HASTY, handshake_seconds_max=0.1)) as stage:
            stage.listen(endpoint)

            await until(lambda: calls >= 2)

            assert "no answer in 0.1 s" in (stage.status().last_error or "")

    run(scenario())


@pytest.mark.parametrize(
    "greeting",
    [
        GREETING[:9] + b"\x7f\x01\x01\x00\x00",
        b"\x01\x00",
        GREETING[:12] + b"PLAIN".ljust(20, b"\0") + GREETING[32:],
        GREETING[:12] + b"GSSAPI".ljust(20, b"\0") + GREETING[32:],
    ],
    ids=["ZMTP 2", "ZMTP 1", "PLAIN", "GSSAPI"],
)
def test_a_peer_that_speaks_what_we_do_not_is_left_to_libzmq(greeting: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Once, with a line in the log and a count."""

    async def scenario() -> None:
        calls = 0

        async def story(peer: Peer) -> None:
            nonlocal calls
            calls += 1
            peer.writer.write(greeting)
            await peer.until_closed()

        async with zmtp_peer(story) as endpoint, scene(HASTY) as stage:
            stage.listen(endpoint)

            await until(lambda: calls >= 2)

            assert stage.status().fallbacks == 1
            assert [record.message for record in caplog.records] == ["zmtp_left_to_libzmq"]

    with caplog.at_level(logging.WARNING, logger="kvrouter_subscribers"):
        run(scenario())


def test_keys_are_for_libzmq() -> None:
    """A subscriber that has them does not try without, and one that has none is told so."""

    async def scenario() -> None:
        server_public, server_secret = zmq.curve_keypair()
        public, secret = zmq.curve_keypair()
        keys = CurveKeys(server_key=server_public, public_key=public, secret_key=secret)
        with ZmqEventPublisher(ANY_TCP, curve_secret_key=server_secret) as publisher:
            async with scene(curve=keys) as stage, scene() as stranger:
                stage.listen(publisher.endpoint)
                stranger.listen(publisher.endpoint)

                await until(lambda: stage.status().connected)
                await until(lambda: "handshake failed" in (stranger.status().last_error or ""))

                assert stage.status().fallbacks == 0
                assert not stranger.status().connected

    run(scenario())


@pytest.mark.parametrize("loop", [asyncio, uvloop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_messages_may_come_in_any_pieces(loop: Any, step: int) -> None:
    """Byte by byte, with the handshake in the same piece as the first message."""

    async def scenario() -> None:
        said = READY + b"".join(block(number) for number in range(5))

        async def story(peer: Peer) -> None:
            peer.writer.write(GREETING)
            await peer.reader.readexactly(len(GREETING))
            for start in range(0, len(said), step):
                peer.writer.write(said[start : start + step])
                await peer.writer.drain()
                await asyncio.sleep(0)
            await hold(peer)

        async with zmtp_peer(story) as endpoint, scene() as stage:
            stage.listen(endpoint)

            await until(lambda: stage.sink.live_sequences() == list(range(5)))

            assert stage.status().messages == 5
            assert stage.status().bytes == 5 * (8 + len(encoded([stored(0)])))
            assert stage.status().malformed == 0

    loop.run(asyncio.wait_for(scenario(), 60))


def test_a_real_publisher_with_heartbeats_finds_us_alive() -> None:
    """PINGs of libzmq are answered, or it would close the connection; both are overheard on the way."""

    async def scenario() -> None:
        said = bytearray()
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        with context, context.socket(zmq.PUB) as publisher:
            publisher.setsockopt(zmq.HEARTBEAT_IVL, 20)
            publisher.setsockopt(zmq.HEARTBEAT_TIMEOUT, 60_000)
            publisher.bind(ANY_TCP)
            port = int(publisher.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])

            async def overheard(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                there, back = await asyncio.open_connection("127.0.0.1", port)

                async def answers() -> None:
                    while data := await reader.read(4096):
                        said.extend(data)
                        back.write(data)

                answering = asyncio.create_task(answers())
                try:
                    while data := await there.read(4096):
                        writer.write(data)
                finally:
                    answering.cancel()
                    back.transport.abort()

            async with listening(overheard) as way, scene() as stage:
                stage.listen(f"tcp://127.0.0.1:{way}")
                await until(lambda: said.count(b"\x04PONG") >= 5)

                assert (stage.status().connects, stage.status().disconnects) == (1, 0)

    run(scenario())


def test_commands_are_answered_or_ignored_wherever_they_come() -> None:
    """Between messages and between the frames of one; unknown ones belong to later versions."""

    async def scenario() -> None:
        answers = []

        async def story(peer: Peer) -> None:
            await peer.shake_hands()
            ping = zmtp_frames.frame(b"\x04PING\x00\x0acontext", command=True)
            whole = block(1)
            peer.writer.write(block(0) + ping + zmtp_frames.frame(b"\x06FUTURE", command=True))
            answers.append(await peer.frame())
            peer.writer.write(whole[:12] + ping + whole[12:])
            answers.append(await peer.frame())
            await hold(peer)

        async with zmtp_peer(story) as endpoint, scene() as stage:
            stage.listen(endpoint)

            await until(lambda: stage.sink.live_sequences() == [0, 1] and len(answers) == 2)

            assert answers == [(4, b"\x04PONGcontext")] * 2
            assert stage.status().malformed == 0

    run(scenario())


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"\x01\x00" * 17, "more than 16 frames"),
        (b"\x02" + (10**15).to_bytes(8), "more than 10000 bytes"),
        (b"\x02" + b"\xff" * 8, "more than 10000 bytes"),
        (b"\x03" + (9000).to_bytes(8) + bytes(9000), None),
        (b"\x40\x00", "not ZeroMQ's"),
        (b"GET / HTTP/1.1\r\n\r\n", "not ZeroMQ's"),
        (b"\x05\x00", "not ZeroMQ's"),
        (block(1)[:-1], None),
    ],
)
def test_a_broken_stream_ends_its_connection_and_nothing_else(said: bytes, reason: str | None) -> None:
    """What came before counts, what is broken does not; the connection comes back."""

    async def scenario() -> None:
        calls = 0

        async def story(peer: Peer) -> None:
            nonlocal calls
            calls += 1
            await peer.shake_hands()
            peer.writer.write(block(0) + said)
            await peer.writer.drain()
            if reason is not None:
                await asyncio.wait_for(peer.until_closed(), 30)

        async with zmtp_peer(story) as endpoint, scene(replace(HASTY, frame_bytes_max=10_000)) as stage:
            stage.listen(endpoint)

            await until(lambda: calls >= 3)

            if reason is not None:
                assert reason in (stage.status().last_error or "")
            assert set(stage.sink.live_sequences()) == {0}
            assert stage.status().disconnects >= 2
            kinds = [name for name, _ in stage.sink.calls]
            assert all(before != after for before, after in pairwise(kinds))

    run(scenario())


def test_a_large_message_arrives_whole_among_small_ones() -> None:
    """Larger than any buffer at first, in many reads, and what follows it is not lost."""

    async def scenario() -> None:
        async with scripted() as engine, scene() as stage:
            stage.listen(engine.endpoint)
            await stage.connected()
            await stage.hears(engine, 0)
            large = [replace(stored(1), session_id="x" * size) for size in (5_000_000, 300_000, 140_000)]
            for number, event in enumerate(large, 1):
                engine.publish(number, event)
            engine.publish(4)

            await until(lambda: stage.sink.applied() == 4)

            assert stage.sink.holds(0, 1, 4)
            assert stage.status().disconnects == 0

    run(scenario())


def test_a_source_that_says_more_than_it_was_asked_for_is_not_listened_to() -> None:
    """As libzmq's SUB sockets, which filter once more on their side."""

    async def scenario() -> None:
        subscribed = []

        async def story(peer: Peer) -> None:
            subscribed.extend(await peer.shake_hands())
            for topic in (b"other", b"k", b"kv@model"):
                peer.writer.write(batch(0, encoded([stored(0)]), topic=topic))
            await hold(peer)

        async with zmtp_peer(story) as endpoint, scene() as stage:
            stage.listen(endpoint, topic="kv@")

            await until(lambda: stage.sink.holds(0))

            assert subscribed == [b"\x01kv@"]
            assert stage.status().messages == 1

    run(scenario())


def test_what_the_sink_has_no_time_for_stays_with_the_publisher() -> None:
    """Nothing is read while what was read is not handed over: memory is bounded by the kernel's buffers."""

    async def scenario() -> None:
        sent = 0
        unblocked = asyncio.Event()

        async def story(peer: Peer) -> None:
            nonlocal sent
            await peer.shake_hands()
            peer.writer.transport.set_write_buffer_limits(high=0)
            body = encoded([replace(stored(0), session_id="x" * 100_000)])
            for number in range(1000):
                peer.writer.write(batch(number, body))
                sent = number
                await peer.writer.drain()
            await hold(peer)

        class Slow(RecordingSink):
            def receive(self, source: Source, sequence: int, payload: bytes, *, now: float, **options: Any) -> Receipt:
                time.sleep(0.005)  # A turn's whole time.
                unblocked.set()
                return super().receive(source, sequence, payload, now=now, **options)

        sink = Slow()
        sink.ingest.open(WORKER, 0, now=0.0)
        async with zmtp_peer(story) as endpoint, ZmqEventSubscriber(sink) as subscriber:
            subscriber.add(WORKER, endpoint)
            await unblocked.wait()
            most = 0
            while len(sink.receipts) < 100:
                await asyncio.sleep(0)
                most = max(most, sent - len(sink.receipts))

            assert most < 500

    run(scenario())


@pytest.mark.parametrize("loop", [asyncio, uvloop], ids=["asyncio", "uvloop"])
def test_an_address_of_version_six_is_connected_to(loop: Any) -> None:
    """In brackets, as for libzmq."""

    async def scenario() -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        with context, context.socket(zmq.PUB) as publisher:
            publisher.setsockopt(zmq.IPV6, 1)
            publisher.bind("tcp://[::1]:*")
            async with scene() as stage:
                stage.listen(publisher.getsockopt_string(zmq.LAST_ENDPOINT), bind=False)

                await until(lambda: stage.status().connected)

                assert stage.status().fallbacks == 0

    loop.run(asyncio.wait_for(scenario(), 60))


def test_a_name_that_is_no_name_is_told() -> None:
    """It may be one tomorrow."""

    async def scenario() -> None:
        async with scene() as stage:
            stage.listen(f"tcp://{'a' * 70}.invalid:5557")

            await until(lambda: stage.status().last_error)

            assert not stage.status().connected

    run(scenario())


def test_a_sink_may_drop_a_source_in_the_middle_of_what_it_says() -> None:
    """Nothing more of it is handed over, nor asked of it."""

    async def scenario() -> None:
        async def story(peer: Peer) -> None:
            await peer.shake_hands()
            peer.writer.write(b"".join(batch(number, b"\xc1") + message(b"split") for number in range(50)))
            await hold(peer)

        class Dropping(RecordingSink):
            def receive(self, source: Source, sequence: int, payload: bytes, *, now: float, **options: Any) -> Receipt:
                receipt = super().receive(source, sequence, payload, now=now, **options)
                if sequence == 3:
                    subscriber.remove(source)
                return receipt

        sink = Dropping()
        sink.ingest.open(WORKER, 0, now=0.0)
        async with zmtp_peer(story) as endpoint, ZmqEventSubscriber(sink) as subscriber:
            subscriber.add(WORKER, endpoint)
            await until(lambda: subscriber.status(WORKER) is None)
            await asyncio.sleep(0)

            assert sink.live_sequences() == [0, 1, 2, 3]

    run(scenario())
