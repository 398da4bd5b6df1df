"""The hand-over keeps order, keeps its bound, and knows exactly where something was lost."""

from kvrouter_publishers.outbox import Outbox
from kvrouter_publishers.ring import ReplayRing
from tests.publishers.wire import stored


def test_batches_come_out_in_order() -> None:
    """First in, first out, with the time of publishing."""
    outbox = Outbox(10)
    for number in range(3):
        outbox.put(float(number), [stored(number)])

    parcels = [outbox.take() for _ in range(4)]

    assert [parcel and parcel.timestamp for parcel in parcels] == [0.0, 1.0, 2.0, None]
    assert all(parcel is None or parcel.lost_batches == 0 for parcel in parcels)


def test_a_full_outbox_keeps_its_bound() -> None:
    """Memory does not grow with what is published."""
    outbox = Outbox(8)

    for number in range(1000):
        outbox.put(0.0, [stored(number)])

    assert len(outbox) == 8


def test_a_loss_is_told_with_the_first_batch_after_it() -> None:
    """The taker must be able to state the loss before anything newer."""
    outbox = Outbox(2)
    for number in range(5):
        outbox.put(float(number), [stored(number), stored(number)])

    parcel = outbox.take()

    assert parcel is not None
    assert parcel.lost_batches == int(parcel.timestamp)
    assert parcel.lost_events == 2 * parcel.lost_batches


def test_a_loss_makes_room_for_the_next_batches() -> None:
    """A slow taker loses half its backlog at once, not one batch for each that it takes."""
    outbox = Outbox(100)
    for number in range(101):
        outbox.put(float(number), [stored(number)])

    first = outbox.take()
    for number in range(40):
        outbox.put(200.0 + number, [stored(number)])
    following = [outbox.take() for _ in range(len(outbox))]

    assert first is not None
    assert first.lost_batches == 50
    assert all(parcel is not None and parcel.lost_batches == 0 for parcel in following)


def test_every_batch_is_either_taken_or_reported_lost() -> None:
    """The counts add up, whatever the mixture of puts and takes."""
    outbox, taken, lost, lost_events = Outbox(5), 0, 0, 0
    for number in range(200):
        outbox.put(0.0, [stored(number)])
        if number % 7 == 0 and (parcel := outbox.take()):
            taken, lost, lost_events = taken + 1, lost + parcel.lost_batches, lost_events + parcel.lost_events
    while parcel := outbox.take():
        taken, lost, lost_events = taken + 1, lost + parcel.lost_batches, lost_events + parcel.lost_events

    assert taken + lost == 200
    assert lost_events == lost


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
