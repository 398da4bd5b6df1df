"""What a prompt costs a rank, and others: in seconds, and the same in Python and in the native core."""

from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvrouter.blocks import Prompt
from kvrouter.routing import RankLoad, RoutingSettings
from kvrouter.routing.cost import LATE_SECONDS, CostModel, overflow, staying
from kvrouter.routing.rank_load import RankLoad as Reference
from tests.routing.fleets import fleet, prompt_of, stored

MODEL = CostModel(RoutingSettings())


def rank(
    requests: int = 0, prefill_tokens: int = 0, *, token_seconds: float = 0.001, head: int | None = None
) -> Reference:
    """A rank that needs a millisecond for a token; all its requests wait for their first one."""
    load = Reference(requests, prefill_tokens)
    load.waiting = requests
    load.token_seconds = token_seconds
    load.begin(prefill_tokens if head is None else head, 0, 0.0)
    return load


def test_an_idle_rank_needs_the_time_of_the_prompt() -> None:
    """Of its uncached part."""
    cost = MODEL.cost(rank(), 600, 1000, 0.0)

    assert cost.wait == 0
    assert cost.prefill == cost.first_token == pytest.approx(0.4)


def test_attention_makes_the_end_of_a_prompt_dearer_than_its_beginning() -> None:
    """So a cached beginning saves less than it seems."""
    load = rank()
    load.pair_seconds = 1e-6

    assert MODEL.cost(load, 0, 1000, 0.0).prefill == pytest.approx(1.0 + 0.5)
    assert MODEL.cost(load, 500, 1000, 0.0).prefill == pytest.approx(0.5 + 0.375)


def test_what_is_in_work_is_nearly_done() -> None:
    """The time that the front prompt has had already is not waited for again; but only its own."""
    load = rank(2, 3000, head=1000)

    assert [MODEL.wait(load, now) for now in (0.0, 0.4, 1.0, 1.5)] == pytest.approx([3.0, 2.6, 2.0, 2.0])


def test_a_rank_that_answers_no_more_is_waited_for_longer_and_longer() -> None:
    """It cannot tell that it stands still."""
    load = rank(1, 1000)
    late = 4.0 + LATE_SECONDS

    assert MODEL.wait(load, late) == 0.0
    assert MODEL.wait(load, late + 7.0) == pytest.approx(7.0)


@pytest.mark.parametrize("now", [-5.0, nan, -inf])
def test_a_clock_that_goes_backward_changes_nothing(now: float) -> None:
    """All of the work is still there."""
    assert MODEL.wait(rank(2, 3000, head=1000), now) == pytest.approx(3.0)


def test_on_an_idle_fleet_only_the_own_time_counts_and_a_little_for_the_work() -> None:
    """No one else waits."""
    cost = MODEL.cost(rank(), 0, 1000, 0.0)

    assert cost.price == pytest.approx(1.0 + 0.2 * 1.0)


def test_who_shares_a_batch_is_delayed() -> None:
    """All of those that came since the running step began, if the next has room for all; else the part that fits."""
    knobs = RoutingSettings(work_price=0.0, request_tokens=0.0, step_tokens=4000)
    short, long = rank(1, 500), rank(1, 500)
    short.add(2, 2000, 0, 0, 2)
    long.add(2, 9000, 0, 0, 2)

    for load, mates in ((short, 2.0), (long, 2.0 * 4000 / 10_000)):
        cost = CostModel(knobs).cost(load, 0, 1000, 0.0)
        assert cost.mates == pytest.approx(mates)
        assert cost.price - cost.first_token == pytest.approx(mates * 1.0)


def test_who_is_in_the_running_step_is_not_delayed() -> None:
    """A step takes in nobody after it has begun; of a longer queue only a part is in it."""
    knobs = RoutingSettings(step_tokens=4000)
    inside, half = rank(3, 3000), rank(4, 8000)

    assert CostModel(knobs).mates(inside, 1000) == 0
    assert CostModel(knobs).mates(half, 0) == 2


def test_what_is_lost_while_a_prompt_waits_is_not_credited() -> None:
    """The longer the queue, the less is left; with no queue, or where nothing is lost, all of it is."""
    idle, busy, safe = rank(), rank(1, 10_000), rank(1, 10_000)
    idle.loss_rate = busy.loss_rate = 0.1
    idle.loss_seconds = busy.loss_seconds = 10.0

    left = [MODEL.cost(load, 1000, 2000, 0.0).credit for load in (idle, busy, safe)]

    assert left == [1000, 375, 1000]
    busy.loss_seconds = 3.0
    assert MODEL.cost(busy, 1000, 2000, 0.0).credit == 741
    assert [staying(10_000, losses) for losses in (0.0, 0.3, 1.0, 2.0)] == [10_000, 7410, 3750, 1578]
    assert (staying(10_000, inf), staying(10_000, nan)) == (0, 10_000)


def test_later_requests_are_delayed_where_many_come() -> None:
    """By each second of queue; but a fleet that can never catch up must not look at caches alone."""
    load = rank()
    load.urgency = 0.5
    knobs = RoutingSettings(work_price=0.0, later_max=3.0)

    few = CostModel(knobs).cost(load, 0, 4000, 0.0)
    load.urgency = 50.0
    many = CostModel(knobs).cost(load, 0, 4000, 0.0)

    assert few.price == pytest.approx(4.0 + 4.0 * 0.5 * 2.0)
    assert many.price == pytest.approx(4.0 + 4.0 * 3.0)


def test_computing_is_dearer_where_it_evicts_what_would_be_used_again() -> None:
    """And where others generate."""
    knobs = RoutingSettings(work_price=0.0, request_tokens=0.0, decode_price=0.1)
    load = Reference(5)
    load.token_seconds, load.miss_price = 0.001, 0.7

    assert CostModel(knobs).cost(load, 0, 1000, 0.0).price == pytest.approx(1.0 * (1 + 0.7 + 5 * 0.1))


def test_what_several_have_is_charged_to_all_that_will_use_it() -> None:
    """The more ranks hold a system prompt, the sooner another one computes it too."""
    knobs = RoutingSettings(work_price=0.0)
    model, load = CostModel(knobs), rank()
    alone, many = model.shared([900, 100, 0, 0]), model.shared([900, 800, 730, 0])

    assert (alone, many) == ((900, 1), (900, 3))
    assert model.cost(load, 0, 1000, 0.0, alone).charged == pytest.approx(1.0)
    assert model.cost(load, 0, 1000, 0.0, many).charged == pytest.approx(0.1 + 0.9 / 3)
    assert model.cost(load, 900, 1000, 0.0, many).charged == pytest.approx(0.1)
    assert model.shared([]) == model.shared([0, 0]) == (0, 1)


def test_what_does_not_fit_into_a_cache_is_lost_and_charged() -> None:
    """First what the prompt has cached there, then what others have; as long as nobody knows the room, nothing."""
    knobs = RoutingSettings(work_price=0.0, request_tokens=0.0, context_tokens=0.0)
    full, unknown = rank(), rank()
    full.decode_blocks = unknown.decode_blocks = 100
    full.room_tokens, full.room_loss = 2000, 0.5

    stays, leaves, fits, knows_nothing = (
        CostModel(knobs).cost(load, credit, tokens, 0.0)
        for load, credit, tokens in ((full, 900, 1000), (full, 0, 1000), (full, 400, 400), (unknown, 900, 1000))
    )

    assert [each.credit for each in (stays, leaves, fits, knows_nothing)] == [600, 0, 400, 900]
    assert [stays.evicted, leaves.evicted] == pytest.approx([0.0, 0.3])
    assert stays.price == stays.first_token == pytest.approx(0.4)
    assert leaves.price == pytest.approx(1.0 + 0.3)
    assert overflow(5000, 2000, 1000, 1.0) == 1000


def test_sessions_that_do_not_fit_into_one_cache_spread() -> None:
    """A worker on which three large contexts run gets no fourth, though it has most of it and others have nothing."""
    router = fleet("full", "idle")
    stored(router, "full", prompt_of(1, tokens=4000))
    for number in range(3):
        router.book.reserve(number, 0, prefill_tokens=0, blocks=250, prompt_tokens=4000, now=0.0)
        router.first_token(number, now=0.0)
    load = router.book.load(0)
    chosen = []
    for room in (0, 16_000, 12_000):
        load.room_tokens, load.room_loss = room, 1.0
        chosen.append(router.decide(Prompt(prompt_of(1, tokens=4016)), now=0.0).worker_id)

    assert chosen == ["full", "full", "idle"]


def test_what_several_have_spreads_to_ranks_on_which_nobody_waits() -> None:
    """In a burst a prompt waits for all that it computes, however many others have it."""
    knobs = RoutingSettings(work_price=0.0, request_tokens=0.0)
    model = CostModel(knobs)
    many = model.shared([900, 800, 730, 0])
    idle, busy = rank(), rank(1)

    assert model.cost(idle, 0, 1000, 0.0, many).price == pytest.approx(0.1 + 0.9 / 3)
    assert model.cost(busy, 0, 1000, 0.0, many).price == pytest.approx(1.0)


NUMBERS = st.integers(0, 100_000)
RATES = st.floats(0.0, 0.01)


@given(
    counts=st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS),
    rates=st.tuples(RATES, RATES, RATES, RATES, RATES, RATES),
    credit=NUMBERS,
    tokens=NUMBERS,
    room=st.tuples(st.integers(0, 3_000_000), st.floats(0, 1)),
    now=st.floats(-10, 1e6),
)
def test_no_cost_is_negative_and_both_cores_agree(
    counts: tuple[int, ...], rates: tuple[float, ...], credit: int, tokens: int, room: tuple[int, float], now: float
) -> None:
    """To the last bit, so that ties are ties in both."""
    prices = []
    for kind in (Reference, RankLoad):
        load = kind(counts[0], counts[1], counts[2], rank=0)
        load.waiting, load.prefill_pairs = counts[3], counts[4]
        load.begin(counts[4], counts[3], rates[0] * 1000)
        load.token_seconds, load.pair_seconds, load.first_seconds, load.urgency, load.miss_price = rates[:5]
        load.loss_rate, load.loss_seconds = rates[5] * 100, rates[4] * 1e4
        load.room_tokens, load.room_loss = room
        cost = MODEL.cost(load, credit, tokens, now)
        assert 0 <= cost.prefill <= cost.first_token <= cost.price
        assert 0 <= cost.wait <= cost.first_token
        prices.append(cost)

    assert prices[0] == prices[1]


def test_a_decision_can_be_added_up_by_hand() -> None:
    """What a candidate shows is what its price is made of; the core notes the same as Python does."""
    router = fleet("a", "b")
    stored(router, "a", prompt_of(1, tokens=4000))
    router.book.reserve("x", 0, prefill_tokens=1600, blocks=100, prompt_tokens=1600, now=0.0)

    decision = router.decide(Prompt(prompt_of(1, 2, tokens=4000)), now=0.1)

    first, other = decision.candidates
    knobs = router.settings
    speed = 1 / knobs.prefill_tokens_per_second
    pair = speed / knobs.attention_tokens
    assert first.wait_seconds == pytest.approx(1600 * speed + 1600**2 / 2 * pair - 0.1)
    assert first.prefill_seconds == pytest.approx(4000 * speed + 4000 * 6000 * pair)
    running = (1 * knobs.request_tokens + 100 * 16 * knobs.context_tokens) * speed
    assert first.cost == pytest.approx(first.wait_seconds + first.prefill_seconds)
    assert first.price == pytest.approx(first.cost + running + first.prefill_seconds * knobs.work_price)
    assert other.cost == pytest.approx(8000 * speed + 8000**2 / 2 * pair)
    assert other.price == pytest.approx(other.cost * (1 + knobs.work_price))
    assert decision.cost == min((first, other), key=lambda each: each.price).cost
