"""An admission queue against the plainest one that does the same: a list that is searched from end to end."""

from math import floor
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from kvrouter.routing.queue import AdmissionQueue, QueueSettings, Waiting

QUANTUM = 8
REQUESTS_MAX, BYTES_MAX = 12, 60
WEIGHTS = {"a": 1.0, "b": 2.0, "c": 0.5}
TENANTS = st.sampled_from("abc")
LANES = st.sampled_from([0, 1, 2])
SETTINGS = QueueSettings(
    requests_max=REQUESTS_MAX, bytes_max=BYTES_MAX, quantum_tokens=QUANTUM, tenants_max=10, weights=WEIGHTS
)


def _place(waiting: Waiting[int]) -> tuple[float, int]:
    return waiting.key, waiting.serial


class QueueMachine(RuleBasedStateMachine):
    """Whatever is added, taken, cancelled, expired and corrected, the list knows who is next."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: AdmissionQueue[int] = AdmissionQueue(SETTINGS)
        self.waiting: list[Waiting[int]] = []
        self.counters: dict[str, float] = {}
        self.taken: list[Waiting[int]] = []
        self.now = 0.0

    @rule(
        tenant=TENANTS,
        lane=LANES,
        key=st.integers(0, 6),
        tokens=st.integers(0, 40),
        size=st.integers(0, 70),
        patience=st.integers(0, 5),
    )
    def add(self, tenant: str, lane: int, key: int, tokens: int, size: int, patience: int) -> None:
        """Beyond a bound, who has most by weight loses what would be served last."""
        added, displaced = self.queue.add(
            0,
            tenant=tenant,
            lane=lane,
            key=key,
            tokens=tokens,
            size=size,
            now=self.now,
            expires_at=self.now + patience,
        )
        self.counters.setdefault(tenant, QUANTUM * WEIGHTS[tenant])
        if size > BYTES_MAX:
            assert displaced == [added]
            return
        self.waiting.append(added)
        for each in displaced:
            measure = "requests" if len(self.waiting) > REQUESTS_MAX else "bytes"
            assert len(self.waiting) > REQUESTS_MAX or sum(one.size for one in self.waiting) > BYTES_MAX
            held = {name: self._held(name, measure) for name in WEIGHTS}
            assert held[each.tenant.name] == max(held.values())
            assert each is max((one for one in self.waiting if one.tenant is each.tenant), key=_place)
            assert not each.is_waiting
            self.waiting.remove(each)

    def _held(self, tenant: str, measure: str) -> float:
        mine = [one for one in self.waiting if one.tenant.name == tenant]
        return (len(mine) if measure == "requests" else sum(one.size for one in mine)) / WEIGHTS[tenant]

    @rule(lanes=st.sets(LANES))
    def take(self, lanes: set[int]) -> None:
        """The smallest key among tenants that may be served; if none may, after as many rounds as it takes."""
        found = self.queue.take(lambda lane: lane in lanes)

        open_ones = [one for one in self.waiting if one.lane in lanes]
        if not open_ones:
            assert found is None
            return
        names = {one.tenant.name for one in open_ones}
        if all(self.counters[name] <= 0 for name in names):
            rounds = min(floor(-self.counters[name] / (QUANTUM * WEIGHTS[name])) + 1 for name in names)
            for name, counter in self.counters.items():
                grant = QUANTUM * WEIGHTS[name]
                self.counters[name] = min(counter + rounds * grant, grant)
        expected = min((one for one in open_ones if self.counters[one.tenant.name] > 0), key=_place)
        assert found is expected
        self.waiting.remove(expected)
        self.counters[expected.tenant.name] -= expected.tokens
        self.taken.append(expected)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """From anywhere, and once."""
        gone = data.draw(st.sampled_from(self.waiting))

        assert self.queue.cancel(gone)
        assert not self.queue.cancel(gone)
        self.waiting.remove(gone)

    @precondition(lambda self: self.taken)
    @rule(data=st.data(), tokens=st.integers(0, 40))
    def settle(self, data: st.DataObject, tokens: int) -> None:
        """What a request really cost counts, not what was thought."""
        taken = data.draw(st.sampled_from(self.taken))
        self.counters[taken.tenant.name] -= tokens - taken.tokens

        self.queue.settle(taken, tokens)

    @rule(seconds=st.integers(0, 3))
    def wait(self, seconds: int) -> None:
        """Those whose time is over go, the first ones first."""
        self.now += seconds
        due = {one.serial for one in self.waiting if one.expires_at <= self.now}

        expired = self.queue.expire(self.now)

        assert {one.serial for one in expired} == due
        assert [one.expires_at for one in expired] == sorted(one.expires_at for one in expired)
        self.waiting = [one for one in self.waiting if one.serial not in due]

    @invariant()
    def sums_hold(self) -> None:
        """What the queue says of itself is what the list says."""
        queue, waiting = self.queue, self.waiting
        assert len(queue) == len(waiting) <= REQUESTS_MAX
        assert queue.bytes == sum(one.size for one in waiting) <= BYTES_MAX
        assert queue.tokens == sum(one.tokens for one in waiting)
        assert {one.serial for one in queue} == {one.serial for one in waiting}
        oldest = queue.oldest()
        assert (None if oldest is None else oldest.serial) == min((one.serial for one in waiting), default=None)
        assert queue.next_expiry() == min((one.expires_at for one in waiting), default=None)
        by_lane: dict[Any, int] = {}
        for one in waiting:
            assert one.is_waiting
            by_lane[one.lane] = by_lane.get(one.lane, 0) + 1
        assert queue.lanes() == by_lane
        for tenant in queue.shares:
            assert tenant.requests == sum(one.tenant is tenant for one in waiting)
            assert queue.shares.counter(tenant) == self.counters[tenant.name]


def test_a_queue_does_what_a_list_would() -> None:
    """Step by step, in any order of events."""
    run_state_machine_as_test(QueueMachine, settings=settings(max_examples=120, stateful_step_count=60))
