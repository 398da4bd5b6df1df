"""Decides when a request may go to a worker: at once, when a rank has room for it, or not at all.

The queue itself is `kvrouter.routing.queue`, choosing a rank stays the dispatcher's. Here requests are added to the
queue and taken from it as things happen to the fleet, and those are turned away that would come too late. What clients
ask for is read by `admission_hints`; `admission_view` tells of it.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Hashable
from contextlib import suppress
from functools import partial
from math import inf
from typing import Any, NamedTuple, TypeAlias

import msgspec

from kvrouter.blocks import Prompt
from kvrouter.errors import KvrouterError, NoWorkerError, RoutingError, ShedError
from kvrouter.routing import Router
from kvrouter.routing.constraints import Constraints
from kvrouter.routing.fleet import Candidates
from kvrouter.routing.queue import AdmissionQueue, QueueSettings, Waiting
from kvrouter.routing.queue_room import RankRoom
from kvrouter.service.admission_counts import AdmissionCounters
from kvrouter.service.admission_forecast import Forecast, Lane
from kvrouter.service.admission_hints import HintsReader
from kvrouter.service.logs import log_event
from kvrouter.service.prompts import InferenceBody
from kvrouter.service.proxy import Request, Route

__all__ = ["Admission", "AdmissionBounds", "Asked", "Place"]

WORK_SECONDS = 0.5
"""How often room is looked for while requests wait: reservations and leases end without a word."""
TOLD_SECONDS = 10.0
"""That requests are turned away is logged at most so often."""

_log = logging.getLogger("kvrouter.admission")

Place: TypeAlias = Callable[[Request, InferenceBody, Prompt | None, Collection[str]], Route]
"""Chooses a rank that has room and books it; raises as the router does."""


class Asked(msgspec.Struct, eq=False):
    """One request, and what it asks for."""

    request: Request
    body: InferenceBody
    prompt: Prompt | None
    lane: Lane
    tenant: str
    priority: int
    deadline_at: float
    """When its first token must be there; infinite where it names no deadline."""
    route: "asyncio.Future[Route] | None" = None
    """What tells it, once it waits."""


class AdmissionBounds(NamedTuple):
    """What the settings say of waiting."""

    queue: QueueSettings
    room: RankRoom
    hints: HintsReader
    ttft_seconds_max: float
    """0: nobody is turned away for that."""
    wait_seconds_max: float

    @property
    def is_bounded(self) -> bool:
        """Whether anybody may have to wait, or be turned away."""
        return self.room.is_bounded or self.ttft_seconds_max > 0


class Admission:
    """The queue at work. Lives on the event loop; every method but `due` is synchronous and cheap."""

    def __init__(
        self,
        *,
        router: Router,
        unproxied: Callable[[], frozenset[str]],
        bounds: AdmissionBounds,
        place: Place,
        clock: Callable[[], float],
    ) -> None:
        self.queue: AdmissionQueue[Asked] = AdmissionQueue(bounds.queue)
        self.room = bounds.room
        self.counters = AdmissionCounters()
        self.ttft_seconds_max, self.wait_seconds_max = bounds.ttft_seconds_max or inf, bounds.wait_seconds_max
        self._fleet, self._unproxied = router.fleet, unproxied
        self._forecast = Forecast(router)
        self._place, self._hints, self._clock = place, bounds.hints, clock
        self._sooner = asyncio.Event()
        self._told_at, self._told = -inf, 0

    def change(self, bounds: "AdmissionBounds") -> None:
        """Take other bounds. Who waits keeps place and deadline; `pump` lets those go who have room by the new ones."""
        self.room = bounds.room
        self.ttft_seconds_max, self.wait_seconds_max = bounds.ttft_seconds_max or inf, bounds.wait_seconds_max
        self._hints = bounds.hints
        self.queue.change(bounds.queue)

    # -- requests ------------------------------------------------------------------------------------------------------

    def admit(
        self,
        request: Request,
        body: InferenceBody,
        prompt: Prompt | None,
        excluded: Collection[str],
        constraints: Constraints | None,
    ) -> "Route | asyncio.Future[Route]":
        """Return where the request goes, or what tells it when a rank has room; cancelling that frees the place.

        Raises:
            RequestError: 400, a hint is malformed.
            ShedError: it would come too late, or too many wait.
            RoutingError: no worker can be chosen at all.
        """
        tenant, priority, seconds = self._hints.read(request, body)
        deadline_at = inf if seconds is None else request.received_at + seconds
        lane = Lane(body.model, constraints, frozenset(excluded))
        asked = Asked(request, body, prompt, lane, tenant, priority, deadline_at)
        now, candidates = self._clock(), self._candidates(lane)
        if candidates is None:
            if lane.exclude and self._candidates(lane.including_all()) is None:
                return self._wait_for_return(asked, now)
            return self._choose(asked)  # which says what is wrong
        has_room = self.room.anywhere(candidates)
        if has_room and not self.queue.requests:
            if self.ttft_seconds_max < inf or deadline_at < inf:
                self._refuse_late(asked, self._forecast.prefill_seconds(lane, prompt, now=now), now)
            return self._choose(asked)
        return self._wait_in_turn(asked, candidates, now, has_room=has_room)

    def pump(self) -> None:
        """Admit those that wait, as far as there is room; whoever knows of new room calls this."""
        now = self._clock()
        while self.queue.requests:
            waiting = self.queue.take(self._has_room)
            if waiting is None:
                return
            self._left_lane(waiting, now, admitted=True)
            self._send(waiting, now)

    def expire(self) -> None:
        """Turn those away whose time is over."""
        now = self._clock()
        for waiting in self.queue.expire(now):
            self._left_lane(waiting, now)
            self._end(waiting, self._expired(waiting, now))

    def fleet_changed(self) -> None:
        """A worker came, went, or may be used again: those who wait may go, once the change is complete."""
        if self.queue.requests:
            self._sooner.set()

    async def due(self) -> None:
        """Wait until `work` may have something to do."""
        due = self.queue.next_expiry()
        # Nobody waits: only the next one that does can change that.
        seconds = None if due is None else min(max(0.0, due - self._clock()), WORK_SECONDS)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._sooner.wait()
        self._sooner.clear()

    def work(self) -> None:
        """Do what nobody else asks for: end what waits too long, and find room that came without a word."""
        self.expire()
        self.pump()

    # -- what is told --------------------------------------------------------------------------------------------------

    def oldest_seconds(self, now: float) -> float:
        """How long the one that has waited longest has waited."""
        oldest = self.queue.oldest()
        return 0.0 if oldest is None else now - oldest.added_at

    def lanes(self) -> list[dict[str, Any]]:
        """Who waits for which ranks, for people."""
        return [
            {
                "model": lane.model,
                "constrained": lane.constraints is not None,
                "excluded": sorted(lane.exclude),
                "requests": requests,
                "has_room": self._has_room(lane),
            }
            for lane, requests in self.queue.lanes().items()
            if isinstance(lane, Lane)
        ]

    def tell(self) -> None:
        """Log, now and then, that requests are turned away."""
        shed, now = sum(self.counters.shed.values()), self._clock()
        if shed > self._told and now - self._told_at >= TOLD_SECONDS:
            reasons = {reason: number for reason, number in self.counters.shed.items() if number}
            waiting = self.queue.requests
            log_event(
                _log, logging.WARNING, "requests_shed", requests=shed - self._told, waiting=waiting, totals=reasons
            )
            self._told_at, self._told = now, shed

    # -- waiting -------------------------------------------------------------------------------------------------------

    def _wait_in_turn(
        self, asked: Asked, candidates: Candidates, now: float, *, has_room: bool
    ) -> "Route | asyncio.Future[Route]":
        """Let a request wait, unless its first token would come too late."""
        queue, forecast, lane = self.queue, self._forecast, asked.lane
        uncached = forecast.uncached(asked.prompt, now=now)
        key = queue.settings.order.key(
            arrived_at=asked.request.received_at,
            priority=asked.priority,
            prefill_seconds=forecast.own_seconds(uncached),
            deadline=None if asked.deadline_at == inf else asked.deadline_at,
        )
        predicted = forecast.prefill_seconds(lane, asked.prompt, now=now)
        if not has_room or queue.waits_in(lane):
            ahead = queue.ahead(asked.tenant, lane, key) + 1.0
            predicted += forecast.wait_seconds(lane, ahead, candidates, predicted, now=now)
        self._refuse_late(asked, predicted, now)
        route = self._enter(asked, key=key, tokens=forecast.charge(uncached), predicted=predicted, now=now)
        self.pump()
        return route.result() if route.done() and not route.cancelled() else route

    def _wait_for_return(self, asked: Asked, now: float) -> "asyncio.Future[Route]":
        """Let a request wait whose workers all failed it, and are left out because they cannot be reached.

        It is not their answer that was bad: whichever is back first may have it. A worker that may be asked still, and
        lost this very request, is not asked for it again.
        """
        asked.lane = asked.lane.including_all()
        key = asked.request.received_at + asked.priority * self.queue.settings.order.priority_seconds
        return self._enter(asked, key=key, tokens=self._forecast.charge(0), predicted=1.0, now=now)

    def _enter(self, asked: Asked, *, key: float, tokens: int, predicted: float, now: float) -> "asyncio.Future[Route]":
        route = asked.route = asyncio.get_running_loop().create_future()
        sooner = self.queue.next_expiry()
        added, displaced = self.queue.add(
            asked,
            tenant=asked.tenant,
            lane=asked.lane,
            key=key,
            tokens=tokens,
            size=len(asked.request.body),
            now=now,
            expires_at=min(now + self.wait_seconds_max, asked.deadline_at),
        )
        if added in displaced:
            raise self._too_many(added, predicted)
        self.counters.queued += 1
        self._forecast.waits(asked.lane, now=now)
        route.add_done_callback(partial(self._left, added))
        for each in displaced:
            self._left_lane(each, now)
            self._end(each, self._too_many(each, predicted))
        if sooner is None or added.expires_at < sooner:
            self._sooner.set()
        return route

    def _send(self, waiting: Waiting[Asked], now: float) -> None:
        """Send one on that was taken from the queue."""
        asked, route = waiting.subject, waiting.subject.route
        assert route is not None
        if route.done():  # the client left in this very moment
            self.queue.settle(waiting, 0)
            self.counters.ended["client_gone"] += 1
            return
        try:
            if asked.deadline_at < inf:
                self._refuse_unreachable(asked, self._forecast.prefill_seconds(asked.lane, asked.prompt, now=now), now)
            found = self._choose(asked)
        except KvrouterError as error:
            self.queue.settle(waiting, 0)
            self._end(waiting, error)
            return
        tokens = 0 if asked.prompt is None else asked.prompt.tokens
        self.queue.settle(waiting, self._forecast.charge(tokens - found.overlap_tokens))
        self.counters.wait_seconds.observe(now - waiting.added_at)
        self.counters.ended["admitted"] += 1
        route.set_result(found)

    def _end(self, waiting: Waiting[Asked], error: KvrouterError) -> None:
        """Answer one that waited, and waits no longer, with an error."""
        self.counters.ended["shed" if isinstance(error, ShedError) else "failed"] += 1
        route = waiting.subject.route
        if route is not None and not route.done():
            route.set_exception(error)

    def _left(self, waiting: Waiting[Asked], route: "asyncio.Future[Route]") -> None:
        """What a request waited for came, or its client is gone."""
        if route.cancelled() and self.queue.cancel(waiting):
            self._left_lane(waiting, self._clock())
            self.counters.ended["client_gone"] += 1

    def _left_lane(self, waiting: Waiting[Asked], now: float, *, admitted: bool = False) -> None:
        lane = waiting.subject.lane
        self._forecast.left(lane, admitted=admitted, remaining=self.queue.waits_in(lane), now=now)

    # -- the fleet -----------------------------------------------------------------------------------------------------

    def _choose(self, asked: Asked) -> Route:
        return self._place(asked.request, asked.body, asked.prompt, asked.lane.exclude)

    def _has_room(self, lane: Hashable) -> bool:
        assert isinstance(lane, Lane)
        candidates = self._candidates(lane)
        return candidates is not None and self.room.anywhere(candidates)

    def _candidates(self, lane: Lane) -> Candidates | None:
        """The ranks of a lane, whether they have room or not; None: there are none now."""
        exclude = lane.exclude | self._unproxied()
        try:
            candidates = self._fleet.candidates(lane.model, lane.constraints)
            return self._fleet.narrow(candidates, exclude=exclude, allowed=None) if exclude else candidates
        except RoutingError:
            return None

    # -- turning away --------------------------------------------------------------------------------------------------

    def _refuse_late(self, asked: Asked, predicted: float, now: float) -> None:
        """Turn a request away whose first token would come too late for the router's bound, or for itself."""
        # One that a worker failed was let in before: only its own deadline counts.
        bound = inf if asked.lane.exclude else self.ttft_seconds_max
        if predicted > bound:
            what = f"the first token is predicted in {predicted:.2f} s, the bound is {bound:g} s"
            shares = self.queue.shares
            if shares.is_over_share(shares.tenant(asked.tenant)):
                what = f"{what}, and this tenant has more waiting than its share"
                raise self.counters.turn_away("tenant_over_share", what, seconds=predicted - bound)
            raise self.counters.turn_away("overloaded", what, seconds=predicted - bound)
        self._refuse_unreachable(asked, predicted, now)

    def _refuse_unreachable(self, asked: Asked, predicted: float, now: float) -> None:
        late = now + predicted - asked.deadline_at
        if late > 0:
            what = f"the first token is predicted in {predicted:.2f} s, {late:.2f} s after the request's deadline"
            raise self.counters.turn_away("deadline_unreachable", what, seconds=late)

    def _too_many(self, waiting: Waiting[Asked], predicted: float) -> ShedError:
        """Why the queue lost a request to its bounds; it is not among those that wait any more."""
        limits = self.queue.settings
        what = f"{limits.requests_max} requests or {limits.bytes_max} bytes are waiting"
        if any(each.requests and each is not waiting.tenant for each in self.queue.shares):
            what = f"{what}, and this tenant has most of them by its share"
            return self.counters.turn_away("tenant_over_share", what, seconds=predicted)
        return self.counters.turn_away("queue_full", what, seconds=predicted)

    def _expired(self, waiting: Waiting[Asked], now: float) -> KvrouterError:
        """Why a request does not wait any longer."""
        asked, waited = waiting.subject, now - waiting.added_at
        if asked.deadline_at <= now:
            what = f"the request's deadline passed after it had waited {waited:.1f} s for a rank with room"
            return self.counters.turn_away("deadline_exceeded", what, seconds=1.0)
        candidates = self._candidates(asked.lane)
        if candidates is None:
            return NoWorkerError(f"for {waited:.1f} s no worker could take the request")
        left = self.queue.waits_in(asked.lane)
        seconds = self._forecast.wait_seconds(asked.lane, left, candidates, 1.0, now=now)
        what = f"no rank had room for {waited:.1f} s"
        return self.counters.turn_away("queue_timeout", what, seconds=seconds)
