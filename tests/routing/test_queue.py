"""What an admission queue promises: fairness within a quantum, nobody starves, no idle rank, bounded memory."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvrouter.blocks import Prompt
from kvrouter.errors import NoWorkerError
from kvrouter.routing.queue import AdmissionQueue, QueueSettings, Waiting
from kvrouter.routing.queue_drain import DrainRates
from kvrouter.routing.queue_heap import LeavingHeap
from kvrouter.routing.queue_order import PRIORITY_MAX, Order, QueueOrder
from kvrouter.routing.queue_room import RankRoom
from kvrouter.routing.queue_shares import OTHERS, Shares
from tests.routing.fleets import fleet, prompt_of

ORDERS = st.sampled_from(["fcfs", "shortest", "deadline"])


def _add(
    queue: AdmissionQueue[str],
    tenant: str = "t",
    *,
    key: float = 0.0,
    tokens: int = 10,
    lane: str = "lane",
    size: int = 1,
    expires_at: float = 1e9,
) -> Waiting[str]:
    added, _ = queue.add(
        tenant, tenant=tenant, lane=lane, key=key, tokens=tokens, size=size, now=0.0, expires_at=expires_at
    )
    return added


def _open(_: object) -> bool:
    return True


def _drain(queue: AdmissionQueue[str]) -> list[Waiting[str]]:
    return list(iter(lambda: queue.take(_open), None))


# -- fairness ----------------------------------------------------------------------------------------------------------


@given(
    costs=st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50), st.integers(1, 50)), min_size=5, max_size=60),
    keys=st.lists(st.integers(0, 100), min_size=180, max_size=180),
    weights=st.tuples(*[st.sampled_from([0.5, 1.0, 2.0, 3.0])] * 3),
    quantum=st.integers(1, 100),
)
def test_nobody_is_ahead_by_more_than_a_quantum_and_a_request(
    costs: list[tuple[int, int, int]], keys: list[int], weights: tuple[float, float, float], quantum: int
) -> None:
    """By weight, as long as both wait, whatever requests cost and in whatever order they would go."""
    shares = dict(zip("abc", weights, strict=True))
    queue: AdmissionQueue[str] = AdmissionQueue(QueueSettings(quantum_tokens=quantum, weights=shares))
    order = iter(keys)
    for each in costs:
        for tenant, tokens in zip("abc", each, strict=True):
            _add(queue, tenant, key=next(order), tokens=tokens)
    left = dict.fromkeys("abc", len(costs))
    served = dict.fromkeys("abc", 0)

    while all(left.values()):
        taken = queue.take(_open)
        assert taken is not None
        left[taken.subject] -= 1
        served[taken.subject] += taken.tokens
        if not all(left.values()):
            break
        for one, other in itertools.permutations("abc", 2):
            ahead = served[one] / shares[one] - served[other] / shares[other]
            assert ahead <= quantum + 50 / shares[one] + 1e-6


def test_order_holds_across_tenants_within_a_quantum() -> None:
    """Who is urgent goes first, whoever's it is, until its tenant has had its quantum."""
    queue: AdmissionQueue[str] = AdmissionQueue(QueueSettings(quantum_tokens=20))
    for number in range(6):
        _add(queue, "urgent", key=number)
        _add(queue, "patient", key=100 + number)

    taken = [each.subject for each in _drain(queue)]

    assert (
        taken == ["urgent"] * 2 + ["patient"] * 2 + ["urgent"] * 2 + ["patient"] * 2 + ["urgent"] * 2 + ["patient"] * 2
    )


def test_who_did_not_wait_has_saved_nothing_but_a_quantum() -> None:
    """However long others were served meanwhile."""
    queue: AdmissionQueue[str] = AdmissionQueue(QueueSettings(quantum_tokens=30))
    _add(queue, "late", key=0.0)
    queue.take(_open)
    for number in range(200):
        _add(queue, "busy", key=number)
    for _ in range(100):
        queue.take(_open)
    for number in range(100):
        _add(queue, "late", key=-1000 + number)

    first = [queue.take(_open) for _ in range(20)]

    # Its quantum and what began below it; then turn by turn.
    assert [each.subject for each in first if each is not None][:4].count("late") == 3
    assert 9 <= sum(each.subject == "late" for each in first if each is not None) <= 13


def test_a_debt_is_not_forgiven_by_leaving_for_a_moment() -> None:
    """One large request after the other is as dear as many small ones."""
    queue: AdmissionQueue[str] = AdmissionQueue(QueueSettings(quantum_tokens=10))
    for number in range(100):
        _add(queue, "small", key=number, tokens=10)
    _add(queue, "large", key=-1, tokens=100)
    served = {"small": 0, "large": 0}

    for _ in range(60):
        taken = queue.take(_open)
        assert taken is not None
        served[taken.subject] += taken.tokens
        if taken.subject == "large":
            _add(queue, "large", key=-1, tokens=100)

    assert abs(served["small"] - served["large"]) <= 10 + 100


def test_what_a_request_did_not_cost_is_given_back() -> None:
    """A tenant that was charged too much may go on in this round."""
    queue: AdmissionQueue[str] = AdmissionQueue(QueueSettings(quantum_tokens=10))
    for number in range(4):
        _add(queue, "a", key=number, tokens=10)
        _add(queue, "b", key=100 + number, tokens=10)

    first = queue.take(_open)
    assert first is not None
    queue.settle(first, 0)
    second = queue.take(_open)

    assert second is not None
    assert (first.subject, second.subject) == ("a", "a")


def test_a_tenant_whose_lane_is_full_does_not_hold_others_up() -> None:
    """Nor does it save up more than a quantum while it waits for room."""
    queue: AdmissionQueue[str] = AdmissionQueue(QueueSettings(quantum_tokens=10))
    for number in range(50):
        _add(queue, "blocked", lane="full", key=number)
        _add(queue, "free", lane="open", key=100 + number)

    free = [queue.take(lambda lane: lane == "open") for _ in range(40)]
    after = [each.subject for each in itertools.islice(_drain(queue), 10)]

    assert {each.subject for each in free if each is not None} == {"free"}
    assert abs(after.count("blocked") - after.count("free")) <= 2


@given(
    requests=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"), st.integers(0, 50)), max_size=40),
    open_lanes=st.sets(st.sampled_from("xyz")),
)
def test_no_rank_idles_while_somebody_waits_for_it(requests: list[tuple[str, str, int]], open_lanes: set[str]) -> None:
    """Whatever shares say, all that wait in lanes with room are served."""
    queue: AdmissionQueue[str] = AdmissionQueue(QueueSettings(quantum_tokens=5))
    for tenant, lane, tokens in requests:
        _add(queue, tenant, lane=lane, tokens=tokens)

    served = 0
    while queue.take(lambda lane: lane in open_lanes) is not None:
        served += 1

    assert served == sum(lane in open_lanes for _, lane, _ in requests)
    assert len(queue) == len(requests) - served


# -- order -------------------------------------------------------------------------------------------------------------


@given(
    kind=ORDERS,
    arrived=st.floats(0, 1e6),
    later=st.floats(0, 1e4),
    prefill=st.floats(0, 1e4),
    deadline=st.none() | st.floats(-1e4, 1e7),
    other=st.tuples(st.integers(-PRIORITY_MAX, PRIORITY_MAX), st.floats(0, 1e4), st.none() | st.floats(-1e4, 1e7)),
    priority=st.integers(-PRIORITY_MAX, PRIORITY_MAX),
)
def test_nobody_is_overtaken_by_those_who_come_much_later(
    kind: QueueOrder,
    arrived: float,
    later: float,
    prefill: float,
    deadline: float | None,
    other: tuple[int, float, float | None],
    priority: int,
) -> None:
    """Beyond `overtaking_seconds`, and `priority_seconds` for each level between the two, nothing helps."""
    order = Order(kind=kind, overtaking_seconds=20.0, priority_seconds=3.0)
    key = order.key(arrived_at=arrived, priority=priority, prefill_seconds=prefill, deadline=deadline)
    bound = order.overtaking_seconds + 3.0 * max(0, priority - other[0])
    second = order.key(
        arrived_at=arrived + bound + later, priority=other[0], prefill_seconds=other[1], deadline=other[2]
    )

    assert second >= key - 1e-6


def test_each_order_puts_first_what_it_says() -> None:
    """As they came; the least prefill; the earliest deadline, those without one as if at the end."""

    def key(kind: QueueOrder, arrived: float, prefill: float, deadline: float | None) -> float:
        return Order(kind=kind).key(arrived_at=arrived, priority=0, prefill_seconds=prefill, deadline=deadline)

    early_long, late_short = (0.0, 1.0, None), (1.0, 0.1, 5.0)

    assert key("fcfs", *early_long) < key("fcfs", *late_short)
    assert key("shortest", *early_long) > key("shortest", *late_short)
    assert key("deadline", *early_long) > key("deadline", *late_short)
    assert key("deadline", 2.0, 0.0, 1.0) == 2.0


def test_equal_places_go_as_they_came() -> None:
    """The queue keeps them in order."""
    queue: AdmissionQueue[str] = AdmissionQueue(QueueSettings())
    added = [_add(queue, key=5.0) for _ in range(20)]

    assert _drain(queue) == added


# -- bounds ------------------------------------------------------------------------------------------------------------


def test_what_left_is_forgotten_even_if_it_was_never_first() -> None:
    """A million who came and went leave no trace."""
    queue: AdmissionQueue[str] = AdmissionQueue(QueueSettings())
    _add(queue, "stays", key=-1.0)
    for number in range(5000):
        assert queue.cancel(_add(queue, f"t{number % 7}", key=float(number)))
        assert queue.cancel(_add(queue, "stays", key=float(-number), lane=f"lane{number}"))

    kept = (queue._by_expiry.kept, queue._by_age.kept, *(heap.kept for heap in queue._last.values()))
    assert max(kept) <= 128
    assert len(queue.lanes()) == 1
    assert len(queue._lanes["lane"]._firsts) <= 128


def test_a_heap_holds_no_more_than_twice_its_members() -> None:
    """And a few."""
    here = set(range(1000))
    heap: LeavingHeap[int] = LeavingHeap(here.__contains__)
    for number in range(1000):
        heap.add(-number, number, number)
    for number in range(990):
        here.discard(number)
        heap.left()

    assert len(heap) == 10
    assert heap.kept <= 2 * 10 + 70
    assert heap.first() == 999
    assert sorted(heap.members()) == list(range(990, 1000))


def test_a_body_larger_than_the_queue_displaces_nobody() -> None:
    """It is refused alone."""
    queue: AdmissionQueue[str] = AdmissionQueue(QueueSettings(bytes_max=100))
    small = _add(queue, size=60)

    added, displaced = queue.add("large", tenant="u", lane="lane", key=0.0, tokens=1, size=101, now=0.0, expires_at=9.0)

    assert displaced == [added]
    assert small.is_waiting
    assert (queue.requests, queue.bytes) == (1, 60)


def test_tenants_that_are_told_apart_are_bounded() -> None:
    """Those beyond the bound share one share; those who no longer wait are forgotten first."""
    queue: AdmissionQueue[str] = AdmissionQueue(QueueSettings(tenants_max=3))
    waiting = [_add(queue, f"t{number}") for number in range(10)]
    names = [each.tenant.name for each in waiting]
    queue.cancel(waiting[0])
    new = _add(queue, "new")

    assert names == ["t0", "t1", "t2"] + [OTHERS] * 7
    assert new.tenant.name == "new"
    assert len(queue.shares) <= 4


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_a_weight_must_be_a_positive_number(weight: float) -> None:
    """A share of nothing would wait for ever."""
    with pytest.raises(ValueError, match="weight"):
        Shares(quantum_tokens=1, tenants_max=1, weights={"t": weight})


@pytest.mark.parametrize(("quantum", "tenants"), [(0, 1), (1, 0)])
def test_a_quantum_and_a_tenant_are_the_least(quantum: int, tenants: int) -> None:
    """Nobody could be served without them."""
    with pytest.raises(ValueError, match="at least 1"):
        Shares(quantum_tokens=quantum, tenants_max=tenants)


# -- forecasts ---------------------------------------------------------------------------------------------------------


def test_how_many_go_first_depends_on_whose_they_are() -> None:
    """Own ones go before, those of others as far as shares reach; who goes before all own waits for a round at most."""
    queue: AdmissionQueue[str] = AdmissionQueue(QueueSettings(quantum_tokens=20))
    for number in range(100):
        _add(queue, "busy", key=number)
    for number in range(10):
        _add(queue, "modest", key=200 + number)

    busy = queue.ahead("busy", "lane", 500.0)
    modest = queue.ahead("modest", "lane", 500.0)
    urgent = queue.ahead("modest", "lane", 0.0)

    assert busy > 100
    assert 15 <= modest <= 25
    assert urgent <= 2
    assert queue.ahead("busy", "nobody waits here", 0.0) == 0


def test_a_queue_drains_as_fast_as_it_was_seen_to() -> None:
    """At first as the prior says; later as seen, the recent more than the old; idle time does not count."""
    rates = DrainRates()
    at_first = rates.seconds("lane", 10, prior=2.0, running=1, now=0.0)
    rates.waits("lane", now=0.0)
    for second in range(1, 101):
        rates.admitted("lane", now=second)
    seen = rates.seconds("lane", 10, prior=2.0, running=1, now=100.0)
    rates.emptied("lane", now=100.0)
    rates.waits("lane", now=5000.0)
    after_a_pause = rates.seconds("lane", 10, prior=2.0, running=1, now=5000.0)
    stalled = rates.seconds("lane", 10, prior=2.0, running=1, now=5060.0)

    assert at_first == 20.0
    assert 9 <= seen <= 12
    assert after_a_pause == pytest.approx(seen)
    assert stalled > 3 * seen


def test_before_the_first_of_those_under_way_has_ended_little_is_known() -> None:
    """Eight that began together end together: seconds without an end say less the more there are."""
    rates = DrainRates()
    rates.waits("lane", now=0.0)

    of_one = rates.seconds("lane", 1, prior=0.5, running=1, now=4.0)
    of_eight = rates.seconds("lane", 1, prior=0.5, running=8, now=4.0)

    assert of_one > 4
    assert of_eight < 1.1


def test_rates_are_kept_of_so_many_lanes_only() -> None:
    """Those used longest ago go."""
    rates = DrainRates()
    for number in range(3000):
        rates.waits(number, now=0.0)
        rates.emptied(number, now=0.0)

    assert len(rates._rates) <= 1024
    assert 2999 in rates._rates


# -- room --------------------------------------------------------------------------------------------------------------


def test_a_rank_has_room_below_each_of_its_bounds() -> None:
    """0 is no bound."""
    router = fleet("a", "b")
    for _ in range(2):
        router.route(prompt_of(1, tokens=100), now=0.0)
    candidates = router.fleet.candidates(None)
    busy = [load.active_requests for load in candidates.loads]

    assert busy == [1, 1]
    assert RankRoom(requests_max=1).anywhere(candidates) is False
    assert RankRoom(requests_max=2).among(candidates) is candidates
    assert not RankRoom().is_bounded
    assert RankRoom(prefill_tokens_max=1000).anywhere(candidates)
    assert not RankRoom(requests_max=5, prefill_tokens_max=50).anywhere(candidates)


@pytest.mark.parametrize("policy", ["kv", "least-loaded", "round-robin", "random"])
def test_only_ranks_with_room_are_chosen(policy: str) -> None:
    """Whatever the policy would prefer; without one there is nobody to choose."""
    router = fleet("a", "b", "c", policy=policy)
    room = RankRoom(requests_max=2)

    def place(number: int) -> str:
        prompt = Prompt(prompt_of(1))
        return router.place(prompt, model=None, session=None, exclude=(), id=number, now=0.0, room=room).worker_id

    chosen = [place(number) for number in range(6)]

    assert sorted(chosen) == ["a", "a", "b", "b", "c", "c"]
    with pytest.raises(NoWorkerError, match="has room"):
        place(6)
    router.finished(0, now=0.0)
    assert place(7) == chosen[0]
