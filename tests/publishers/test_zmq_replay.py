"""The replay socket gives back what a consumer missed, in the forms that engines use."""

import pytest
import zmq

from kvrouter_publishers import ZmqEventPublisher
from tests.publishers.wire import ANY_TCP, Consumer, ask_replay, consumers, read_replay, stored, wait_for

END = b"\xff" * 8


def filled(
    batches: int, *, replay_topic: bool = True, buffer_steps: int = 10_000, blocks: int = 1
) -> ZmqEventPublisher:
    """A publisher that has sent `batches` batches."""
    publisher = ZmqEventPublisher(
        ANY_TCP, replay_endpoint=ANY_TCP, topic="t", replay_topic=replay_topic, buffer_steps=buffer_steps
    )
    for number in range(batches):
        publisher.publish([stored(number, blocks)])
    wait_for(lambda: publisher.statistics()["batches_published"] == batches)
    return publisher


def sequences(messages: list[list[bytes]]) -> list[int]:
    """The sequence numbers of a replay, without its end."""
    return [int.from_bytes(frames[-2]) for frames in messages[:-1]]


def test_the_newer_form_carries_the_topic() -> None:
    """VLLM from 0.26 and SGLang from 0.5.22 on."""
    with consumers() as context, filled(3) as publisher:
        messages = read_replay(ask_replay(context, publisher, 1))

    assert [frames[:-1] for frames in messages[:-1]] == [[b"", b"t", n.to_bytes(8)] for n in (1, 2)]
    assert messages[-1] == [b"", b"", END, b""]


def test_the_older_form_does_not() -> None:
    """Consumers written for vLLM up to 0.25 count frames from the left."""
    with consumers() as context, filled(2, replay_topic=False) as publisher:
        messages = read_replay(ask_replay(context, publisher, 0))

    assert [frames[:-1] for frames in messages[:-1]] == [[b"", n.to_bytes(8)] for n in (0, 1)]
    assert messages[-1] == [b"", END, b""]


def test_a_request_beyond_the_newest_is_answered_by_the_end_alone() -> None:
    """That is how a consumer learns that it missed nothing."""
    with consumers() as context, filled(2) as publisher:
        messages = read_replay(ask_replay(context, publisher, 2))

    assert messages == [[b"", b"", END, b""]]


def test_the_oldest_batches_leave_the_ring() -> None:
    """A replay may begin above what was asked for; the consumer has to look."""
    with consumers() as context, filled(10, buffer_steps=4) as publisher:
        messages = read_replay(ask_replay(context, publisher, 0))

        assert sequences(messages) == [6, 7, 8, 9]
        assert publisher.statistics()["replayable_batches"] == 4


@pytest.mark.parametrize(
    "request_frames", [[], [b""], [b"", b"short"], [b"x", bytes(8)], [b"", bytes(8), b""], [b"", bytes(9)]]
)
def test_any_other_request_is_ignored_and_counted(request_frames: list[bytes]) -> None:
    """The documented form is the only one; nothing else may stop the publisher."""
    with consumers() as context, filled(1) as publisher:
        stranger = context.socket(zmq.DEALER)
        assert publisher.replay_endpoint is not None
        stranger.connect(publisher.replay_endpoint)
        stranger.send_multipart(request_frames or [b"hello"])
        wait_for(lambda: publisher.statistics()["replay_requests_ignored"] == 1)

        assert sequences(read_replay(ask_replay(context, publisher, 0))) == [0]


def test_a_slow_reader_gets_every_batch_and_the_end() -> None:
    """Old engines drop in the middle when the reader's buffer is full; we wait for it."""
    with consumers() as context, filled(6000, blocks=30) as publisher:
        dealer = ask_replay(context, publisher, 0, receive_bound=1)
        wait_for(lambda: publisher.statistics()["replay_batches_sent"] > 1000)
        assert publisher.statistics()["replays_served"] == 0

        messages = read_replay(dealer)

        assert sequences(messages) == list(range(6000))
        wait_for(lambda: publisher.statistics()["replays_served"] == 1)


def test_live_events_flow_while_a_reader_stalls() -> None:
    """One consumer's replay is not the others' problem."""
    with consumers() as context, filled(6000, blocks=30) as publisher:
        ask_replay(context, publisher, 0, receive_bound=1)
        wait_for(lambda: publisher.statistics()["replay_batches_sent"] > 1000)
        consumer = Consumer(context)
        consumer.attach(publisher)

        publisher.publish([stored(77)])

        assert consumer.batch()[1].events == (stored(77),)
        assert publisher.statistics()["replays_served"] == 0


def test_a_reader_that_leaves_frees_its_replay() -> None:
    """A router that dies in the middle of a replay costs nothing for long."""
    with consumers() as context, filled(6000, blocks=30) as publisher:
        dealer = ask_replay(context, publisher, 0, receive_bound=1)
        wait_for(lambda: publisher.statistics()["replay_batches_sent"] > 1000)

        dealer.close(linger=0)

        wait_for(lambda: publisher.statistics()["replays_abandoned"] == 1)


def test_replays_in_progress_are_bounded() -> None:
    """The seventeenth asks again later; subscribers retry."""
    with consumers() as context, filled(6000, blocks=30) as publisher:
        for _ in range(17):
            ask_replay(context, publisher, 0, receive_bound=1)

        wait_for(lambda: publisher.statistics()["replays_refused"] == 1)


def test_a_second_request_replaces_the_first() -> None:
    """The same consumer asked anew; it no longer wants the old answer."""
    with consumers() as context, filled(6000, blocks=30) as publisher:
        dealer = ask_replay(context, publisher, 0, receive_bound=1)
        wait_for(lambda: publisher.statistics()["replay_batches_sent"] > 1000)
        dealer.send_multipart([b"", (5998).to_bytes(8)])

        received = sequences(read_replay(dealer))

        assert received[-2:] == [5998, 5999]
        assert len(received) < 6000
