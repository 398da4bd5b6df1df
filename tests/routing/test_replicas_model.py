"""Several routers that tell each other, in any order and with losses, against a model that only adds up.

Whatever happens: what a router's loads say is what it has itself and what it was last told by those whom it hears.
"""

from collections import Counter
from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from kvrouter.events import Source
from kvrouter.routing import Router
from kvrouter.routing.cost import CostModel
from kvrouter.routing.rank_load import pairs_of
from kvrouter.routing.replica_records import RankShare, decode_record
from kvrouter.routing.replicas import ReplicaLoads

ROUTERS, WORKERS, LEASE = 2, ("a", "b"), 5.0
NAMES = tuple(f"r{number}" for number in range(ROUTERS))
SUMS = ("requests", "waiting", "prefill_tokens", "prefill_pairs", "decode_blocks")

router_numbers = st.integers(0, ROUTERS - 1)
workers = st.sampled_from(WORKERS)


class Side:
    """One router, and what the model knows of it."""

    def __init__(self, number: int) -> None:
        self.router = Router()
        for worker in WORKERS:
            self.router.add_worker(worker, block_size=16, now=0.0)
        self.loads = ReplicaLoads(self.router.fleet, NAMES[number], lease_seconds=LEASE, random=Random(number))
        self.booked: dict[int, tuple[str, int, int, int]] = {}
        self.waiting: set[int] = set()
        self.heard: dict[str, tuple[float, int, tuple[RankShare, ...]]] = {}

    def has(self, worker: str) -> bool:
        """Whether it knows a worker."""
        return worker in self.router.fleet

    def own(self, worker: str) -> Counter[str]:
        """What it has on a worker itself."""
        sums: Counter[str] = Counter()
        for number, (where, tokens, prompt, blocks) in self.booked.items():
            if where == worker:
                waits = number in self.waiting
                pairs = pairs_of(tokens, prompt)
                sums.update(requests=1, decode_blocks=blocks, waiting=waits)
                sums.update(prefill_tokens=tokens * waits, prefill_pairs=pairs * waits)
        return sums

    def others(self, worker: str) -> Counter[str]:
        """What it was told of others on a worker."""
        sums: Counter[str] = Counter()
        for _, _, shares in self.heard.values():
            for share in shares:
                if (share.worker_id, share.rank) == (worker, 0):
                    sums.update({name: getattr(share, name) for name in SUMS})
        return sums


class ReplicasMachine(RuleBasedStateMachine):
    """Routers over workers that come and go, and a store that may deliver anything that was ever written."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.booked = 0.0, 0
        self.sides = [Side(number) for number in range(ROUTERS)]
        self.written: list[tuple[str, bytes]] = []

    @rule(number=router_numbers, worker=workers, stays=st.integers(0, 3))
    def worker_comes_or_leaves(self, number: int, worker: str, stays: int) -> None:
        side = self.sides[number]
        if not side.has(worker):
            side.router.add_worker(worker, block_size=16, now=self.now)
            side.loads.settle(self.now)
        elif not stays:
            side.router.remove_worker(worker, now=self.now)
            for booked in [each for each, (where, *_) in side.booked.items() if where == worker]:
                del side.booked[booked]
                side.waiting.discard(booked)

    @rule(number=router_numbers, worker=workers, tokens=st.integers(0, 5000), more=st.integers(0, 5000))
    def books(self, number: int, worker: str, tokens: int, more: int) -> None:
        side = self.sides[number]
        if side.has(worker):
            self.booked += 1
            rank = side.router.fleet.worker(worker).ranks[0].dense_rank
            blocks = (tokens + more) // 16
            side.router.book.reserve(
                self.booked, rank, prefill_tokens=tokens, blocks=blocks, now=self.now, prompt_tokens=tokens + more
            )
            side.booked[self.booked] = worker, tokens, tokens + more, blocks
            side.waiting.add(self.booked)

    @rule(number=router_numbers, data=st.data())
    def first_token(self, number: int, data: st.DataObject) -> None:
        side = self.sides[number]
        if side.waiting:
            booked = data.draw(st.sampled_from(sorted(side.waiting)))
            side.router.first_token(booked, now=self.now)
            side.waiting.discard(booked)

    @rule(number=router_numbers, data=st.data())
    def ends(self, number: int, data: st.DataObject) -> None:
        side = self.sides[number]
        if side.booked:
            booked = data.draw(st.sampled_from(sorted(side.booked)))
            side.router.finished(booked, now=self.now)
            del side.booked[booked]
            side.waiting.discard(booked)

    @rule(number=router_numbers)
    def tells(self, number: int) -> None:
        loads = self.sides[number].loads
        self.written.append((loads.replica_id, loads.record()))
        assert not loads.has_changed()

    @precondition(lambda self: self.written)
    @rule(number=router_numbers, data=st.data())
    def hears(self, number: int, data: st.DataObject) -> None:
        """Any record: lost ones are never drawn, old ones come late."""
        self._hear(self.sides[number], *data.draw(st.sampled_from(self.written[-8:])))

    @rule(number=router_numbers)
    def tells_and_is_heard(self, number: int) -> None:
        self.tells(number)
        for side in self.sides:
            self._hear(side, *self.written[-1])

    @rule(seconds=st.floats(0.0, 4.0), number=router_numbers, name=st.sampled_from((*NAMES, None, None, None, None)))
    def time_passes_or_one_leaves(self, seconds: float, number: int, name: str | None) -> None:
        side = self.sides[number]
        if name is not None:
            assert side.loads.forget(name, now=self.now) == (side.heard.pop(name, None) is not None)
            return
        self.now += seconds
        for each in self.sides:
            each.loads.settle(self.now)
            self._expire(each)

    def _hear(self, side: Side, name: str, record: bytes) -> None:
        side.loads.take(name, record, now=self.now)
        told = decode_record(record, name)
        if name != side.loads.replica_id and told.number > side.heard.get(name, (0.0, 0, ()))[1]:
            side.heard[name] = self.now, told.number, told.ranks

    def _expire(self, side: Side) -> None:
        side.heard = {name: each for name, each in side.heard.items() if self.now - each[0] <= LEASE}

    @invariant()
    def loads_are_what_is_booked_here_and_told_of_there(self) -> None:
        model = CostModel(self.sides[0].router.settings)
        for side in self.sides:
            side.loads.settle(self.now)  # the fleet may have changed
            for worker in side.router.fleet.workers():
                rank = worker.ranks[0]
                load, elsewhere = rank.load, side.loads.elsewhere(rank)
                own, others = side.own(worker.worker_id), side.others(worker.worker_id)
                assert {name: getattr(elsewhere, name) for name in SUMS} == {name: others[name] for name in SUMS}
                assert load.active_requests == own["requests"] + others["requests"]
                assert load.waiting == own["waiting"] + others["waiting"]
                assert load.prefill_tokens == own["prefill_tokens"] + others["prefill_tokens"]
                assert load.prefill_pairs == own["prefill_pairs"] + others["prefill_pairs"]
                assert load.decode_blocks == own["decode_blocks"] + others["decode_blocks"]
                assert model.wait(load, self.now) >= 0.0

    @invariant()
    def a_router_tells_of_its_own_requests_only(self) -> None:
        for side in self.sides:
            told = {
                Source(each.worker_id, each.rank): each
                for each in decode_record(side.loads.record(), side.loads.replica_id).ranks
            }
            for worker in WORKERS:
                own = side.own(worker)
                share = told.get(Source(worker, 0))
                assert (share is not None) == bool(own["requests"])
                if share is not None:
                    assert {name: getattr(share, name) for name in SUMS} == {name: own[name] for name in SUMS}


def test_loads_add_up_whatever_is_told_lost_or_late() -> None:
    """The machine above, for as many steps as a gate has time for."""
    run_state_machine_as_test(
        ReplicasMachine, settings=settings(max_examples=60, stateful_step_count=40, deadline=None)
    )
