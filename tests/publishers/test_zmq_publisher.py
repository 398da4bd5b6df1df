"""What leaves the publisher, as any consumer of vLLM's events would see it."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import msgpack
import pytest
import zmq

from kvrouter.errors import SettingsError
from kvrouter.events import AllBlocksCleared, BlockStored, decode_batch
from kvrouter_publishers import ZmqEventPublisher
from tests.publishers.wire import (
    ANY_TCP,
    WAIT_SECONDS,
    Consumer,
    ask_replay,
    consumers,
    read_replay,
    removed,
    stored,
    wait_for,
)
from tests.servers import free_tcp


def port(endpoint: str | None) -> int:
    """The port of a TCP endpoint."""
    assert endpoint is not None
    return int(endpoint.rpartition(":")[2])


@contextmanager
def rank_one() -> Iterator[tuple[ZmqEventPublisher, str, str]]:
    """A publisher of rank 1, and the addresses of rank 0 that it was given.

    Its ports lie below those that the system hands out: above a port that the system chose for listening often
    lies one that it gave to somebody's outgoing connection. And below those of `tests.servers.free_port`.
    """
    for base in random.sample(range(10_000, 14_000, 2), 100):
        events, replays = f"tcp://127.0.0.1:{base}", f"tcp://127.0.0.1:{base + 500}"
        try:
            publisher = ZmqEventPublisher(events, replay_endpoint=replays, rank=1, bind=True)
        except SettingsError:
            continue  # Somebody has one of them.
        with publisher:
            yield publisher, events, replays
        return
    raise AssertionError("no free ports")


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
def test_a_message_is_topic_sequence_and_payload(transport: str, tmp_path: Path) -> None:
    """Three frames, the sequence in eight big-endian bytes, the payload vLLM's batch."""
    endpoint = ANY_TCP if transport == "tcp" else f"ipc://{tmp_path}/live"
    with consumers() as context, ZmqEventPublisher(endpoint, topic="kv@pod@model") as publisher:
        consumer = Consumer(context, b"kv@")
        expected = consumer.attach(publisher)

        publisher.publish([stored(7), removed(8)])
        topic, sequence, payload = consumer.frames()

    timestamp, events, rank = msgpack.unpackb(payload)
    assert (topic, sequence) == (b"kv@pod@model", expected.to_bytes(8))
    assert isinstance(timestamp, float)
    assert rank == 0
    assert [event["type"] for event in events] == ["BlockStored", "BlockRemoved"]


def test_sequences_start_at_zero_and_have_no_holes() -> None:
    """A consumer may take every hole for a loss."""
    with (
        consumers() as context,
        ZmqEventPublisher(ANY_TCP, replay_endpoint=ANY_TCP) as publisher,
    ):
        for number in range(5):
            publisher.publish([stored(number)])
        wait_for(lambda: publisher.statistics()["batches_published"] == 5)

        replayed = read_replay(ask_replay(context, publisher, 0))

    assert [int.from_bytes(frames[-2]) for frames in replayed[:-1]] == [0, 1, 2, 3, 4]
    assert decode_batch(replayed[3][-1]).events == (stored(3),)


def test_an_empty_step_publishes_nothing() -> None:
    """Most engine steps change no block."""
    with ZmqEventPublisher(ANY_TCP) as publisher:
        publisher.publish([])
        publisher.publish([stored(1)])
        wait_for(lambda: publisher.statistics()["batches_published"])

        assert publisher.statistics()["next_sequence"] == 1


def test_the_array_encoding_is_for_consumers_of_older_engines() -> None:
    """VLLM up to 0.23 wrote each event as an array that begins with its name."""
    with consumers() as context, ZmqEventPublisher(ANY_TCP, encoding="array") as publisher:
        consumer = Consumer(context)
        consumer.attach(publisher)

        publisher.publish([stored(7)])
        events = msgpack.unpackb(consumer.frames()[2])[1]

    assert events[0][0] == "BlockStored"


def test_ranks_publish_on_neighbouring_ports_and_say_who_they_are() -> None:
    """Port = base + rank, for events and for replays, and the rank is in every batch."""
    with consumers() as context, rank_one() as (publisher, events, replays):
        consumer = Consumer(context)
        consumer.attach(publisher)
        publisher.publish([stored(1)])
        _, batch = consumer.batch()

        assert port(publisher.endpoint) == port(events) + 1
        assert port(publisher.replay_endpoint) == port(replays) + 1
        assert batch.data_parallel_rank == 1


def test_a_concrete_address_is_connected_to() -> None:
    """A central consumer binds, the engines connect: vLLM's other direction."""
    with consumers() as context:
        consumer = Consumer(context)
        consumer.socket.bind(ANY_TCP)
        with ZmqEventPublisher(consumer.socket.getsockopt_string(zmq.LAST_ENDPOINT)) as publisher:
            consumer.prove(publisher)
            publisher.publish([stored(5)])

            assert consumer.batch()[1].events == (stored(5),)


def test_bind_overrides_the_rule() -> None:
    """An engine that should listen on one interface only says so."""
    endpoint = free_tcp()

    with ZmqEventPublisher(endpoint, bind=True) as publisher:
        assert publisher.endpoint == endpoint


def test_an_inproc_publisher_shares_its_hosts_context() -> None:
    """In one process events need no network."""
    with consumers() as context:
        publisher = ZmqEventPublisher("inproc://events", context=context)
        consumer = Consumer(context)
        consumer.attach(publisher)

        publisher.publish([stored(9)])

        assert consumer.batch()[1].events == (stored(9),)
        publisher.close()


def test_a_taken_address_is_an_error_at_once() -> None:
    """Not later, in a thread that nobody watches."""
    with ZmqEventPublisher(ANY_TCP) as first, pytest.raises(SettingsError, match=r"cannot bind tcp://.*in use"):
        ZmqEventPublisher(first.endpoint, bind=True)


def test_a_taken_replay_address_frees_the_other_one() -> None:
    """A failed start leaves nothing behind, so it can be tried again."""
    endpoint = free_tcp()
    with ZmqEventPublisher(ANY_TCP) as other, pytest.raises(SettingsError):
        ZmqEventPublisher(endpoint, replay_endpoint=other.endpoint, bind=True)

    with ZmqEventPublisher(endpoint, bind=True) as publisher:
        assert publisher.statistics()["running"] == 1


def test_a_wrong_curve_key_is_an_error_at_once() -> None:
    """A key that cannot be one must not end in plain text."""
    with pytest.raises(SettingsError, match="cannot publish"):
        ZmqEventPublisher(ANY_TCP, curve_secret_key=b"short")


def test_closing_sends_what_is_waiting() -> None:
    """The last events of an engine are not lost to its exit."""
    with consumers() as context:
        publisher = ZmqEventPublisher(ANY_TCP)
        consumer = Consumer(context)
        consumer.attach(publisher)

        for number in range(500):
            publisher.publish([stored(number)])
        publisher.close(timeout_seconds=WAIT_SECONDS)

        assert [consumer.batch()[1].events[0] for _ in range(500)] == [stored(number) for number in range(500)]


def test_closing_twice_is_closing_once() -> None:
    """A context manager inside a caller that also closes is fine."""
    publisher = ZmqEventPublisher(ANY_TCP)

    publisher.close()
    publisher.close()

    assert publisher.statistics()["running"] == 0


def test_the_address_is_free_after_closing() -> None:
    """A restarted engine takes the same port, and its numbers begin again."""
    endpoint = free_tcp()
    with ZmqEventPublisher(endpoint, bind=True) as first:
        first.publish([stored(1)])

    with ZmqEventPublisher(endpoint, bind=True) as second:
        assert second.statistics()["next_sequence"] == 0


def test_a_store_that_cannot_be_encoded_costs_only_itself() -> None:
    """Consumers then believe in less than there is, which is harmless: no reset."""
    broken = BlockStored(block_hashes=(object(),), token_ids=(1,), block_size=1)  # type: ignore[arg-type]
    with consumers() as context, ZmqEventPublisher(ANY_TCP) as publisher:
        consumer = Consumer(context)
        expected = consumer.attach(publisher)

        publisher.publish([stored(1), broken, stored(2)])
        sequence, batch = consumer.batch()

        assert (sequence, batch.events) == (expected, (stored(1), stored(2)))
        assert publisher.statistics()["events_dropped_unencodable"] == 1
        assert publisher.statistics()["losses_announced"] == 0


@pytest.mark.parametrize("nonsense", [42, object(), [None], ["text"], [removed(cast("int", object()))]])
def test_what_might_have_been_a_removal_resets_the_consumers(nonsense: object) -> None:
    """A removal that is lost would leave consumers believing in a block for ever."""
    with consumers() as context, ZmqEventPublisher(ANY_TCP) as publisher:
        consumer = Consumer(context)
        expected = consumer.attach(publisher)

        publisher.publish(nonsense)  # type: ignore[arg-type]
        publisher.publish([stored(1)])
        first, second = consumer.batch(), consumer.batch()

        assert (first[0], first[1].events) == (expected + 1, (AllBlocksCleared(),))
        assert (second[0], second[1].events) == (expected + 2, (stored(1),))
        assert publisher.statistics()["events_dropped_unencodable"] == 1
        assert publisher.statistics()["losses_announced"] == 1
