"""What other routers have booked counts as load of the ranks, for as long as they are heard, and no longer."""

from random import Random

import pytest

from kvrouter.blocks import Prompt
from kvrouter.errors import WireError
from kvrouter.routing import Router, RoutingSettings
from kvrouter.routing.cost import CostModel
from kvrouter.routing.replica_records import RankShare, ReplicaRecord, decode_record, encode_record
from kvrouter.routing.replicas import REPLICAS_MAX, ReplicaLoads
from tests.routing.fleets import fleet, prompt_of

LEASE = 5.0


def replica(router: Router, name: str = "me") -> ReplicaLoads:
    """A router's view of the others."""
    return ReplicaLoads(router.fleet, name, lease_seconds=LEASE, random=Random(0))


def record(name: str, number: int, *shares: RankShare) -> bytes:
    """What another router says."""
    return encode_record(ReplicaRecord(name, number, LEASE, shares))[0]


def busy(
    worker: str, requests: int = 1, *, waiting: int = 0, tokens: int = 0, arrivals: int | None = None
) -> RankShare:
    """What another router has on rank 0 of a worker."""
    came = requests if arrivals is None else arrivals
    return RankShare(worker, 0, requests, waiting, tokens, 0, requests * 4, came)


def place(router: Router, name: str, start: int, *, now: float = 0.0) -> str:
    """Place a prompt that nobody has cached; where it went."""
    decision = router.place(Prompt(prompt_of(start)), model=None, session=None, exclude=(), id=name, now=now)
    return decision.worker_id


@pytest.mark.parametrize("policy", ["kv", "least-loaded", "lmetric", "weighted", "dynamo-cost", "power-of-two"])
def test_every_policy_that_looks_at_load_sees_that_of_others(policy: str) -> None:
    """Where others send requests, ours do not go as well."""
    router = fleet("a", "b", policy=policy)
    others = replica(router)
    others.take("x", record("x", 1, busy("a", 8, waiting=4, tokens=20_000)), now=0.0)

    chosen = [router.route(prompt_of(start), now=0.0).worker_id for start in range(4)]

    assert chosen == ["b"] * 4


def test_our_own_record_has_our_own_requests_only() -> None:
    """Or two routers would tell each other the same request back and forth."""
    router = fleet("a", "b")
    others = replica(router)
    others.take("x", record("x", 1, busy("a", 3, waiting=2, tokens=500, arrivals=9)), now=0.0)
    where = place(router, "mine", 1)

    (told,) = decode_record(others.record(), "me").ranks

    assert (told.worker_id, told.requests, told.waiting, told.prefill_tokens, told.arrivals) == (where, 1, 1, 64, 1)


def test_the_last_record_is_everything() -> None:
    """Those between need not be seen, and one that comes late changes nothing."""
    router = fleet("a", "b")
    others = replica(router)
    load = router.fleet.worker("a").ranks[0].load
    others.take("x", record("x", 1, busy("a", 3)), now=0.0)
    others.take("x", record("x", 5, busy("a", 1), busy("b", 2)), now=0.0)
    others.take("x", record("x", 4, busy("a", 7)), now=0.0)

    assert load.active_requests == 1
    assert others.counts.outdated == 1
    assert others.elsewhere(router.fleet.worker("b").ranks[0]).requests == 2


def test_who_is_silent_for_longer_than_its_lease_is_forgotten() -> None:
    """Then we are alone again, and a late word makes it known again."""
    router = fleet("a")
    others = replica(router)
    others.take("x", record("x", 1, busy("a", 3, waiting=1, tokens=100)), now=0.0)

    assert others.settle(LEASE) == []
    assert others.settle(LEASE + 0.1) == ["x"]

    load = router.fleet.worker("a").ranks[0].load
    assert (load.active_requests, load.waiting, load.prefill_tokens, load.decode_blocks) == (0, 0, 0, 0)
    assert (len(others), others.counts.expired) == (0, 1)
    others.take("x", record("x", 2, busy("a", 1)), now=9.0)
    assert load.active_requests == 1


def test_a_router_that_takes_its_leave_is_forgotten_at_once() -> None:
    """And one that nobody knows is no error."""
    router = fleet("a")
    others = replica(router)
    others.take("x", record("x", 1, busy("a", 3)), now=0.0)

    assert others.forget("x", now=1.0)
    assert not others.forget("x", now=1.0)

    assert router.fleet.worker("a").ranks[0].load.active_requests == 0
    assert others.counts.left == 1


def test_work_of_others_shrinks_until_their_next_record() -> None:
    """A rank does not stop because nobody tells of it; the prompt in work has at most what it takes."""
    router = fleet("a")
    others, model = replica(router), CostModel(RoutingSettings())
    load = router.fleet.worker("a").ranks[0].load
    others.take("x", record("x", 1, busy("a", 2, waiting=2, tokens=16_000)), now=10.0)
    waits = [model.wait(load, now) for now in (10.0, 10.5, 11.0, 12.0)]

    others.take("x", record("x", 2, busy("a", 2, waiting=1, tokens=8000)), now=12.0)

    assert waits == pytest.approx([2.0, 1.5, 1.0, 1.0])
    assert model.wait(load, 12.0) == pytest.approx(1.0)
    assert model.wait(load, 12.5) == pytest.approx(0.5)


def test_work_of_others_is_what_our_own_prompt_waits_for() -> None:
    """Its first token is predicted, and its speed learnt, with theirs before it."""
    router = fleet("a")
    others = replica(router)
    others.take("x", record("x", 1, busy("a", 1, waiting=1, tokens=8000)), now=10.0)

    decision = router.place(Prompt(prompt_of(1)), model=None, session=None, exclude=(), id="m", now=10.0)
    booking = router.book.bookings["m"]

    assert decision.cost == pytest.approx(1.008, abs=0.001)
    assert (booking.work_tokens, booking.work_since) == (8064, 10.0)


def test_our_last_prompt_is_done_and_theirs_is_in_work() -> None:
    """Otherwise theirs would seem to have been overdue from then on."""
    router = fleet("a")
    others, model = replica(router), CostModel(RoutingSettings())
    load = router.fleet.worker("a").ranks[0].load
    place(router, "mine", 1, now=0.0)
    others.take("x", record("x", 1, busy("a", 1, waiting=1, tokens=80_000)), now=0.0)
    router.first_token("mine", now=1.0)

    others.settle(1.1)

    assert load.head_tokens == 80_000
    assert model.wait(load, 5.0) == pytest.approx(6.0)


def test_a_first_token_of_others_begins_the_next_prompt() -> None:
    """Ours waited behind theirs: it is not overdue because theirs took long."""
    router = fleet("a")
    others = replica(router)
    others.take("x", record("x", 1, busy("a", 1, waiting=1, tokens=80_000)), now=0.0)
    place(router, "mine", 1, now=0.0)

    others.take("x", record("x", 2, busy("a", 1, waiting=0)), now=10.0)

    load = router.fleet.worker("a").ranks[0].load
    assert (load.head_since, load.head_tokens, load.waiting) == (10.0, 64, 1)


def test_requests_that_came_and_went_between_two_records_count_as_arrivals() -> None:
    """The price of delay grows with them, whoever sent them."""
    router = fleet("a")
    others = replica(router)
    load = router.fleet.worker("a").ranks[0].load
    others.take("x", record("x", 1, busy("a", 1, arrivals=100)), now=0.0)
    others.take("x", record("x", 2, busy("a", 1, arrivals=130)), now=1.0)
    others.take("x", record("x", 3), now=2.0)
    others.take("x", record("x", 4, busy("a", 2, arrivals=135)), now=3.0)
    place(router, "mine", 1, now=3.0)

    assert load.arrivals == 1 + 30 + 5 + 1
    assert load.active_requests == 3
    assert decode_record(others.record(), "me").ranks[0].arrivals == 1


def test_ranks_that_come_later_have_what_was_said_of_them() -> None:
    """Routers do not learn of workers at the same moment; until then such a rank is counted, once."""
    router = fleet("a")
    others = replica(router)
    others.take("x", record("x", 1, busy("late", 4), RankShare("a", 7, 1, 0, 0, 0, 0, 1)), now=0.0)
    others.take("x", record("x", 2, busy("late", 5), RankShare("a", 7, 1, 0, 0, 0, 0, 1)), now=0.0)
    router.add_worker("late", block_size=16, now=1.0)

    others.settle(1.0)

    assert router.fleet.worker("late").ranks[0].load.active_requests == 5
    assert others.counts.unknown_ranks == 2
    assert [(each.ranks, each.unknown_ranks) for each in others.replicas(1.0)] == [(2, 1)]


def test_a_worker_that_was_removed_and_came_again_has_the_load_once() -> None:
    """Its rank has another load then, maybe under the number of somebody else."""
    router = fleet("a", "b")
    others = replica(router)
    others.take("x", record("x", 1, busy("a", 3)), now=0.0)
    router.remove_worker("a", now=1.0)
    router.add_worker("c", block_size=16, now=1.0)
    router.add_worker("a", block_size=16, now=1.0)

    others.take("x", record("x", 2, busy("a", 3)), now=1.0)

    assert router.fleet.worker("a").ranks[0].load.active_requests == 3
    assert router.fleet.worker("c").ranks[0].load.active_requests == 0
    assert decode_record(others.record(), "me").ranks == ()


def test_what_is_refused_is_counted_by_field_and_changes_nothing() -> None:
    """What was known of that router stays until its lease is over; our own record is not even looked at."""
    router = fleet("a")
    others = replica(router)
    others.take("x", record("x", 1, busy("a", 3)), now=0.0)
    others.take("me", b"nonsense", now=0.0)

    for _ in range(2):
        with pytest.raises(WireError):
            others.take("x", record("x", 2, RankShare("a", 0, 1, 2, 0, 0, 0, 1)), now=1.0)

    assert others.counts.refused == {"waiting": 2}
    assert router.fleet.worker("a").ranks[0].load.active_requests == 3


def test_there_is_a_bound_on_other_routers() -> None:
    """A store that anybody may write to must not fill our memory."""
    others = replica(fleet("a"))
    for number in range(REPLICAS_MAX):
        others.take(f"x{number}", record(f"x{number}", 1), now=0.0)

    with pytest.raises(WireError, match="more than"):
        others.take("one-more", record("one-more", 1), now=0.0)

    assert len(others) == REPLICAS_MAX
    assert others.counts.refused == {"replica_id": 1}


def test_routers_begin_at_different_ones_of_equal_ranks() -> None:
    """They all see an idle fleet at the same moment, and would send all that comes to the same rank."""
    chosen = set()
    for seed in range(8):
        router = fleet(*"abcdefgh")
        others = ReplicaLoads(router.fleet, "me", lease_seconds=LEASE, random=Random(seed))
        others.take("x", record("x", 1), now=0.0)
        chosen.add(place(router, "mine", 1))

    assert len(chosen) > 3


def test_a_router_that_is_alone_decides_as_if_it_knew_of_no_others() -> None:
    """Nothing is different until another one is heard."""
    one, other = fleet(*"abc"), fleet(*"abc")
    alone = replica(one)

    for each in range(12):
        alone.settle(float(each))
        alone.record()
        assert place(one, f"r{each}", each, now=float(each)) == place(other, f"r{each}", each, now=float(each))
