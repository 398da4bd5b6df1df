"""The admission queue: requests that wait until a rank has room for them. Bounded, ordered, fair between tenants.

A request waits in a lane, the ranks that could serve it; whoever asks for the next one says which lanes have room.
Between tenants the deficit counters of `queue_shares` decide who may be served, and the order of `queue_order` which of
their requests is first. So order and priority hold across tenants, within one quantum. Whenever a lane with room has a
request, there is a next one: shares never leave a rank idle.

When the queue is full, who has most waiting by weight loses the request that would be served last. Time is an argument;
nothing here waits. Adding, taking and leaving cost O(log n), but O(tenants) in a full queue and when a round ends.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from types import MappingProxyType
from typing import Generic, NamedTuple, TypeVar

from kvrouter.routing.queue_heap import LeavingHeap
from kvrouter.routing.queue_order import Order
from kvrouter.routing.queue_shares import Shares, Tenant

__all__ = ["Added", "AdmissionQueue", "QueueSettings", "Waiting"]

_SPARE = 32

Subject = TypeVar("Subject")


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSettings:
    """The bounds of a queue, its order, and whose share is how large.

    Attributes:
        order: who is served before whom.
        requests_max: requests that wait at a time.
        bytes_max: bytes that they hold.
        quantum_tokens: prefill tokens by which one tenant may be ahead of another of weight 1.
        tenants_max: tenants that are told apart.
        weight: of tenants that are not named in `weights`.
        weights: shares by tenant; 2 is served twice as much as 1.
    """

    order: Order = field(default_factory=Order)
    requests_max: int = 10_000
    bytes_max: int = 256 * 1024 * 1024
    quantum_tokens: int = 16_384
    tenants_max: int = 1000
    weight: float = 1.0
    weights: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))


class Waiting(Generic[Subject]):
    """One request that waits, or did; equal only to itself."""

    __slots__ = ("_flow", "added_at", "expires_at", "is_waiting", "key", "serial", "size", "subject", "tokens")

    def __init__(
        self,
        subject: Subject,
        flow: "_Flow[Subject]",
        *,
        key: float,
        serial: int,
        tokens: int,
        size: int,
        added_at: float,
        expires_at: float,
    ) -> None:
        self.subject = subject
        self.key, self.serial = key, serial
        self.tokens, self.size = tokens, size
        self.added_at, self.expires_at = added_at, expires_at
        self.is_waiting = False
        self._flow = flow

    @property
    def tenant(self) -> Tenant:
        """Whose it is."""
        return self._flow.tenant

    @property
    def lane(self) -> Hashable:
        """Which ranks it waits for, in the words of whoever added it."""
        return self._flow.lane.key


class Added(NamedTuple, Generic[Subject]):
    """A request that was added, and those that the queue lost to its bounds by that; it may be one of them itself."""

    waiting: Waiting[Subject]
    displaced: list[Waiting[Subject]]


class AdmissionQueue(Generic[Subject]):
    """Requests that wait. Lives on one event loop; not thread-safe."""

    __slots__ = (
        "_by_age",
        "_by_expiry",
        "_lanes",
        "_last",
        "_serial",
        "bytes",
        "requests",
        "settings",
        "shares",
        "tokens",
    )

    def __init__(self, settings: QueueSettings) -> None:
        self.settings = settings
        self.shares = Shares(
            quantum_tokens=settings.quantum_tokens,
            tenants_max=settings.tenants_max,
            weight=settings.weight,
            weights=settings.weights,
        )
        self.requests = self.bytes = self.tokens = 0
        """What waits now."""
        self._lanes: dict[Hashable, _Lane[Subject]] = {}
        self._by_expiry: LeavingHeap[Waiting[Subject]] = LeavingHeap(_is_waiting)
        self._by_age: LeavingHeap[Waiting[Subject]] = LeavingHeap(_is_waiting)
        self._last: dict[Tenant, LeavingHeap[Waiting[Subject]]] = {}
        """The requests of each tenant that waits, beginning with the one that would be served last."""
        self._serial = 0

    def change(self, settings: QueueSettings) -> None:
        """Take other bounds, order and shares. Who waits keeps the place; those too many go with the next."""
        self.settings = settings
        self.shares.change(
            quantum_tokens=settings.quantum_tokens, tenants_max=settings.tenants_max, weights=settings.weights
        )
        for lane in self._lanes.values():
            lane.weight = sum(tenant.weight for tenant in lane.flows)

    def __len__(self) -> int:
        """Requests that wait."""
        return self.requests

    def __iter__(self) -> Iterator[Waiting[Subject]]:
        """All that wait, lane by lane and tenant by tenant; for those who look on, since it takes its time."""
        for lane in self._lanes.values():
            for flow in lane.flows.values():
                yield from flow.waiting()

    def lanes(self) -> dict[Hashable, int]:
        """How many requests wait in each lane."""
        return {key: lane.requests for key, lane in self._lanes.items()}

    def waits_in(self, lane: Hashable) -> int:
        """How many requests wait in a lane."""
        found = self._lanes.get(lane)
        return 0 if found is None else found.requests

    def add(
        self,
        subject: Subject,
        *,
        tenant: str,
        lane: Hashable,
        key: float,
        tokens: int,
        size: int,
        now: float,
        expires_at: float,
    ) -> Added[Subject]:
        """Let a request wait.

        Args:
            subject: whatever the caller knows it by.
            tenant: whose it is.
            lane: which ranks could serve it.
            key: its place, as `settings.order` has it.
            tokens: what its tenant will be charged.
            size: bytes that it holds.
            now: the current time.
            expires_at: when it shall wait no longer.
        """
        self._serial += 1
        flow = self._flow(tenant, lane)
        waiting = Waiting(
            subject,
            flow,
            key=key,
            serial=self._serial,
            tokens=tokens,
            size=size,
            added_at=now,
            expires_at=expires_at,
        )
        if size > self.settings.bytes_max:
            self._forget_if_empty(flow)
            return Added(waiting, [waiting])
        self._enter(waiting)
        return Added(waiting, self._displaced(favourite=flow.tenant))

    def take(self, has_room: Callable[[Hashable], bool]) -> Waiting[Subject] | None:
        """Take the next request of a lane that has room, and charge its tenant; None: no lane with one has room."""
        asked: dict[Hashable, bool] = {}

        def is_open(lane: _Lane[Subject]) -> bool:
            found = asked.get(lane.key)
            if found is None:
                found = asked[lane.key] = has_room(lane.key)
            return found

        while True:
            heads = [head for lane in self._lanes.values() if (head := lane.first(self.shares)) is not None]
            if len(heads) > 1:
                heads.sort(key=_place)
            for head in heads:
                if is_open(head._flow.lane):  # noqa: SLF001 - a class of this module
                    self._leave(head)
                    self.shares.charge(head.tenant, head.tokens)
                    return head
            spent = [
                flow.tenant for lane in self._lanes.values() if lane.spent and is_open(lane) for flow in lane.spent
            ]
            if not spent:
                return None
            self.shares.end_round(spent)
            for lane in self._lanes.values():
                lane.revive()

    def settle(self, taken: Waiting[Subject], tokens: int) -> None:
        """Correct what the tenant of a taken request was charged, now that it is known."""
        tenant, shares = taken.tenant, self.shares
        was_spent = shares.counter(tenant) <= 0
        shares.charge(tenant, tokens - taken.tokens)
        taken.tokens = tokens
        if was_spent and shares.counter(tenant) > 0:
            for lane in self._lanes.values():
                lane.revive(tenant)

    def cancel(self, waiting: Waiting[Subject]) -> bool:
        """Let a request go; False if it does not wait any more."""
        if not waiting.is_waiting:
            return False
        self._leave(waiting)
        return True

    def expire(self, now: float) -> list[Waiting[Subject]]:
        """Let go those whose time is over."""
        expired = []
        while (first := self._by_expiry.first()) is not None and first.expires_at <= now:
            self._leave(first)
            expired.append(first)
        return expired

    def next_expiry(self) -> float | None:
        """When the next one's time is over."""
        first = self._by_expiry.first()
        return None if first is None else first.expires_at

    def oldest(self) -> Waiting[Subject] | None:
        """The request that has waited longest."""
        return self._by_age.first()

    def ahead(self, tenant: str, lane: Hashable, key: float) -> float:
        """About how many requests would be served before one that came now; an estimate, not a promise.

        Its own tenant's go before it unless it goes before all of them, and others' as far as their shares reach in
        the same time, half a quantum included.
        """
        found = self._lanes.get(lane)
        if found is None or not found.tokens:
            return 0.0
        who = self.shares.tenant(tenant)
        flow = found.flows.get(who)
        own = flow.tokens if flow is not None else 0
        first = flow.first() if flow is not None else None
        before = own if first is not None and key >= first.key else 0
        others_weight = found.weight - (who.weight if flow is not None else 0.0)
        others = min(found.tokens - own, others_weight * (before / who.weight + self.settings.quantum_tokens / 2))
        return found.requests * min(1.0, (before + others) / found.tokens)

    # -- private -------------------------------------------------------------------------------------------------------

    def _flow(self, tenant: str, key: Hashable) -> "_Flow[Subject]":
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane(key)
        who = self.shares.tenant(tenant)
        flow = lane.flows.get(who)
        if flow is None:
            flow = lane.flows[who] = _Flow(who, lane)
            lane.weight += who.weight
        return flow

    def _enter(self, waiting: Waiting[Subject]) -> None:
        flow, tokens, size = waiting._flow, waiting.tokens, waiting.size  # noqa: SLF001 - a class of this module
        waiting.is_waiting = True
        self.requests += 1
        self.tokens += tokens
        self.bytes += size
        flow.tenant.wait(tokens=tokens, size=size)
        self._by_expiry.add(waiting.expires_at, waiting.serial, waiting)
        self._by_age.add(0.0, waiting.serial, waiting)
        last = self._last.get(flow.tenant)
        if last is None:
            last = self._last[flow.tenant] = LeavingHeap(_is_waiting)
        last.add(-waiting.key, -waiting.serial, waiting)
        flow.add(waiting)

    def _leave(self, waiting: Waiting[Subject]) -> None:
        flow, tokens, size = waiting._flow, waiting.tokens, waiting.size  # noqa: SLF001 - a class of this module
        waiting.is_waiting = False
        self.requests -= 1
        self.tokens -= tokens
        self.bytes -= size
        flow.tenant.leave(tokens=tokens, size=size)
        self._by_expiry.left()
        self._by_age.left()
        if flow.tenant.requests:
            self._last[flow.tenant].left()
        else:
            del self._last[flow.tenant]
        flow.left(waiting)
        self._forget_if_empty(flow)

    def _forget_if_empty(self, flow: "_Flow[Subject]") -> None:
        lane = flow.lane
        if not flow.requests:
            del lane.flows[flow.tenant]
            lane.spent.pop(flow, None)
            lane.weight -= flow.tenant.weight
        if not lane.flows:
            del self._lanes[lane.key]

    def _displaced(self, *, favourite: Tenant) -> list[Waiting[Subject]]:
        """Make the bounds hold again."""
        displaced = []
        while self.requests > self.settings.requests_max or self.bytes > self.settings.bytes_max:
            measure = "requests" if self.requests > self.settings.requests_max else "bytes"
            last = self._last[self.shares.largest(measure, favourite=favourite)].first()
            assert last is not None
            self._leave(last)
            displaced.append(last)
        return displaced


class _Flow(Generic[Subject]):
    """The requests of one tenant in one lane."""

    __slots__ = ("_waiting", "lane", "listed", "requests", "tenant", "tokens")

    def __init__(self, tenant: Tenant, lane: "_Lane[Subject]") -> None:
        self.tenant, self.lane = tenant, lane
        self.requests = self.tokens = 0
        self.listed = 0
        """Serial of the request that stands for it among the lane's firsts; 0: none."""
        self._waiting: LeavingHeap[Waiting[Subject]] = LeavingHeap(_is_waiting)

    def first(self) -> Waiting[Subject] | None:
        """Its next request."""
        return self._waiting.first()

    def waiting(self) -> Iterator[Waiting[Subject]]:
        """Its requests, in no order."""
        return self._waiting.members()

    def add(self, waiting: Waiting[Subject]) -> None:
        """One more."""
        self._count(1, waiting.tokens)
        self._waiting.add(waiting.key, waiting.serial, waiting)
        self.lane.list_first(self)

    def left(self, waiting: Waiting[Subject]) -> None:
        """One less."""
        self._count(-1, -waiting.tokens)
        self._waiting.left()
        self.lane.list_first(self)

    def _count(self, requests: int, tokens: int) -> None:
        self.requests += requests
        self.tokens += tokens
        self.lane.requests += requests
        self.lane.tokens += tokens


class _Lane(Generic[Subject]):
    """The requests that wait for the same ranks."""

    __slots__ = ("_firsts", "_listed", "flows", "key", "requests", "spent", "tokens", "weight")

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.flows: dict[Tenant, _Flow[Subject]] = {}
        self.requests = self.tokens = 0
        self.weight = 0.0
        """Of all tenants that wait here, together."""
        self.spent: dict[_Flow[Subject], None] = {}
        """Flows whose tenants have to wait for the next round."""
        self._listed = 0  # breaks ties, so that flows are never compared
        self._firsts: list[tuple[float, int, int, _Flow[Subject]]] = []
        """The first request of each flow that is not spent; entries that are not `listed` count no more."""

    def list_first(self, flow: _Flow[Subject]) -> None:
        """Note the first request of a flow, unless it is noted."""
        first = flow.first()
        serial = 0 if first is None else first.serial
        if first is not None and serial != flow.listed and flow not in self.spent:
            if len(self._firsts) > _SPARE + 2 * len(self.flows):
                self._firsts = [entry for entry in self._firsts if entry[3].listed == entry[1]]
                heapify(self._firsts)
            self._listed += 1
            heappush(self._firsts, (first.key, serial, self._listed, flow))
        flow.listed = serial

    def first(self, shares: Shares) -> Waiting[Subject] | None:
        """The first request of those tenants that may be served in this round."""
        firsts = self._firsts
        while firsts:
            _, serial, _, flow = firsts[0]
            if flow.listed == serial and flow not in self.spent:
                if shares.counter(flow.tenant) > 0:
                    return flow.first()
                self.spent[flow] = None
            heappop(firsts)
        return None

    def revive(self, tenant: Tenant | None = None) -> None:
        """Let the flows whose tenants were spent compete again; of one tenant, if given."""
        if tenant is None:
            revived = list(self.spent)
            self.spent.clear()
        else:
            flow = self.flows.get(tenant)
            revived = [flow] if flow is not None and flow in self.spent else []
            for each in revived:
                del self.spent[each]
        for each in revived:
            each.listed = 0
            self.list_first(each)


def _is_waiting(waiting: Waiting[Subject]) -> bool:
    return waiting.is_waiting


def _place(waiting: Waiting[Subject]) -> tuple[float, int]:
    return waiting.key, waiting.serial
