"""The hand-over keeps order and its bound, and the ring what was sent last."""

import threading

from kvrouter_publishers.net_changes import NetChanges
from kvrouter_publishers.outbox import Outbox
from kvrouter_publishers.places import Layout, Places
from kvrouter_publishers.ring import ReplayRing
from tests.publishers.wire import removed, stored


def _outbox(batches_max: int) -> Outbox:
    return Outbox(batches_max, lambda: NetChanges(Places(), Layout(), None))


def test_batches_come_out_in_order() -> None:
    """First in, first out, with the time of publishing."""
    outbox = _outbox(10)
    for number in range(3):
        outbox.put(float(number), [stored(number)])

    taken = [outbox.take() for _ in range(4)]

    assert taken == [(0.0, [stored(0)]), (1.0, [stored(1)]), (2.0, [stored(2)]), None]


def test_a_full_outbox_keeps_its_bound() -> None:
    """Memory does not grow with what is published: what is beyond is summed up."""
    outbox = _outbox(8)

    for number in range(1000):
        outbox.put(0.0, [stored(number)])
        outbox.put(0.0, [removed(number)])

    assert len(outbox) == 9


def test_the_sum_comes_before_what_follows_it() -> None:
    """With the time of the last step in it."""
    outbox = _outbox(2)
    for number in range(5):
        outbox.put(float(number), [stored(number)])

    first = outbox.take()

    assert first is not None
    timestamp, changes = first
    assert isinstance(changes, NetChanges)
    assert (timestamp, changes.batches) == (2.0, 3)
    assert [outbox.take() for _ in range(3)] == [(3.0, [stored(3)]), (4.0, [stored(4)]), None]


def test_a_taker_that_holds_the_lock_does_not_hold_up_the_engine() -> None:
    """The bound gives way for a moment, and the next step comes back to it."""
    outbox = _outbox(4)
    with outbox.lock:
        for number in range(12):
            outbox.put(0.0, [stored(number)])
        assert len(outbox) == 12

    outbox.put(0.0, [stored(12)])

    assert len(outbox) == 5


def test_nothing_is_lost_between_two_threads() -> None:
    """Whatever the moment of a hand-over, every step is taken once: alone or in a sum."""
    outbox, total, taken = _outbox(3), 20_000, 0
    done = threading.Event()

    def put() -> None:
        for number in range(total):
            outbox.put(float(number), [stored(number)])
        done.set()

    engine = threading.Thread(target=put)
    engine.start()
    last = -1.0
    while not done.is_set() or len(outbox):
        with outbox.lock:
            parcel = outbox.take()
        if parcel is not None:
            timestamp, content = parcel
            count = content.batches if isinstance(content, NetChanges) else 1
            assert timestamp == last + count
            last, taken = timestamp, taken + count
    engine.join()

    assert taken == total


def test_the_ring_is_bounded_in_number() -> None:
    """Only the newest batches can be replayed."""
    ring = ReplayRing(batches_max=3, bytes_max=1000)

    for sequence in range(10):
        ring.add(sequence, b"x")

    assert [sequence for sequence, _ in ring.since(0)] == [7, 8, 9]


def test_the_ring_is_bounded_in_bytes() -> None:
    """Long prompts must not turn a bound in batches into gigabytes."""
    ring = ReplayRing(batches_max=100, bytes_max=10)

    for sequence in range(5):
        ring.add(sequence, b"xxxx")

    assert ring.bytes == 8
    assert [sequence for sequence, _ in ring.since(0)] == [3, 4]


def test_the_ring_answers_from_the_sequence_that_was_asked_for() -> None:
    """Nothing older, and nothing at all beyond the newest."""
    ring = ReplayRing(batches_max=100, bytes_max=1000)
    for sequence in (0, 1, 2, 4, 5):
        ring.add(sequence, b"x")

    assert [sequence for sequence, _ in ring.since(2)] == [2, 4, 5]
    assert [sequence for sequence, _ in ring.since(3)] == [4, 5]
    assert ring.since(6) == []
