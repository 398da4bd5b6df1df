"""Readers that die, publishers that begin anew, messages that come twice or are gone: nothing is believed wrongly."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kvrouter.events import Source
from tests.servers import NatsServer, nats_server
from tests.subscribers.jetstream_scene import QUICK, STREAM, Worker, api, client, following, frame, put, working
from tests.subscribers.scene import WAIT_SECONDS, WORKER, run, until

GHOST = Source("ghost", 0)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    """A server that tests may fill as they like."""
    with nats_server(tmp_path) as started:
        yield started


@pytest.fixture
def endpoint(server: NatsServer) -> str:
    """The stream of these tests."""
    return f"{server.url}/{STREAM}"


READER = """
import asyncio, sys
from kvrouter.events import Source
from kvrouter.index import PrefixIndex
from kvrouter.ingest import Ingest
from kvrouter_subscribers import JetStreamEventSubscriber, JetStreamLimits

class Slow(Ingest):
    taken = 0
    def receive(self, *arguments, **options):
        receipt = super().receive(*arguments, **options)
        Slow.taken += 1
        if Slow.taken == 30:
            print("taken", flush=True)
            sys.stdin.read()
        return receipt

async def main():
    sink = Slow(PrefixIndex())
    sink.open(Source("worker", 0), 0, now=0.0)
    subscriber = JetStreamEventSubscriber(sink, mode=sys.argv[2], name="reader",
                                          limits=JetStreamLimits(ack_wait_seconds=0.5, fetch_messages=50))
    subscriber.add(Source("worker", 0), sys.argv[1])
    await subscriber.run()

asyncio.run(main())
"""


@contextlib.contextmanager
def reader(endpoint: str, mode: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that follows the stream and holds still in the middle of its thirtieth batch."""
    with subprocess.Popen(
        [sys.executable, "-c", READER, endpoint, mode], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("mode", ["broadcast", "worker-group"])
def test_what_a_killed_reader_did_not_acknowledge_is_delivered_again(
    endpoint: str, server: NatsServer, mode: str
) -> None:
    """Acknowledged is what was applied, never more: whoever takes its place gets the rest."""

    async def scenario() -> None:
        with working(endpoint, digest_seconds=None) as worker:
            worker.work(50)
            await until(worker.delivered)
            with reader(endpoint, mode) as process:
                assert process.stdout is not None
                assert await asyncio.to_thread(process.stdout.readline) == b"taken\n"
                os.kill(process.pid, signal.SIGKILL)
            async with client(server.url) as connected:
                left = await api(connected, f"CONSUMER.INFO.{STREAM}.reader")
            limits = replace(QUICK, ack_wait_seconds=0.5)
            async with following(limits, mode=mode, name="reader") as scene:
                scene.listen(endpoint)
                acknowledged = left["ack_floor"]["stream_seq"]
                if mode == "broadcast":
                    await scene.heals(worker)
                else:  # The group goes on behind what its dead member had done.
                    await until(lambda: {place for _, place, _ in scene.sink.receipts} == set(range(acknowledged, 101)))
                state = scene.state()

        assert acknowledged <= 30
        assert state.quarantined == 0
        if mode == "broadcast":
            assert state.applied_batches == 101

    run(scenario())


def test_a_publisher_that_begins_anew_replaces_its_former_life(endpoint: str) -> None:
    """A restarted engine has an empty cache; nothing of the old one is believed any more."""

    async def scenario() -> None:
        async with following() as scene:
            scene.listen(endpoint)
            with working(endpoint) as first:
                first.work(40)
                await scene.heals(first)
            with working(endpoint) as second:
                second.store(5000)
                await scene.heals(second)
                assert not scene.sink.holds(119)

        assert scene.state().restarts == 1

    run(scenario())


def test_a_newcomer_reads_several_lives_and_believes_the_last(endpoint: str) -> None:
    """The stream remembers engines that are gone."""

    async def scenario() -> None:
        for life in range(3):
            with working(endpoint) as worker:
                worker.work(10 + life, first=100 * life)
                await until(worker.delivered)
        with working(endpoint) as last:
            last.work(5, first=1000)
            async with following() as scene:
                scene.listen(endpoint)
                await scene.heals(last)

    run(scenario())


def test_a_batch_that_is_published_twice_is_applied_once(endpoint: str, server: NatsServer) -> None:
    """Beyond the server's own window a second copy gets into the stream; numbers tell it from news."""

    async def scenario() -> None:
        async with following() as scene, client(server.url) as connected:
            scene.listen(endpoint)
            with working(endpoint) as worker:
                worker.work(20)
                await scene.heals(worker)
                before = scene.state().duplicates  # A snapshot that came first makes some of what the stream has.
                jetstream = connected.jetstream()
                for place in range(1, 42):
                    message = await jetstream.get_msg(STREAM, place)
                    assert message.data is not None
                    await put(connected, message.data)
                worker.work(5, first=20)
                await scene.heals(worker)
                state = scene.state()

        assert (state.duplicates - before, state.restarts, state.gaps) == (41, 0, 0)

    run(scenario())


def test_the_server_keeps_one_of_two_equal_messages(endpoint: str, server: NatsServer) -> None:
    """What is sent again after a lost acknowledgement has the identity that it had."""

    async def scenario() -> None:
        async with client(server.url) as connected:
            with working(endpoint) as worker:
                worker.work(5)
                await until(worker.delivered)
                message = await connected.jetstream().get_msg(STREAM, 3)
                assert message.data is not None
                assert message.headers is not None
                again = await connected.jetstream().publish(
                    f"{STREAM}.queue", message.data, headers={"Nats-Msg-Id": message.headers["Nats-Msg-Id"]}
                )

        assert (again.duplicate, again.seq) == (True, 3)

    run(scenario())


def test_a_hole_in_the_stream_is_closed_by_a_snapshot(endpoint: str, server: NatsServer) -> None:
    """A message that somebody deleted: the publisher alone knows what was in it."""

    async def scenario() -> None:
        async with client(server.url) as connected:
            with working(endpoint) as worker:
                worker.work(20)
                await until(worker.delivered)
                await connected.jetstream().delete_msg(STREAM, 7)
                async with following() as scene:
                    scene.listen(endpoint)
                    await scene.heals(worker)
                    worker.work(5, first=20)
                    await scene.heals(worker)
                    status, missed = scene.status(), scene.stream().missed

        assert missed == 1
        assert status.snapshots >= 1

    run(scenario())


def test_a_gap_whose_publisher_is_gone_gives_up_what_may_be_wrong(endpoint: str, server: NatsServer) -> None:
    """Nobody can say what the lost batch removed; so nothing that it may have removed is believed."""

    async def scenario() -> None:
        async with following() as scene, client(server.url) as connected:
            with working(endpoint) as worker:
                await until(worker.delivered)
                scene.listen(endpoint, GHOST)
                await put(connected, frame(0, 1, 2, source=GHOST), frame(1, 3, source=GHOST))
                await until(lambda: scene.sink.holds(1, 2, 3))
                await put(connected, frame(5, 6, source=GHOST))
                await until(lambda: scene.state(GHOST).gaps_lost == 1 and scene.status(GHOST).snapshots_failed > 0)
                status = scene.status(GHOST)

        assert not scene.sink.holds(1)
        assert scene.sink.holds(6)
        assert "not there" in str(status.last_error)

    run(scenario())


def test_a_purge_under_a_slow_reader_is_noticed_and_made_good(endpoint: str, server: NatsServer) -> None:
    """The stream dropped what was not read yet: every source on it is brought to the truth again."""

    async def scenario() -> None:
        async with following(replace(QUICK, fetch_messages=5)) as scene:
            scene.listen(endpoint, WORKER, GHOST)
            with working(endpoint) as worker, working(endpoint, GHOST) as ghost:
                worker.work(20)
                ghost.work(20)
                await scene.heals(worker)
                await scene.heals(ghost)
                with standing_still(server) as connected:
                    worker.work(200, first=20)
                    ghost.remove(*sorted(ghost.held))
                    connected.wait_for(worker, ghost)
                    connected.purge()
                await until(lambda: scene.stream().missed > 0)
                await scene.heals(worker)
                await scene.heals(ghost)
                # Also of a source that lacked nothing: nobody could tell.
                await until(lambda: all(scene.status(source).snapshots for source in (WORKER, GHOST)))

    run(scenario())


def test_a_purge_while_nobody_reads_is_noticed_by_who_comes_back(endpoint: str, server: NatsServer) -> None:
    """A router that was cut off for longer than the stream remembers."""

    async def scenario() -> None:
        async with following() as scene:
            scene.listen(endpoint)
            with working(endpoint) as worker:
                worker.work(20)
                await scene.heals(worker)
                await until(lambda: scene.stream().position == 41)  # A snapshot may have come first.
                server.kill()
                await until(lambda: not scene.status().connected)
                with standing_still(server) as connected:
                    worker.work(20, first=20)
                    server.start()
                    connected.wait_for(worker)
                    connected.purge()
                await scene.heals(worker)
                state, stream = scene.state(), scene.stream()

        assert stream.missed == 40
        assert state.restarts == 0
        assert scene.status().snapshots >= 1

    run(scenario())


def test_a_router_that_was_away_too_long_notices_it(endpoint: str, server: NatsServer) -> None:
    """It stored how far it had read; the stream begins later than that."""

    async def scenario() -> None:
        with working(endpoint) as worker:
            async with following() as before:
                before.listen(endpoint)
                worker.work(20)
                await before.heals(worker)
                await until(lambda: before.stream().position == 41)  # A snapshot may have come first.
                positions = before.subscriber.positions()
            worker.work(20, first=20)
            await until(worker.delivered)
            async with client(server.url) as connected:
                await connected.jetstream().purge_stream(STREAM)
            async with following(positions=positions) as after:
                after.listen(endpoint)
                await after.heals(worker)

        assert after.stream().missed == 40

    run(scenario())


class Beside:
    """What a test does in other threads while its own event loop, and every reader on it, stands still."""

    def __init__(self, server: NatsServer) -> None:
        self._server = server

    def wait_for(self, *workers: Worker) -> None:
        """Wait until the server has everything that these workers published."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not all(worker.delivered() for worker in workers):
            assert time.monotonic() < deadline, "the server never got it"
            time.sleep(0.005)

    def purge(self) -> None:
        """Remove every message of the stream."""

        async def remove_all() -> None:
            async with client(self._server.url) as connected:
                await connected.jetstream().purge_stream(STREAM)

        thread = threading.Thread(target=asyncio.run, args=(remove_all(),))
        thread.start()
        thread.join()


@contextlib.contextmanager
def standing_still(server: NatsServer) -> Iterator[Beside]:
    """Mark a block that never awaits: no reader of this process gets a turn in it."""
    yield Beside(server)
