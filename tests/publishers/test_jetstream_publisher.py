"""What the JetStream publisher puts on the wire, and what it never does to its host."""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
from nats.aio.client import Client
from nats.errors import NoRespondersError
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType

import kvrouter_publishers
from kvrouter.errors import MissingExtraError, SettingsError
from kvrouter.events import BlockStored, decode_batch, decode_envelope
from kvrouter.events.nats_names import NatsCredentials, events_subject, state_subject
from kvrouter_publishers import JetStreamEventPublisher
from tests.publishers.wire import WAIT_SECONDS, wait_for
from tests.servers import NatsServer, nats_server
from tests.subscribers.jetstream_scene import STREAM, Worker, api, client, working
from tests.subscribers.scene import WORKER, run, until


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    """A server without any stream."""
    with nats_server(tmp_path) as started:
        yield started


@pytest.fixture
def endpoint(server: NatsServer) -> str:
    """The stream of these tests."""
    return f"{server.url}/{STREAM}"


async def messages(connected: Client) -> list[Any]:
    """Every message of the stream, with its headers."""
    jetstream = connected.jetstream()
    last = (await jetstream.stream_info(STREAM)).state.last_seq
    return [await jetstream.get_msg(STREAM, number) for number in range(1, last + 1)]


def test_a_missing_stream_is_made_as_documented(endpoint: str, server: NatsServer) -> None:
    """Files, limits and the window in which a batch that is sent twice is kept once."""

    async def scenario() -> None:
        with working(endpoint, stream_max_age_seconds=300.0) as worker:
            await until(worker.delivered)
            async with client(server.url) as connected:
                made = (await connected.jetstream().stream_info(STREAM)).config

        assert made.subjects == [f"{STREAM}.*"]
        assert (made.storage, made.retention, made.discard) == (
            StorageType.FILE,
            RetentionPolicy.LIMITS,
            DiscardPolicy.OLD,
        )
        assert (made.max_age, made.duplicate_window, made.max_bytes) == (300.0, 120.0, -1)

    run(scenario())


def test_a_short_age_shortens_the_window_of_duplicates(endpoint: str, server: NatsServer) -> None:
    """The server refuses a window that is longer than the age."""

    async def scenario() -> None:
        with working(endpoint, stream_max_age_seconds=30.0) as worker:
            await until(worker.delivered)
            async with client(server.url) as connected:
                made = (await connected.jetstream().stream_info(STREAM)).config

        assert (made.max_age, made.duplicate_window) == (30.0, 30.0)

    run(scenario())


def test_a_stream_that_is_there_is_used_as_it_is(endpoint: str, server: NatsServer) -> None:
    """Its limits are an operator's to choose."""

    async def scenario() -> None:
        async with client(server.url) as connected:
            await connected.jetstream().add_stream(name=STREAM, subjects=[f"{STREAM}.>"], max_msgs=17)
            with working(endpoint) as worker:
                worker.store(1)
                await until(lambda: worker.count("frames_acknowledged") == 2)
            kept = (await connected.jetstream().stream_info(STREAM)).config

        assert kept.max_msgs == 17

    run(scenario())


def test_a_stream_of_something_else_is_refused_and_said_so(endpoint: str, server: NatsServer) -> None:
    """Batches that no stream keeps would be lost; they wait instead."""

    async def scenario() -> None:
        async with client(server.url) as connected:
            await connected.jetstream().add_stream(name=STREAM, subjects=["orders"])
            with working(endpoint) as worker:
                worker.store(1)
                await until(lambda: worker.publisher.last_error)
                assert "does not keep kv-events.queue" in str(worker.publisher.last_error)
                await connected.jetstream().delete_stream(STREAM)
                await until(lambda: worker.count("frames_acknowledged") == 2)

    run(scenario())


def test_batches_are_envelopes_in_order_with_the_documented_identity(endpoint: str, server: NatsServer) -> None:
    """The identity names worker, rank, life and number, so that no two batches share one."""

    async def scenario() -> None:
        with working(endpoint) as worker:
            for number in range(20):
                worker.store(number)
            await until(lambda: worker.count("frames_acknowledged") == 21)
            async with client(server.url) as connected:
                kept = await messages(connected)

        frames = [decode_envelope(message.data) for message in kept]
        life = f"{frames[0].incarnation:016x}"
        assert [frame.sequence for frame in frames] == list(range(21))
        assert [decode_batch(frame.payload).events[0].block_hashes[0] for frame in frames[1:]] == list(range(1, 21))  # type: ignore[union-attr]
        assert [message.headers["Nats-Msg-Id"] for message in kept] == [f"worker-0-{life}:{n}" for n in range(21)]
        assert {message.subject for message in kept} == {events_subject(STREAM)}

    run(scenario())


def test_a_publisher_has_no_consumer(endpoint: str, server: NatsServer) -> None:
    """It only publishes: what it costs the server does not grow with its life."""

    async def scenario() -> None:
        with working(endpoint) as worker:
            worker.work(50)
            await until(worker.delivered)
            async with client(server.url) as connected:
                info = await api(connected, f"STREAM.INFO.{STREAM}")

        assert info["state"]["consumer_count"] == 0

    run(scenario())


def test_at_most_once_waits_for_no_acknowledgement(endpoint: str, server: NatsServer) -> None:
    """The stream has the batches all the same while nothing fails; nobody checks."""

    async def scenario() -> None:
        with working(endpoint, delivery="at-most-once") as worker:
            worker.work(20)
            async with client(server.url) as connected:
                await until(worker.delivered)

                async def kept() -> int:
                    return int((await connected.jetstream().stream_info(STREAM)).state.messages)

                while await kept() < 41:
                    await asyncio.sleep(0.01)
                first = await connected.jetstream().get_msg(STREAM, 1)

        assert worker.count("frames_acknowledged") == 0
        assert not first.headers

    run(scenario())


def test_large_steps_are_divided_to_fit_the_servers_bound(tmp_path: Path) -> None:
    """A step is as large as a prefill; a server's `max_payload` may be small."""

    async def scenario(server: NatsServer) -> None:
        with working(f"{server.url}/{STREAM}") as worker:
            worker.publisher.publish(
                [BlockStored(block_hashes=tuple(range(2000)), token_ids=tuple(range(8000)), block_size=4, medium="GPU")]
            )
            await until(lambda: worker.count("frames_acknowledged") >= 3)
            async with client(server.url) as connected:
                kept = await messages(connected)

        stored = [event for message in kept for event in decode_batch(decode_envelope(message.data).payload).events]
        assert sum(len(event.block_hashes) for event in stored if isinstance(event, BlockStored)) == 2000
        assert max(len(message.data) for message in kept) <= 16_384

    with nats_server(tmp_path, configuration="max_payload: 16384") as server:
        run(scenario(server))


def test_a_batch_that_the_server_would_not_take_any_more_is_a_counted_gap(tmp_path: Path) -> None:
    """Under way when a server with a smaller bound took over: the missing number shows the loss."""

    async def scenario(server: NatsServer) -> None:
        with working(f"{server.url}/{STREAM}") as worker:
            await until(worker.delivered)
            server.pause()
            worker.store(*range(2000))
            await until(lambda: worker.count("unacknowledged_frames") == 1)
            server.kill()
            small = NatsServer(tmp_path, configuration="max_payload: 16384", port=server.port)
            try:
                small.start()
                worker.store(5000)
                await until(lambda: worker.count("frames_acknowledged") == 2)
                async with client(small.url) as connected:
                    kept = [decode_envelope(message.data).sequence for message in await messages(connected)]
            finally:
                small.kill()

        assert (kept, worker.count("frames_too_large")) == ([0, 2], 1)

    with nats_server(tmp_path) as server:
        run(scenario(server))


async def ask(connected: Client, request: object) -> bytes:
    """Ask the worker of these tests for its state."""
    subject = state_subject(STREAM, WORKER)
    return bytes((await connected.request(subject, msgpack.packb(request), timeout=30)).data)


def test_the_whole_state_is_answered_in_parts(tmp_path: Path) -> None:
    """Each part fits into a message; together they are one snapshot, also while new batches are published."""

    async def scenario(server: NatsServer) -> None:
        with working(f"{server.url}/{STREAM}") as worker:
            for number in range(1000):
                worker.store(number)
            await until(worker.delivered)
            async with client(server.url) as connected:
                first = decode_envelope(await ask(connected, {"part": 0}))
                assert first.snapshot is not None
                worker.remove(0)
                await until(worker.delivered)
                of = {"incarnation": first.incarnation, "sequence": first.sequence}
                rest = [
                    decode_envelope(await ask(connected, {"part": part, "of": of}))
                    for part in range(1, first.snapshot[1])
                ]

        parts = [first, *rest]
        assert [part.snapshot for part in parts] == [(number, len(parts)) for number in range(len(parts))]
        assert {part.sequence for part in parts} == {1000}
        assert len(parts) > 1
        events = [event for part in parts for event in decode_batch(part.payload).events]
        assert {each for event in events for each in event.block_hashes} == set(range(1, 1001))  # type: ignore[union-attr]

    with nats_server(tmp_path, configuration="max_payload: 16384") as server:
        run(scenario(server))


def test_nobody_answers_for_a_publisher_that_is_gone(endpoint: str, server: NatsServer) -> None:
    """The asker knows at once, instead of waiting."""

    async def scenario() -> None:
        async with client(server.url) as connected:
            with working(endpoint) as worker:
                await until(worker.delivered)
                answer = await ask(connected, {"part": 0})
            with pytest.raises(NoRespondersError):
                await ask(connected, {"part": 0})

        assert decode_envelope(answer).snapshot == (0, 1)

    run(scenario())


def test_a_server_that_is_not_there_costs_the_engine_nothing(tmp_path: Path) -> None:
    """`publish` neither waits nor raises; what was published arrives when the server does."""

    async def scenario() -> None:
        server = NatsServer(tmp_path)
        with working(f"{server.url}/{STREAM}") as worker:
            worker.work(1000)  # Nobody else starts the server.
            await until(lambda: worker.publisher.last_error)
            try:
                server.start()
                await until(lambda: worker.count("frames_acknowledged") == 2001)
            finally:
                server.stop()

        assert worker.count("events_published") == 4000

    run(scenario())


def test_closing_without_a_server_takes_a_bounded_time(tmp_path: Path) -> None:
    """An engine that stops does not wait for a broker that is gone."""
    worker = Worker(f"{NatsServer(tmp_path).url}/{STREAM}")
    worker.store(1)

    worker.publisher.close(timeout_seconds=0.2)

    wait_for(lambda: worker.count("running") == 0)


def test_closing_before_a_server_that_stands_still_takes_a_bounded_time(endpoint: str, server: NatsServer) -> None:
    """It takes what we send, or no more of that, and acknowledges nothing."""

    async def scenario() -> None:
        worker = Worker(endpoint)
        await until(worker.delivered)
        with server.paused():
            worker.publisher.publish([BlockStored(block_hashes=tuple(range(500_000)), medium="GPU")])
            worker.publisher.close(timeout_seconds=0.2)
            await until(lambda: worker.count("running") == 0)

    run(scenario())


def test_what_was_published_before_the_close_is_in_the_stream(endpoint: str, server: NatsServer) -> None:
    """`close` waits for the acknowledgements, within its time."""

    async def scenario() -> None:
        worker = Worker(endpoint)
        worker.work(200)
        worker.publisher.close(timeout_seconds=WAIT_SECONDS)

        async with client(server.url) as connected:
            state = (await connected.jetstream().stream_info(STREAM)).state
        assert state.messages == 401

    run(scenario())


@pytest.mark.parametrize(
    ("configuration", "userinfo", "options"),
    [
        ("user: kv, password: s3cret", "kv:s3cret@", {}),
        ("user: kv, password: s3cret", "", {"credentials": NatsCredentials(username="kv", password="s3cret")}),
        ("token: t0ken", "t0ken@", {}),
        ("token: t0ken", "", {"credentials": NatsCredentials(token="t0ken")}),
    ],
)  # fmt: skip
def test_a_server_that_wants_credentials_gets_them(
    tmp_path: Path, configuration: str, userinfo: str, options: dict[str, Any]
) -> None:
    """In the address or beside it; they are shown nowhere."""

    async def scenario(server: NatsServer) -> None:
        with working(f"nats://{userinfo}127.0.0.1:{server.port}/{STREAM}", **options) as worker:
            await until(worker.delivered)
            assert worker.publisher.endpoint == f"nats://127.0.0.1:{server.port}/{STREAM}"

    with nats_server(tmp_path, configuration=f"authorization {{ {configuration} }}") as server:
        run(scenario(server))


def test_wrong_credentials_are_told_without_showing_them(tmp_path: Path) -> None:
    """The operator reads that the server refuses us, not what we said to it."""

    async def scenario(server: NatsServer) -> None:
        with working(f"nats://kv:wrong-s3cret@127.0.0.1:{server.port}/{STREAM}") as worker:
            await until(lambda: worker.publisher.last_error)
            assert "uthorization" in str(worker.publisher.last_error)
            assert "s3cret" not in str(worker.publisher.last_error)
            assert "s3cret" not in repr(vars(worker.publisher))

    with nats_server(tmp_path, configuration="authorization { user: kv, password: s3cret }") as server:
        run(scenario(server))


@pytest.mark.parametrize(
    ("endpoint", "options", "said"),
    [
        ("http://host/stream", {}, "must look like nats://"),
        ("nats://host:99999/stream", {}, "must look like nats://"),
        ("nats://host:4222", {}, "must be of letters"),
        ("nats://host/a.b", {}, "must be of letters"),
        ("nats://secret:word@/stream", {}, "must look like nats://"),
        ("nats://host/stream", {"delivery": "exactly-once"}, "delivery"),
        ("nats://host/stream", {"outstanding_max": 0}, "outstanding_max"),
        ("nats://host/stream", {"worker_id": ""}, "worker"),
    ],
)
def test_a_wrong_setting_is_said_when_the_publisher_is_built(endpoint: str, options: dict[str, Any], said: str) -> None:
    """Not in the background, where nobody would see it; passwords are not repeated."""
    with pytest.raises(SettingsError, match=said) as raised:
        JetStreamEventPublisher(endpoint, **{"worker_id": "worker", **options})

    assert "word" not in str(raised.value).replace("password", "")


def test_a_missing_client_library_is_one_sentence_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names of this package load without it; only the use needs it."""
    monkeypatch.delitem(sys.modules, "kvrouter_publishers.jetstream_session", raising=False)
    monkeypatch.delattr(kvrouter_publishers, "jetstream_session", raising=False)
    monkeypatch.setitem(sys.modules, "nats.aio.client", None)

    with pytest.raises(MissingExtraError, match=r"pip install 'kvrouter\[nats\]'"):
        JetStreamEventPublisher("nats://host/stream", worker_id="worker")
