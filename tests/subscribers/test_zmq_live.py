"""Live events reach the sink, over every transport, in both directions, from many sources, whatever else arrives."""

import asyncio
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import uvloop
import zmq

from kvrouter.errors import SettingsError
from kvrouter.events import Source
from kvrouter_publishers import ZmqEventPublisher
from kvrouter_subscribers import CurveKeys, ZmqEventSubscriber
from tests.servers import free_port, free_tcp
from tests.subscribers.scene import (
    ANY_TCP,
    DIRECT,
    QUICK,
    WORKER,
    RecordingSink,
    Scene,
    listening,
    run,
    scene,
    scripted,
    stored,
    until,
)

pytestmark = pytest.mark.usefixtures("reading")


async def receives(stage: Scene, publisher: ZmqEventPublisher, number: int, source: Source = WORKER) -> None:
    """Publish block `number` until the index holds it: a subscription needs a moment to reach the publisher."""
    rank = next(s.dense_rank for s in stage.sink.ingest.status(now=0.0) if (s.worker_id, s.rank) == source)

    def arrived() -> bool:
        publisher.publish([stored(number)])
        return stage.sink.holds(number, rank=rank)

    await until(arrived)


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
@pytest.mark.parametrize("loop", [asyncio, uvloop], ids=["asyncio", "uvloop"])
def test_published_blocks_reach_the_index(transport: str, loop: object, tmp_path: Path) -> None:
    """A-301, A-501: the whole way, with our own publisher, on both event loops."""
    live = ANY_TCP if transport == "tcp" else f"ipc://{tmp_path}/live"
    replay = ANY_TCP if transport == "tcp" else f"ipc://{tmp_path}/replay"

    async def scenario() -> None:
        with ZmqEventPublisher(live, replay_endpoint=replay) as publisher:
            async with scene() as stage:
                stage.listen(publisher.endpoint, replay_endpoint=publisher.replay_endpoint)
                await receives(stage, publisher, 1)

                for number in range(10, 510):
                    publisher.publish([stored(number)])
                await until(lambda: stage.sink.holds(*range(10, 510)))

                assert stage.status().connected
                assert stage.status().messages >= 500
                assert stage.status().last_error is None

    loop.run(asyncio.wait_for(scenario(), 60))  # type: ignore[attr-defined]


def test_an_inproc_publisher_needs_no_network() -> None:
    """Router and engine in one process share a context."""

    async def scenario() -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        with ZmqEventPublisher("inproc://live", replay_endpoint="inproc://replay", context=context) as publisher:
            async with scene(context=context) as stage:
                stage.listen("inproc://live", replay_endpoint="inproc://replay")
                await receives(stage, publisher, 1)

                assert stage.status().connected
        context.term()

    run(scenario())


def test_two_ranks_of_a_worker_are_two_sources() -> None:
    """Each has its own numbers and its own blocks."""

    async def scenario() -> None:
        first, second = Source("worker", 0), Source("worker", 1)
        with ZmqEventPublisher(ANY_TCP) as zero, ZmqEventPublisher(ANY_TCP, rank=1) as one:
            async with scene() as stage:
                stage.listen(zero.endpoint, first)
                stage.listen(one.endpoint, second)

                await receives(stage, zero, 1, first)
                await receives(stage, one, 2, second)

                assert not stage.sink.holds(2, rank=0)
                assert not stage.sink.holds(1, rank=1)

    run(scenario())


def test_only_the_subscribed_topic_arrives() -> None:
    """Several streams may share a publisher; the prefix chooses."""

    async def scenario() -> None:
        async with scripted() as engine, scene() as stage:
            stage.listen(engine.endpoint, topic="kv@a")
            await stage.connected()

            def arrived() -> bool:
                engine.send(b"kv@b", (0).to_bytes(8), b"not for us")
                engine.send(b"kv@a@model", (0).to_bytes(8), b"for us")
                return stage.status().messages > 0

            await until(arrived)

            assert stage.status().topic == "kv@a"
            assert all(outcome == "quarantined" for *_, outcome in stage.sink.receipts[:1])
            assert stage.status().bytes == stage.status().messages * len(b"kv@a@model12345678for us")

    run(scenario())


def test_publishers_can_connect_to_us() -> None:
    """A wildcard endpoint is ours to bind; engines behind address translation come to us."""

    async def scenario() -> None:
        async with scene() as stage:
            port = free_port()
            stage.listen(f"tcp://0.0.0.0:{port}")
            with ZmqEventPublisher(f"tcp://127.0.0.1:{port}") as publisher:
                await receives(stage, publisher, 1)
                assert stage.status().connected
            await until(lambda: not stage.status().connected)

    run(scenario())


def test_an_endpoint_that_cannot_be_bound_is_tried_again() -> None:
    """The error is visible, and its end is noticed."""

    async def scenario() -> None:
        async with scene() as stage:
            endpoint = free_tcp()
            with ZmqEventPublisher(endpoint, bind=True):
                stage.listen(endpoint, bind=True)
                await until(lambda: "in use" in (stage.status().last_error or ""))
            with ZmqEventPublisher(endpoint, bind=False) as publisher:
                await receives(stage, publisher, 1)

    run(scenario())


def test_a_worker_that_comes_late_is_found() -> None:
    """Engines load weights for minutes; the router is up long before."""

    async def scenario() -> None:
        endpoint = free_tcp()
        async with scene() as stage:
            stage.listen(endpoint)
            assert not stage.status().connected
            with ZmqEventPublisher(endpoint, bind=True) as publisher:
                await receives(stage, publisher, 1)

    run(scenario())


@pytest.mark.parametrize(
    "frames",
    [
        [b"alone"],
        [b"", bytes(8)],
        [b"", bytes(8), b"payload", b"one too many"],
        [b"", b"short", b"payload"],
        [b"", bytes(9), b"payload"],
        [b"", b"", b""],
    ],
)
def test_a_malformed_message_costs_only_itself(frames: list[bytes]) -> None:
    """It is counted for its source, and the next message is heard."""

    async def scenario() -> None:
        async with scripted() as engine, scene() as stage:
            stage.listen(engine.endpoint)
            await stage.connected()

            def arrived() -> bool:
                engine.send(*frames)
                return stage.status().malformed > 0

            await until(arrived)
            engine.publish(0)
            await until(lambda: stage.sink.holds(0))

            assert stage.status().last_error is not None

    run(scenario())


def test_a_payload_that_nobody_understands_is_the_sinks_to_quarantine() -> None:
    """Its number counts all the same, or nothing would follow it."""

    async def scenario() -> None:
        async with scripted() as engine, scene() as stage:
            stage.listen(engine.endpoint)
            await stage.connected()

            def arrived() -> bool:
                engine.send(b"", (0).to_bytes(8), b"\xc1 garbage")
                return bool(stage.sink.receipts)

            await until(arrived)
            engine.publish(1)
            await until(lambda: stage.sink.holds(1))

            assert stage.sink.receipts[0] == ("live", 0, "quarantined")
            assert stage.status().malformed == 0

    run(scenario())


def test_a_peer_that_does_not_speak_zeromq_is_reported() -> None:
    """Somebody wrote the HTTP port where the event port belongs."""

    async def scenario() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
            await writer.drain()
            await reader.read(64)

        async with listening(answer) as port, scene() as stage:
            stage.listen(f"tcp://127.0.0.1:{port}")

            await until(lambda: "handshake failed" in (stage.status().last_error or ""))

            assert not stage.status().connected
            assert stage.status().connects == 0

    run(scenario())


def test_an_oversized_frame_ends_its_connection_and_nothing_else() -> None:
    """The bound protects memory; the connection comes back."""

    async def scenario() -> None:
        async with scripted() as engine, scene(replace(QUICK, frame_bytes_max=10_000)) as stage:
            stage.listen(engine.endpoint)
            await stage.connected()

            def lost() -> bool:
                engine.send(b"", (0).to_bytes(8), bytes(20_000))
                return stage.status().disconnects > 0

            await until(lost)
            assert stage.status().malformed == 0

            def back() -> bool:
                engine.publish(0)
                return stage.sink.holds(0)

            await until(back)
            assert stage.status().connects >= 2
            assert "more than 10000 bytes" in (stage.status().last_error or "")

    run(scenario())


@pytest.mark.parametrize("method", ["connected", "disconnected", "receive", "replay_finished"])
def test_a_fault_of_the_sink_is_counted_and_the_stream_goes_on(method: str, caplog: pytest.LogCaptureFixture) -> None:
    """One bad batch must not deafen the router to a worker for ever."""

    async def scenario() -> None:
        async with scripted() as engine, scene() as stage:
            stage.sink.failing[method] = RuntimeError("a bug of ours")
            stage.listen(engine.endpoint)
            await until(lambda: stage.status().connected)
            if method == "disconnected":
                await engine.reconnect()

            def failed() -> bool:
                engine.publish(0)
                return stage.status().sink_errors > 0

            await until(failed)
            assert stage.status().last_error == "RuntimeError: a bug of ours"
            await until(lambda: stage.status().connected)
            await stage.hears(engine, 0)

            assert [record.message for record in caplog.records] == ["event_sink_failed"]

    run(scenario())


def test_a_removed_source_is_not_heard_any_more() -> None:
    """Its sockets are closed at once; other sources go on."""

    async def scenario() -> None:
        with ZmqEventPublisher(ANY_TCP) as publisher, ZmqEventPublisher(ANY_TCP) as other:
            async with scene() as stage:
                stage.listen(publisher.endpoint)
                stage.listen(other.endpoint, Source("other", 0))
                await receives(stage, publisher, 1)

                stage.subscriber.remove(WORKER)
                stage.subscriber.remove(WORKER)
                publisher.publish([stored(2)])
                await receives(stage, other, 3, Source("other", 0))

                assert stage.subscriber.status(WORKER) is None
                assert not stage.sink.holds(2)

    run(scenario())


def test_adding_a_source_again_moves_it() -> None:
    """A worker that was registered anew at another address."""

    async def scenario() -> None:
        with ZmqEventPublisher(ANY_TCP) as old, ZmqEventPublisher(ANY_TCP) as new:
            async with scene() as stage:
                stage.listen(old.endpoint)
                await receives(stage, old, 1)

                stage.subscriber.add(WORKER, new.endpoint)
                await receives(stage, new, 2)

                assert stage.status().endpoint == new.endpoint

    run(scenario())


@pytest.mark.parametrize("endpoint", ["http://host:1", "tcp://host", "nonsense"])
def test_a_malformed_endpoint_is_refused_when_it_is_added(endpoint: str) -> None:
    """The admin API answers with the reason, and the running sources are untouched."""

    async def scenario() -> None:
        subscriber = ZmqEventSubscriber(RecordingSink())

        with pytest.raises(SettingsError, match="event endpoint"):
            subscriber.add(WORKER, endpoint)
        with pytest.raises(SettingsError, match="to connect to"):
            subscriber.add(WORKER, "tcp://127.0.0.1:5557", replay_endpoint="tcp://*:5657")

        assert subscriber.status(WORKER) is None

    run(scenario())


def test_curve_keys_open_an_encrypted_publisher() -> None:
    """And without them nothing arrives, which the status says."""

    async def scenario() -> None:
        server_public, server_secret = zmq.curve_keypair()
        public, secret = zmq.curve_keypair()
        keys = CurveKeys(server_key=server_public, public_key=public, secret_key=secret)
        with ZmqEventPublisher(ANY_TCP, replay_endpoint=ANY_TCP, curve_secret_key=server_secret) as publisher:
            async with scene(curve=keys) as stage, scene() as stranger:
                stage.listen(publisher.endpoint, replay_endpoint=publisher.replay_endpoint)
                stranger.listen(publisher.endpoint)

                await receives(stage, publisher, 1)
                await until(lambda: "handshake failed" in (stranger.status().last_error or ""))

                await until(lambda: stage.sink.finished == [True])
                assert stranger.status().messages == 0

    run(scenario())


def test_closing_under_load_is_prompt_and_complete() -> None:
    """No message, task or socket outlives the subscriber, however much is arriving."""

    async def scenario() -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        with ZmqEventPublisher(ANY_TCP, replay_endpoint=ANY_TCP) as publisher:
            async with scene(context=context) as stage:
                stage.listen(publisher.endpoint, replay_endpoint=publisher.replay_endpoint)
                await receives(stage, publisher, 1)
                for number in range(20_000):
                    publisher.publish([stored(number)])
                await until(lambda: stage.status().messages > 100)
            received = stage.status().messages
            await asyncio.sleep(0)

            assert stage.status().messages == received < 20_000
        context.term()  # Would hang if a socket were still open.

    run(scenario())


def test_run_ends_when_it_is_closed_and_when_it_is_cancelled() -> None:
    """A composition root may own the task instead of using us as a context manager."""

    async def scenario() -> None:
        async with scripted() as engine:
            for stop in ("close", "cancel"):
                sink = RecordingSink()
                subscriber = ZmqEventSubscriber(sink, direct=DIRECT.get())
                sink.ingest.open(WORKER, 0, now=0.0)
                subscriber.add(WORKER, engine.endpoint)
                task = asyncio.create_task(subscriber.run())
                await until(lambda: ("connected", WORKER) in sink.calls)  # noqa: B023 - awaited in this turn

                if stop == "close":
                    await subscriber.close()
                else:
                    task.cancel()
                await asyncio.wait([task])

                assert task.cancelled() == (stop == "cancel")
                status = subscriber.status(WORKER)
                assert status is not None
                assert not status.connected

    run(scenario())


def test_a_flood_of_events_leaves_turns_to_everything_else() -> None:
    """The loop serves requests too; it comes round many times while a backlog is read."""

    async def scenario() -> None:
        with ZmqEventPublisher(ANY_TCP) as publisher:
            async with scene() as stage:
                stage.listen(publisher.endpoint)
                await receives(stage, publisher, 1)
                for number in range(20_000):
                    publisher.publish([stored(number)])
                while publisher.statistics()["outbox_batches"]:
                    time.sleep(0.002)  # The event loop stands still, so that a backlog gathers.
                seen = [stage.status().messages]
                while not stage.sink.holds(19_999):
                    await asyncio.sleep(0)
                    seen.append(stage.status().messages)

                steps = [after - before for before, after in pairwise(seen)]
                assert max(steps) < 2000

    run(scenario())
