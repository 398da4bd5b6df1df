"""Publishing into a Redis stream: what is there afterwards, and what a guest in an engine may rely on."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from kvrouter.errors import MissingExtraError, SettingsError
from kvrouter.events import Envelope, decode_batch, decode_envelope
from kvrouter.events.redis_names import REFUSED_ANSWER, EntryId, request_key
from kvrouter_publishers import RedisEventPublisher
from kvrouter_publishers.core import PublisherCore
from kvrouter_publishers.redis_counters import RedisCounters
from kvrouter_publishers.redis_outgoing import Outgoing
from tests.publishers.wire import WAIT_SECONDS, stored, wait_for
from tests.servers import RedisServer, redis_server
from tests.subscribers.scene import WORKER

STREAM = "kv-events"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One server for all tests of this module."""
    with redis_server(tmp_path_factory.mktemp("redis")) as started:
        yield started


@pytest.fixture
def client(shared: RedisServer) -> Iterator[Any]:
    """A client of an empty server."""
    with redis.Redis.from_url(shared.url, protocol=2) as connected:
        connected.flushall()
        yield connected


@pytest.fixture
def endpoint(shared: RedisServer) -> str:
    """The stream of these tests."""
    return f"{shared.url}/0/{STREAM}"


def frames(client: Any) -> list[Envelope]:
    """Everything that is in the stream."""
    return [decode_envelope(fields[b"e"]) for _, fields in client.xrange(STREAM)]


def test_batches_stand_in_the_stream_in_their_order(endpoint: str, client: Any) -> None:
    """The first says that the publisher lives; each names its source, its life and its number."""
    with RedisEventPublisher(endpoint, worker_id="worker", rank=0) as publisher:
        for number in range(200):
            publisher.publish([stored(number)])
        publisher.close(timeout_seconds=WAIT_SECONDS)

    found = frames(client)
    assert [frame.sequence for frame in found] == list(range(201))
    assert {(frame.source, frame.incarnation) for frame in found} == {(WORKER, found[0].incarnation)}
    assert decode_batch(found[0].payload).events == ()
    assert [decode_batch(frame.payload).events[0] for frame in found[1:]] == [stored(number) for number in range(200)]
    statistics = publisher.statistics()
    assert (statistics["frames_acknowledged"], statistics["frames_resent"], statistics["crashes"]) == (201, 0, 0)


def test_the_stream_keeps_about_as_much_as_it_should(endpoint: str, client: Any) -> None:
    """Redis trims whole nodes of a hundred entries."""
    with RedisEventPublisher(endpoint, worker_id="worker", maxlen=300) as publisher:
        for number in range(2000):
            publisher.publish([stored(number)])
        publisher.close(timeout_seconds=WAIT_SECONDS)

    assert 300 <= client.xlen(STREAM) <= 500


def test_a_server_that_is_not_there_delays_nobody(tmp_path: Path) -> None:
    """`publish` does not wait for it, and what was published is sent when the server comes."""
    server = RedisServer(tmp_path)
    with RedisEventPublisher(f"{server.url}/0/{STREAM}", worker_id="worker") as publisher:
        for number in range(1000):
            publisher.publish([stored(number)])
        wait_for(lambda: publisher.last_error is not None)
        try:
            server.start()
            wait_for(lambda: publisher.statistics()["frames_acknowledged"] == 1001)
        finally:
            server.stop()


def test_closing_is_bounded_whatever_the_server_does(tmp_path: Path) -> None:
    """An engine that shuts down does not wait for a broker."""
    with redis_server(tmp_path) as server:
        publisher = RedisEventPublisher(f"{server.url}/0/{STREAM}", worker_id="worker")
        wait_for(lambda: publisher.statistics()["connected"] == 1)
        with server.paused():
            publisher.publish([stored(1)])
            publisher.close(timeout_seconds=0.2)

            wait_for(lambda: publisher.statistics()["running"] == 0)
            publisher.publish([stored(2)])
            assert publisher.statistics()["events_dropped_not_running"] == 1
            publisher.close()


def test_a_server_that_is_full_is_tried_again(tmp_path: Path) -> None:
    """It refuses, and takes everything when there is room: nothing is lost, nothing comes out of order."""
    with (
        redis_server(tmp_path) as server,
        redis.Redis.from_url(server.url, protocol=2) as connected,
        RedisEventPublisher(f"{server.url}/0/{STREAM}", worker_id="worker") as publisher,
    ):
        wait_for(lambda: publisher.statistics()["frames_acknowledged"] == 1)
        connected.config_set("maxmemory", "1")
        for number in range(100):
            publisher.publish([stored(number)])
        wait_for(lambda: "OutOfMemory" in str(publisher.last_error) or "OOM" in str(publisher.last_error))
        connected.config_set("maxmemory", "0")
        wait_for(lambda: publisher.statistics()["frames_acknowledged"] == 101)

        assert [frame.sequence for frame in frames(connected)] == list(range(101))


def test_who_asks_gets_the_whole_state(endpoint: str, client: Any) -> None:
    """In parts that belong together, as of the last batch that was taken."""
    with RedisEventPublisher(endpoint, worker_id="worker") as publisher:
        publisher.publish([stored(1), stored(2)])
        wait_for(lambda: publisher.statistics()["frames_acknowledged"] == 2)
        client.rpush(request_key(STREAM, WORKER), "answer-1", "answer-2")

        for answer in ("answer-1", "answer-2"):
            _, part = client.blpop(answer, timeout=30)
            frame = decode_envelope(part)
            assert (frame.source, frame.sequence, frame.snapshot) == (WORKER, 1, (0, 1))
        wait_for(lambda: publisher.statistics()["snapshot_requests_answered"] == 2)


def test_who_asks_a_publisher_without_snapshots_is_told(endpoint: str, client: Any) -> None:
    """At once, instead of waiting in vain."""
    with RedisEventPublisher(endpoint, worker_id="worker", snapshots=False):
        client.rpush(request_key(STREAM, WORKER), "answer")

        assert client.blpop("answer", timeout=30) == (b"answer", REFUSED_ANSWER)


def test_an_asker_that_does_not_read_is_given_up(endpoint: str, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it was sent expires; others are served after it."""
    monkeypatch.setattr("kvrouter_publishers.redis_session._ANSWER_SECONDS", 1)
    monkeypatch.setattr("kvrouter_publishers.redis_session._PARTS_WAITING_MAX", 2)
    with RedisEventPublisher(endpoint, worker_id="worker") as publisher:
        for first in range(0, 30_000, 300):
            publisher.publish([stored(number) for number in range(first, first + 300)])
        wait_for(lambda: publisher.statistics()["frames_acknowledged"] == 101)
        client.rpush(request_key(STREAM, WORKER), "stuck")

        wait_for(lambda: publisher.statistics()["snapshot_requests_abandoned"] == 1)
        wait_for(lambda: not client.exists("stuck"))


@pytest.mark.parametrize(
    ("endpoint", "options", "text"),
    [
        ("redis://host/stream", {}, "must look like"),
        ("nats://host/stream", {}, "must start with"),
        ("redis://host/0/stream", {"maxlen": 0}, "maxlen"),
        ("redis://host/0/stream", {"request_seconds": 0}, "request_seconds"),
        ("redis://host/0/stream", {"digest_seconds": -1}, "digest_seconds"),
        ("redis://host/0/stream", {"worker_id": ""}, "worker"),
        ("redis://user:s3cret@host/stream", {}, "must look like"),
    ],
)
def test_wrong_settings_are_refused(endpoint: str, options: dict[str, Any], text: str) -> None:
    """Where the publisher is built, in the engine's own thread, and without a password in the text."""
    with pytest.raises(SettingsError, match=text) as raised:
        RedisEventPublisher(endpoint, **{"worker_id": "worker", **options})

    assert "s3cret" not in str(raised.value)


def test_a_missing_client_library_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it."""
    monkeypatch.setitem(sys.modules, "redis", None)
    monkeypatch.setattr("kvrouter_publishers.redis_publisher.find_spec", lambda _: None)

    with pytest.raises(MissingExtraError, match=r"kvrouter\[redis\]"):
        RedisEventPublisher("redis://host/0/stream", worker_id="worker")


def outgoing(*, steps: int, kept: int = 1000) -> tuple[Outgoing, RedisCounters]:
    """Frames of an engine that made some steps."""
    core = PublisherCore(worker_id="worker", rank=0, buffer_steps=kept)
    for number in range(steps):
        core.put([stored(number)])
    counters = RedisCounters()
    return Outgoing(core, counters, stored_max=1000), counters


def sequences(payloads: Any) -> list[int]:
    """The numbers of frames."""
    return [decode_envelope(payload).sequence for payload in payloads]


def test_frames_whose_answer_was_lost_are_sent_again_first() -> None:
    """In their order, before anything newer."""
    frames, counters = outgoing(steps=100)
    assert sequences(frames.next(0.0)) == list(range(64))
    frames.send_again()
    assert sequences(frames.next(0.0)) == list(range(64))
    frames.acknowledge([EntryId(1, number) for number in range(64)])

    assert sequences(frames.next(0.0)) == list(range(64, 101))
    assert counters.frames_resent == 64


def test_frames_that_a_server_lost_are_sent_again_before_newer_ones() -> None:
    """As far as they are kept; the rest is a gap that a snapshot closes."""
    frames, counters = outgoing(steps=99, kept=50)
    frames.acknowledge([EntryId(1, number) for number in range(len(frames.next(0.0)))])
    assert sequences(frames.next(0.0)) == list(range(64, 100))
    frames.send_again()
    frames.lost_behind(EntryId(1, 40))

    assert sequences(frames.next(0.0)) == list(range(50, 100))
    assert (counters.streams_lost, counters.frames_lost) == (1, 9)
    frames.lost_behind(EntryId(1, 40))
    assert counters.streams_lost == 1
