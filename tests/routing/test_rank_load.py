"""What a rank is busy with: the same in Python and in the native core."""

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvrouter import native_core
from kvrouter.routing.rank_load import RankLoad as Reference

SUMS = (
    "active_requests", "arrivals", "decode_blocks", "prefill_tokens", "prefill_pairs", "waiting", "head_tokens",
    "head_pairs", "head_since",
)  # fmt: skip
KINDS: list[Any] = [Reference, native_core.native.RankLoad] if native_core.present else [Reference]


@pytest.fixture(params=KINDS, ids=["reference", "native"][: len(KINDS)])
def kind(request: pytest.FixtureRequest) -> Any:
    """Each implementation in turn."""
    return request.param


def test_a_load_is_three_numbers_that_change(kind: Any) -> None:
    """One by one or all at once."""
    load = kind(1, 20, 3, rank=7)

    load.add(1, -5, 4)
    load.prefill_tokens += 100
    load.turn = 9

    assert (load.active_requests, load.prefill_tokens, load.decode_blocks) == (2, 115, 7)
    assert (load.rank, load.turn) == (7, 9)
    assert repr(load) == "RankLoad(active_requests=2, prefill_tokens=115, decode_blocks=7)"


def test_equally_busy_is_equal(kind: Any) -> None:
    """Whichever rank it is, and whenever it was chosen; a load that changes cannot be a key."""
    one, other = kind(active_requests=1, decode_blocks=2), kind(1, 0, 2, rank=5)
    other.turn = 3

    assert one == other
    assert one != kind()
    assert one != (1, 0, 2)
    with pytest.raises(TypeError):
        hash(one)


def test_times_to_first_token_are_summed_up_beside_their_predictions(kind: Any) -> None:
    """Errors in either direction do not make up for each other."""
    load = kind()

    load.observe(1.0, 3.0)
    load.observe(2.0, 0.5)

    assert (load.first_tokens, load.predicted_seconds, load.observed_seconds, load.error_seconds) == (2, 3, 3.5, 3.5)


def test_a_booking_knows_what_does_not_fit(kind: Any) -> None:
    """Of all requests that its rank has then; nothing, where nobody knows how much fits."""
    load = kind()
    load.take(10, 10, 40, 1.0)
    load.room_tokens = 800
    fits, over = load.take(10, 10, 10, 1.0), load.take(10, 10, 20, 1.0)
    load.room_tokens = 0

    assert [each.over_tokens for each in (fits, over, load.take(1, 1, 90, 1.0))] == [0, 320, 0]


def test_bookings_wait_in_the_order_in_which_they_came(kind: Any) -> None:
    """The one in work is the oldest that waits, from when the one before it was computed."""
    load = kind(rank=3)
    first, second, third = (
        load.take(tokens, 2 * tokens, blocks, 1.0) for tokens, blocks in ((10, 1), (20, 2), (30, 3))
    )
    assert (third.load is load, third.rank, third.booked_at, third.work_since) == (True, 3, 1.0, 1.0)
    assert (third.work_tokens, third.prefill_tokens, third.own, third.counted) == (60, 30, 3, 3)

    second.computed(2.0)
    assert (load.waiting, load.prefill_tokens, load.head_tokens, load.head_since) == (2, 40, 10, 1.0)
    first.computed(4.0)
    first.computed(5.0)
    assert (load.waiting, load.prefill_tokens, load.head_tokens, load.head_since) == (1, 30, 30, 4.0)
    third.end(6.0)

    assert (load.waiting, load.prefill_pairs, load.head_tokens, load.head_since) == (0, 0, 0, 6.0)
    assert (load.active_requests, load.decode_blocks, load.arrivals) == (2, 3, 3)


def test_an_end_at_an_unknown_time_is_when_the_work_began(kind: Any) -> None:
    """Nothing is learnt of a time that nobody tells."""
    load = kind()
    booking = load.take(10, 10, 1, 1.0)

    booking.end(None)

    assert (load.active_requests, load.decode_blocks, load.head_since) == (0, 0, 1.0)


def test_a_booking_remembers_what_it_is_told(kind: Any) -> None:
    """Whose outcome it is, what it shares, and until when it lasts."""
    booking, outcome = kind().take(1, 2, 3, 0.0), object()

    booking.outcome, booking.hashes, booking.lease = outcome, [1, 2], 5.0
    booking.own, booking.counted, booking.weight, booking.deadline = 4, 2, 0.5, 9.0

    assert (booking.outcome, booking.hashes, booking.lease) == (outcome, [1, 2], 5.0)
    assert (booking.own, booking.counted, booking.weight, booking.deadline) == (4, 2, 0.5, 9.0)


@pytest.mark.parametrize(("tokens", "blocks"), [(-1, 0), (0, -1)])
def test_less_than_nothing_cannot_be_booked(kind: Any, tokens: int, blocks: int) -> None:
    """What a booking adds its end takes away."""
    load = kind()

    with pytest.raises(ValueError, match="at least 0"):
        load.take(tokens, 0, blocks, 0.0)
    assert load == kind()


@given(st.lists(st.tuples(st.integers(0, 1 << 41), st.integers(0, 1 << 41), st.booleans()), max_size=8), st.integers())
def test_every_history_of_bookings_leads_to_the_same_sums(steps: list[tuple[int, int, bool]], seed: int) -> None:
    """Whoever keeps them."""
    histories = [_history(kind, steps, Random(seed)) for kind in KINDS]

    assert histories.count(histories[0]) == len(KINDS)


def _history(kind: Any, steps: list[tuple[int, int, bool]], choice: Random) -> list[Any]:
    load, taken, told = kind(), [], []
    for now, (tokens, prompt, computes) in enumerate(steps):
        taken.append(load.take(tokens, prompt, tokens // 16, float(now)))
        if computes:
            choice.choice(taken).computed(now + 0.5)
        told += [getattr(load, name) for name in SUMS] + [taken[-1].work_pairs, taken[-1].work_since]
    choice.shuffle(taken)
    for now, booking in enumerate(taken):
        booking.end(float(now))
        told += [getattr(load, name) for name in SUMS]
    assert load == kind()
    return told
