"""Our own publishers name their life and can say all they hold: what that heals, and what garbage does not break."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import zmq

from kvrouter.events import BlockRemoved, Envelope, Source, decode_envelope, encode_envelope
from kvrouter.events.frames import SNAPSHOT_START, live_frames
from kvrouter_publishers import ZmqEventPublisher
from kvrouter_publishers.core import PublisherCore
from tests.servers import free_tcp
from tests.subscribers.scene import (
    ANY_TCP,
    PROBING,
    QUICK,
    WORKER,
    Scene,
    ScriptedEngine,
    payload,
    run,
    scene,
    scripted,
    stored,
    until,
)

pytestmark = pytest.mark.usefixtures("reading")


def native(**options: object) -> ZmqEventPublisher:
    """A publisher of `WORKER` with envelopes."""
    chosen: dict[str, object] = {"replay_endpoint": ANY_TCP, "wire": "native", "worker_id": WORKER.worker_id}
    return ZmqEventPublisher(ANY_TCP, **(chosen | options))  # type: ignore[arg-type]


def removed(number: int) -> BlockRemoved:
    """The removal of one block of `scene.stored`."""
    return BlockRemoved(block_hashes=(number + 1,), medium="GPU")


def source_status(stage: Scene):  # type: ignore[no-untyped-def]
    """The ingest's view of `WORKER`."""
    (status,) = stage.sink.ingest.status(now=0.0)
    return status


def test_a_late_router_gets_all_that_left_the_ring() -> None:
    """A replay begins above what it needs; a snapshot brings the rest."""

    async def scenario() -> None:
        with native(buffer_steps=10) as publisher:
            for number in range(500):
                publisher.publish([stored(number)])
            publisher.publish([removed(7)])
            await until(lambda: publisher.statistics()["batches_published"] == 502)
            async with scene() as stage:
                stage.listen(publisher.endpoint, replay_endpoint=publisher.replay_endpoint)

                await until(lambda: stage.sink.holds(0, 1, 6, 8, 499))

                assert not stage.sink.holds(7)
                await until(lambda: stage.status().snapshots == 1)
                assert stage.status().snapshots_failed == 0
                publisher.publish([stored(500)])
                await until(lambda: stage.sink.holds(0, 500))
                assert source_status(stage).state == "live"

    run(scenario())


def test_a_router_that_read_too_slowly_is_made_whole() -> None:
    """ZeroMQ dropped, the ring forgot: neither live batches nor a replay bring back what a snapshot does."""

    async def scenario() -> None:
        with native(hwm=10, buffer_steps=5, digest_seconds=0.2) as publisher:
            async with scene(replace(PROBING, waiting_messages_max=10)) as stage:
                stage.listen(publisher.endpoint, replay_endpoint=publisher.replay_endpoint)
                await stage.connected()
                await until(lambda: stage.sink.applied() >= 0)
                for number in range(5000):  # Padded, so that no kernel's socket buffers can hold them all.
                    publisher.publish([replace(stored(number), session_id="x" * 3000)])
                publisher.publish([removed(number) for number in range(0, 5000, 2)])
                while publisher.statistics()["outbox_batches"]:
                    pass  # The event loop stands still, so that ZeroMQ has to drop.

                odd, even = range(1, 5000, 98), range(0, 5000, 98)
                await until(lambda: stage.sink.holds(*odd))

                assert not any(stage.sink.holds(number) for number in even)
                await until(lambda: source_status(stage).state == "live")

    run(scenario())


_PROGRAM = """
import sys
from kvrouter_publishers import ZmqEventPublisher
from tests.subscribers.scene import stored
endpoint, replay, first = sys.argv[1], sys.argv[2], int(sys.argv[3])
publisher = ZmqEventPublisher(endpoint, replay_endpoint=replay, wire="native", worker_id="worker", bind=True)
publisher.publish([stored(number) for number in range(first, first + 20)])
print(publisher.endpoint, publisher.replay_endpoint, flush=True)
sys.stdin.read()
"""


@contextmanager
def _process(endpoint: str, replay: str, first: int) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    command = [sys.executable, "-c", _PROGRAM, endpoint, replay, str(first)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = process.stdout.readline().split()
            yield process, found[0], found[1]
        finally:
            process.kill()


def test_a_killed_publishers_blocks_are_gone_when_it_is_back() -> None:
    """SIGKILL says no goodbye. The new life has another name, so that nothing of the old one is believed."""

    async def scenario() -> None:
        async with scene() as stage:
            with _process(free_tcp(), free_tcp(), 0) as (process, endpoint, replay):
                stage.listen(endpoint, replay_endpoint=replay)
                await until(lambda: stage.sink.holds(*range(20)))
                process.send_signal(signal.SIGKILL)
                process.wait()
            await until(lambda: not stage.status().connected)
            with _process(endpoint, replay, 100):
                await until(lambda: stage.sink.holds(*range(100, 120)))

                assert not any(stage.sink.holds(number) for number in range(20))
                assert source_status(stage).restarts == 1
                await until(lambda: source_status(stage).state == "live")

    run(scenario())


def test_a_lie_is_found_by_the_next_digest() -> None:
    """A block is believed in that the publisher never had: it is gone when the publisher says what it holds."""

    async def scenario() -> None:
        with native(digest_seconds=0.1) as publisher:
            async with scene() as stage:
                stage.listen(publisher.endpoint, replay_endpoint=publisher.replay_endpoint)
                publisher.publish([stored(1)])
                await until(lambda: stage.sink.holds(1))

                sequence, life = stage.sink.applied() + 1, _life(publisher)
                lie = payload([stored(2)])
                stage.sink.ingest.receive(WORKER, sequence, lie, now=0.0, incarnation=life)
                assert stage.sink.holds(2)

                await until(lambda: not stage.sink.holds(2))
                await until(lambda: stage.sink.holds(1))

    run(scenario())


def test_without_a_replay_endpoint_there_are_no_snapshots() -> None:
    """The sink is told at once that there is nobody to ask, and live batches go on."""

    async def scenario() -> None:
        with native(replay_endpoint=None, digest_seconds=0.1) as publisher:
            publisher.publish([stored(1)])
            async with scene() as stage:
                stage.listen(publisher.endpoint)
                await until(lambda: stage.sink.applied() >= 0)

                await until(lambda: stage.status().snapshots_failed >= 1)

                assert not stage.subscriber.resync(WORKER)
                publisher.publish([stored(3)])
                await until(lambda: stage.sink.holds(3))

    run(scenario())


def _life(publisher: ZmqEventPublisher) -> int:
    return publisher._core.incarnation


def test_resync_brings_the_state_anew() -> None:
    """An operator, or a doubt, asks for it: by a snapshot from our own publishers."""

    async def scenario() -> None:
        with native() as publisher:
            async with scene() as stage:
                stage.listen(publisher.endpoint, replay_endpoint=publisher.replay_endpoint)
                publisher.publish([stored(1)])
                await until(lambda: stage.sink.holds(1))

                assert stage.subscriber.resync(WORKER)
                await until(lambda: stage.status().snapshots == 1)

                assert stage.sink.holds(1)
                assert not stage.subscriber.resync(Source("nobody", 0))

    run(scenario())


def test_resync_of_an_engine_is_a_whole_replay() -> None:
    """Engines have no snapshots; without a replay endpoint there is nobody to ask."""

    async def scenario() -> None:
        async with scripted() as engine, scene() as stage:
            stage.listen(engine.endpoint, replay_endpoint=engine.replay_endpoint)
            await stage.connected()
            await stage.hears(engine, 0)
            before = len(engine.requests)

            assert stage.subscriber.resync(WORKER)
            await until(lambda: engine.requests[before:] == [0])

            assert SNAPSHOT_START not in engine.requests
            stage.listen(engine.endpoint, Source("other", 0))
            assert not stage.subscriber.resync(Source("other", 0))

    run(scenario())


class _ScriptedNative:
    """A native stream whose answers a test chooses."""

    def __init__(self, engine: ScriptedEngine) -> None:
        self.engine = engine
        self.core = PublisherCore(worker_id=WORKER.worker_id, rank=WORKER.rank, digest_seconds=None)

    def publish(self, *numbers: int, send: bool = True) -> int:
        """Publish a store of each block; returns the last batch's number."""
        self.core.put([stored(number) for number in numbers])
        last = -1
        while (frame := self.core.take(0.0)) is not None:
            last = frame.sequence
            if send:
                self.engine.send(*live_frames(b"", frame.sequence, frame.payload))
        return last

    def snapshot(self, *, part_bytes_max: int = 1024) -> list[list[bytes]]:
        """The messages of a snapshot, without the end."""
        frames = self.core.snapshot(part_bytes_max=part_bytes_max)
        return [[b"", b"", decode_envelope(frame).sequence.to_bytes(8), frame] for frame in frames]


def _without_one(parts: list[list[bytes]]) -> list[list[bytes]]:
    return [*parts[:1], *parts[2:]]


def _of_another_batch(parts: list[list[bytes]]) -> list[list[bytes]]:
    changed = decode_envelope(parts[-1][-1])
    frame = encode_envelope(replace(changed, sequence=changed.sequence + 1))
    return [*parts[:-1], [b"", b"", (changed.sequence + 1).to_bytes(8), frame]]


def _of_another_worker(parts: list[list[bytes]]) -> list[list[bytes]]:
    frame = encode_envelope(replace(decode_envelope(parts[0][-1]), source=Source("stranger", 0)))
    return [[*parts[0][:-1], frame], *parts[1:]]


def _garbage(parts: list[list[bytes]]) -> list[list[bytes]]:
    return [[*parts[0][:-1], b"garbage"], *parts[1:]]


def _nothing(parts: list[list[bytes]]) -> list[list[bytes]]:
    return []


@pytest.mark.parametrize(
    "spoil", [_without_one, _of_another_batch, _of_another_worker, _garbage, _nothing, lambda parts: parts[:-1]]
)
@pytest.mark.parametrize("ends", [True, False], ids=["", "no end"])
def test_a_snapshot_that_is_not_whole_is_not_taken(spoil, ends: bool) -> None:  # type: ignore[no-untyped-def]
    """It is asked for again; if that is no better the sink goes on without, and live events never stop."""

    async def scenario() -> None:
        async with scripted() as engine, scene(replace(QUICK, snapshot_silence_seconds=0.3)) as stage:
            stream = _ScriptedNative(engine)
            stream.publish(*range(100), send=False)

            def answer(start: int) -> list[list[bytes]]:
                if start != SNAPSHOT_START:
                    return [[b"", b"", number.to_bytes(8), frame] for number, frame in stream.core.since(start)] + [
                        engine.end()
                    ]
                return [*spoil(stream.snapshot()), *([engine.end()] if ends else [])]

            engine.answer = answer
            stage.listen(engine.endpoint, replay_endpoint=engine.replay_endpoint)
            await until(lambda: stage.sink.applied() == 1)

            assert stage.subscriber.resync(WORKER)
            await until(lambda: stage.status().snapshots_failed == 1)

            assert engine.requests.count(SNAPSHOT_START) == QUICK.replay_attempts
            assert stage.status().snapshots == 0
            assert stage.sink.holds(*range(100))
            stream.publish(200)
            await until(lambda: stage.sink.holds(200))

    run(scenario())


def test_a_snapshot_beyond_the_bound_is_given_up() -> None:
    """What arrives must not fill the router's memory."""

    async def scenario() -> None:
        with native() as publisher:
            async with scene(replace(QUICK, snapshot_bytes_max=1000)) as stage:
                stage.listen(publisher.endpoint, replay_endpoint=publisher.replay_endpoint)
                publisher.publish([stored(number) for number in range(500)])
                await until(lambda: stage.sink.holds(499))

                assert stage.subscriber.resync(WORKER)
                await until(lambda: stage.status().snapshots_failed == 1)

                assert "exceeds 1000 bytes" in (stage.status().last_error or "")

    run(scenario())


def test_batches_of_others_are_not_taken() -> None:
    """A wrong address, or a proxy that mixes up ranks: counted, told, and none of their blocks believed in."""

    async def scenario() -> None:
        async with scripted() as engine, scene() as stage:
            stage.listen(engine.endpoint, replay_endpoint=engine.replay_endpoint)
            await stage.connected()
            await stage.hears(engine, 0)
            envelope = Envelope(source=WORKER, incarnation=1, sequence=1, timestamp=1.0, payload=payload([stored(9)]))
            wrong = [
                encode_envelope(replace(envelope, source=Source("worker", 1))),
                encode_envelope(replace(envelope, source=Source("other", 0))),
                encode_envelope(replace(envelope, sequence=2)),
                encode_envelope(replace(envelope, snapshot=(0, 1))),
                encode_envelope(envelope)[:-1],
            ]

            for frame in wrong:
                engine.send(*live_frames(b"", 1, frame))
            await until(lambda: stage.status().malformed == len(wrong))

            assert stage.sink.applied() == 0
            assert not stage.sink.holds(9)

    run(scenario())


def test_a_lost_tail_of_a_native_stream_is_found() -> None:
    """The probe asks an idle publisher, and takes its envelopes."""

    async def scenario() -> None:
        async with scripted() as engine, scene(PROBING) as stage:
            stream = _ScriptedNative(engine)
            engine.answer = lambda start: [
                *([b"", b"", number.to_bytes(8), frame] for number, frame in stream.core.since(start)),
                engine.end(),
            ]
            stage.listen(engine.endpoint, replay_endpoint=engine.replay_endpoint)
            await stage.connected()

            stream.publish(1, 2, send=False)
            await until(lambda: stage.sink.holds(1, 2))

            assert stage.status().tail_losses == 2

    run(scenario())


def test_a_router_and_a_publisher_agree_under_churn() -> None:
    """Thousands of stores and removals with a queue that overflows all the time; the digests match in the end."""

    async def scenario() -> None:
        with native(max_queue_size=4, digest_seconds=0.2, hwm=50, buffer_steps=50) as publisher:
            async with scene(PROBING) as stage:
                stage.listen(publisher.endpoint, replay_endpoint=publisher.replay_endpoint)
                await stage.connected()
                for number in range(6000):
                    publisher.publish([stored(number)])
                    if number >= 50:
                        publisher.publish([removed(number - 50)])
                    if not number % 500:
                        await asyncio.sleep(0)

                await until(lambda: stage.sink.holds(*range(5950, 6000)))
                matched = source_status(stage).digests_matched
                await until(lambda: source_status(stage).digests_matched > matched)

                assert not stage.sink.holds(5949)
                assert publisher.statistics()["compactions"] > 0
                assert publisher.statistics()["losses_announced"] == 0

    run(scenario())


def test_garbage_on_the_router_socket_stops_nobody() -> None:
    """Strangers send whatever they like; snapshots are served on."""

    async def scenario() -> None:
        with native() as publisher, zmq.Context() as context:
            publisher.publish([stored(1)])
            stranger = context.socket(zmq.DEALER)
            stranger.setsockopt(zmq.LINGER, 0)
            assert publisher.replay_endpoint is not None
            stranger.connect(publisher.replay_endpoint)
            for frames in ([b"x"], [b"", b"snapsho"], [b"", b"snapshot", b""], [b"snapshot", b""], [b""] * 20):
                stranger.send_multipart(frames)
            await until(lambda: publisher.statistics()["replay_requests_ignored"] == 5)
            stranger.close()

            async with scene() as stage:
                stage.listen(publisher.endpoint, replay_endpoint=publisher.replay_endpoint)
                await until(lambda: stage.sink.holds(1))
                assert stage.subscriber.resync(WORKER)
                await until(lambda: stage.status().snapshots == 1)

    run(scenario())
