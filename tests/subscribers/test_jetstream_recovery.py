"""Snapshots over NATS: in parts, from publishers that answer badly, or not at all."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest
from nats.aio.msg import Msg

from kvrouter.events import Source
from kvrouter.events.nats_names import state_subject
from tests.servers import NatsServer, nats_server
from tests.subscribers.jetstream_scene import QUICK, STREAM, client, following, frame, put, working
from tests.subscribers.scene import WORKER, run, until

Answer = Callable[[dict[str, Any]], bytes | None]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    """A server whose messages are small, so that snapshots have many parts."""
    with nats_server(tmp_path, configuration="max_payload: 16384") as started:
        yield started


@pytest.fixture
def endpoint(server: NatsServer) -> str:
    """The stream of these tests."""
    return f"{server.url}/{STREAM}"


@asynccontextmanager
async def scripted(server: NatsServer, answer: Answer) -> AsyncIterator[list[dict[str, Any]]]:
    """A publisher whose stream begins with its batch 5, and whose state is what `answer` says; yields the requests."""
    asked: list[dict[str, Any]] = []

    async def respond(message: Msg) -> None:
        asked.append(msgpack.unpackb(message.data))
        answered = answer(asked[-1])
        if answered is not None:
            await message.respond(answered)

    async with client(server.url) as connected:
        await connected.jetstream().add_stream(name=STREAM, subjects=[f"{STREAM}.*"])
        await connected.subscribe(state_subject(STREAM, WORKER), cb=respond)
        await put(connected, frame(5, 50))
        yield asked


def test_a_snapshot_of_many_parts_is_taken_whole(endpoint: str, server: NatsServer) -> None:
    """While the publisher goes on publishing."""

    async def scenario() -> None:
        with working(endpoint) as worker:
            worker.work(400)
            await until(worker.delivered)
            async with client(server.url) as connected:
                await connected.jetstream().purge_stream(STREAM)
            async with following() as scene:
                scene.listen(endpoint)
                worker.work(100, first=400)
                await scene.heals(worker)

        assert scene.status().snapshots >= 1
        assert worker.count("snapshot_parts_served") > 3

    run(scenario())


def test_a_publisher_without_snapshots_is_followed_as_far_as_it_can_be(endpoint: str, server: NatsServer) -> None:
    """What is known in part is under-claimed, never over-claimed."""

    async def scenario() -> None:
        with working(endpoint, snapshots=False) as worker:
            for number in range(20):
                worker.store(number)
            await until(worker.delivered)
            async with client(server.url) as connected:
                await connected.jetstream().purge_stream(STREAM, seq=15)
            async with following() as scene:
                scene.listen(endpoint)
                await until(lambda: scene.status().snapshots_failed >= 1 and scene.sink.holds(19))

        assert "none" in str(scene.status().last_error)
        assert not scene.sink.holds(0)

    run(scenario())


def test_parts_that_belong_together_are_asked_for_by_their_snapshot(endpoint: str, server: NatsServer) -> None:
    """Each further part names the life and number of the first."""

    def answer(request: dict[str, Any]) -> bytes:
        return frame(9, request["part"], snapshot=(request["part"], 7))

    async def scenario() -> None:
        async with scripted(server, answer) as asked, following() as scene:
            scene.listen(endpoint)
            await until(lambda: scene.sink.holds(*range(7)))
            assert not scene.sink.holds(50)

        of = {"incarnation": 7, "sequence": 9}
        assert asked == [{"part": 0}, *({"part": part, "of": of} for part in range(1, 7))]

    run(scenario())


def test_a_snapshot_that_is_gone_is_begun_again(endpoint: str, server: NatsServer) -> None:
    """The publisher keeps it for a while only."""
    gone = iter([True, False])

    def answer(request: dict[str, Any]) -> bytes:
        if request["part"] == 1 and next(gone, False):
            return b"gone"
        return frame(9, request["part"], snapshot=(request["part"], 2))

    async def scenario() -> None:
        async with scripted(server, answer) as asked, following() as scene:
            scene.listen(endpoint)
            await until(lambda: scene.sink.holds(0, 1))

        assert [request["part"] for request in asked] == [0, 1, 0, 1]

    run(scenario())


@pytest.mark.parametrize(
    "answer",
    [
        lambda request: b"",
        lambda request: b"\x93 not a frame",
        lambda request: frame(9, 1),
        lambda request: frame(9, 1, source=Source("other", 0), snapshot=(0, 1)),
        lambda request: frame(9, 1, snapshot=(1, 2)),
        lambda request: frame(9 + request["part"], 1, snapshot=(request["part"], 2)),
        lambda request: frame(9, 1, snapshot=(request["part"], 2 + request["part"])),
        lambda request: frame(9, *range(100), snapshot=(request["part"], 50)),
        lambda request: None,
    ],
    ids=["nothing", "no-frame", "no-part", "foreign", "wrong-part", "mixed", "other-size", "too-large", "silent"],
)
def test_an_answer_that_is_no_snapshot_changes_nothing(endpoint: str, server: NatsServer, answer: Answer) -> None:
    """It is counted and told; the source goes on with what the stream says."""

    async def scenario() -> None:
        limits = replace(QUICK, request_seconds=0.3, snapshot_bytes_max=20_000)
        async with scripted(server, answer), following(limits) as scene:
            scene.listen(endpoint)
            await until(lambda: scene.status().snapshots_failed >= 1)
            assert scene.sink.holds(50)
            assert not scene.sink.holds(1)

        assert "snapshot" in str(scene.status().last_error)

    run(scenario())


@pytest.mark.parametrize("method", ["connected", "replay_finished", "snapshot", "disconnected"])
def test_a_sink_that_fails_anywhere_does_not_end_the_subscriber(endpoint: str, server: NatsServer, method: str) -> None:
    """The fault is counted, and the source is followed on."""

    async def scenario() -> None:
        with working(endpoint) as worker:
            worker.work(20)
            await until(worker.delivered)
            async with client(server.url) as connected:
                await connected.jetstream().purge_stream(STREAM, seq=10)
            async with following() as scene:
                scene.sink.failing[method] = RuntimeError("broken on purpose")
                scene.listen(endpoint)
                await until(lambda: scene.status().connects == 1)
                server.restart()
                await until(lambda: scene.status().sink_errors == 1 and scene.status().connects == 2)
                worker.work(5, first=20)
                await until(lambda: scene.sink.applied() == worker.count("next_sequence") - 1)

    run(scenario())


def test_a_sink_that_fails_to_hear_of_a_failure_does_not_end_the_subscriber(endpoint: str) -> None:
    """Nobody publishes as this source, so there is no snapshot; that this cannot be told is counted too."""

    async def scenario() -> None:
        ghost = Source("ghost", 0)
        with working(endpoint) as worker:
            async with following() as scene:
                scene.listen(endpoint, WORKER, ghost)
                await scene.heals(worker)
                scene.sink.failing["snapshot_failed"] = RuntimeError("broken on purpose")
                scene.subscriber.resync(ghost)
                await until(lambda: scene.status(ghost).sink_errors == 1)
                worker.work(5)
                await scene.heals(worker)

    run(scenario())
