"""Decides when a request may go to a worker: at once, when a rank has room for it, or not at all.

The queue itself is `kvrouter.routing.queue`, choosing a rank stays the dispatcher's. Here requests are added to the
queue and taken from it as things happen to the fleet, and those are turned away that would come too late. What clients
ask for is read by `admission_hints`; `admission_view` tells of it.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Hashable
from functools import partial
from math import ceil, inf
from typing import Any, NamedTuple, TypeAlias

import msgspec

from kvrouter.blocks import Prompt
from kvrouter.errors import KvrouterError, NoWorkerError, RoutingError, ShedError
from kvrouter.routing import Router
from kvrouter.routing.constraints import Constraints
from kvrouter.routing.fleet import Candidates
from kvrouter.routing.queue import AdmissionQueue, Waiting
from kvrouter.routing.queue_drain import DrainRates
from kvrouter.routing.queue_room import RankRoom
from kvrouter.service.admission_hints import HintsReader
from kvrouter.service.logs import log_event
from kvrouter.service.prompts import InferenceBody
from kvrouter.service.proxy import Request, Route
from kvrouter.service.traffic import Histogram

__all__ = ["ENDS", "REASONS", "Admission", "AdmissionCounters", "Asked", "Lane", "Place"]

WAIT_BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
RETRY_AFTER_SECONDS_MAX = 300
WORK_SECONDS = 0.5
"""How often room is looked for while requests wait: reservations and leases end without a word."""
TOLD_SECONDS = 10.0
"""That requests are turned away is logged at most so often."""

_log = logging.getLogger("kvrouter.admission")

Place: TypeAlias = Callable[[Request, InferenceBody, Prompt | None, Collection[str]], Route]
"""Chooses a rank that has room and books it; raises as the router does."""


class Lane(NamedTuple):
    """Which ranks could serve a request: requests of one lane wait for the same ones."""

    model: str | None
    constraints: Constraints | None
    exclude: frozenset[str]


class Asked(msgspec.Struct, eq=False):
    """One request that waits."""

    request: Request
    body: InferenceBody
    prompt: Prompt | None
    excluded: Collection[str]
    lane: Lane
    deadline_at: float
    priority: int
    route: "asyncio.Future[Route]"


ENDS = ("admitted", "client_gone", "shed", "failed")
"""How waiting ends; `failed`: no worker could be chosen after all."""
REASONS = (
    "overloaded",
    "tenant_over_share",
    "queue_full",
    "queue_timeout",
    "deadline_unreachable",
    "deadline_exceeded",
)
"""Why requests are turned away; the codes of the errors that they get."""


class AdmissionCounters:
    """Plain counts; `admission_view` exports them."""

    __slots__ = ("ended", "queued", "shed", "wait_seconds")

    def __init__(self) -> None:
        self.queued = 0
        """Requests that had to wait."""
        self.ended = dict.fromkeys(ENDS, 0)
        """How waiting ended."""
        self.shed = dict.fromkeys(REASONS, 0)
        """Requests turned away, those that never waited included."""
        self.wait_seconds = Histogram(WAIT_BOUNDS)
        """How long those waited that were admitted."""


class Admission:
    """The queue at work. Lives on the event loop; every method but `due` is synchronous and cheap."""

    def __init__(
        self,
        *,
        router: Router,
        unproxied: Callable[[], frozenset[str]],
        queue: AdmissionQueue[Asked],
        room: RankRoom,
        hints: HintsReader,
        place: Place,
        ttft_seconds_max: float,
        wait_seconds_max: float,
        clock: Callable[[], float],
    ) -> None:
        self.queue, self.room = queue, room
        self.counters = AdmissionCounters()
        self.ttft_seconds_max, self.wait_seconds_max = ttft_seconds_max or inf, wait_seconds_max
        self._router, self._unproxied, self._place, self._hints = router, unproxied, place, hints
        self._rates = DrainRates()
        self._clock = clock
        self._sooner = asyncio.Event()
        self._told_at, self._told = -inf, 0

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
        now, queue = self._clock(), self.queue
        hints = self._hints.read(request, body)
        exclude = frozenset(excluded)
        lane = Lane(body.model, constraints, exclude)
        deadline_at = inf if hints.deadline_seconds is None else request.received_at + hints.deadline_seconds
        candidates = self._candidates(lane)
        if candidates is None:
            return self._place(request, body, prompt, excluded)  # which says what is wrong
        has_room = self.room.anywhere(candidates)
        # A request that a worker failed has been admitted before; only its own deadline counts.
        ttft_max = inf if exclude else self.ttft_seconds_max
        if has_room and not queue.requests:
            if ttft_max < inf or deadline_at < inf:
                self._refuse_late(self._predicted(lane, prompt, now), hints.tenant, ttft_max, deadline_at, now)
            return self._place(request, body, prompt, excluded)
        uncached = self._uncached(prompt, now)
        key = queue.settings.order.key(
            arrived_at=request.received_at,
            priority=hints.priority,
            prefill_seconds=uncached / self._router.settings.prefill_tokens_per_second,
            deadline=None if deadline_at == inf else deadline_at,
        )
        predicted = self._predicted(lane, prompt, now)
        if not has_room or queue.waits_in(lane):
            prior = predicted / len(candidates)
            ahead = queue.ahead(hints.tenant, lane, key) + 1.0
            predicted += self._rates.seconds(lane, ahead, prior=prior, now=now)
        self._refuse_late(predicted, hints.tenant, ttft_max, deadline_at, now)
        route = asyncio.get_running_loop().create_future()
        asked = Asked(request, body, prompt, excluded, lane, deadline_at, hints.priority, route)
        self._wait(asked, hints.tenant, key=key, tokens=self._charge(uncached), predicted=predicted, now=now)
        self.pump()
        return route.result() if route.done() and not route.cancelled() else route

    def pump(self) -> None:
        """Admit those that wait, as far as there is room; whoever knows of new room calls this."""
        queue, now = self.queue, self._clock()
        while queue.requests:
            waiting = queue.take(self._has_room)
            if waiting is None:
                return
            self._rates.admitted(waiting.lane, now=now)
            self._left_lane(waiting, now)
            self._admit_waiting(waiting, now)

    def expire(self) -> None:
        """Turn those away whose time is over."""
        now = self._clock()
        for waiting in self.queue.expire(now):
            self._left_lane(waiting, now)
            asked = waiting.subject
            waited = now - waiting.added_at
            if asked.deadline_at <= now:
                error: KvrouterError = self._shed(
                    504, "deadline_exceeded", f"the deadline passed after waiting {waited:.1f} s", 1.0
                )
            elif self._candidates(asked.lane) is None:
                error = NoWorkerError(f"no worker could take the request for {waited:.1f} s")
            else:
                seconds = self._rates.seconds(asked.lane, self.queue.requests, prior=1.0, now=now)
                error = self._shed(503, "queue_timeout", f"no rank had room for {waited:.1f} s", seconds)
            self._end(waiting, error)

    def fleet_changed(self) -> None:
        """A worker came, went, or may be used again: those who wait may go, once the change is complete."""
        if self.queue.requests:
            self._sooner.set()

    async def due(self) -> None:
        """Wait until `work` may have something to do."""
        due = self.queue.next_expiry()
        # Nobody waits: only the next one that does can change that.
        seconds = None if due is None else min(max(0.0, due - self._clock()), WORK_SECONDS)
        try:
            async with asyncio.timeout(seconds):
                await self._sooner.wait()
        except TimeoutError:
            pass
        self._sooner.clear()

    def work(self) -> None:
        """Do what nobody else asks for: end what waits too long, and find room that came without a word."""
        self.expire()
        self.pump()

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
            log_event(
                _log,
                logging.WARNING,
                "requests_shed",
                requests=shed - self._told,
                waiting=self.queue.requests,
                reasons=dict(self.counters.shed),
            )
            self._told_at, self._told = now, shed

    # -- private -------------------------------------------------------------------------------------------------------

    def _wait(self, asked: Asked, tenant: str, *, key: float, tokens: int, predicted: float, now: float) -> None:
        queue = self.queue
        sooner = queue.next_expiry() or inf
        added, displaced = queue.add(
            asked,
            tenant=tenant,
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
        self._rates.waits(asked.lane, now=now)
        asked.route.add_done_callback(partial(self._left, added))
        for each in displaced:
            self._left_lane(each, now)
            self._end(each, self._too_many(each, predicted))
        if added.expires_at < sooner:
            self._sooner.set()

    def _admit_waiting(self, waiting: Waiting[Asked], now: float) -> None:
        asked, route = waiting.subject, waiting.subject.route
        if route.done():  # the client left in this very moment
            self.queue.settle(waiting, 0)
            self._count_end("client_gone")
            return
        try:
            if asked.deadline_at < inf:
                predicted = self._predicted(asked.lane, asked.prompt, now)
                self._refuse_late(predicted, waiting.tenant.name, inf, asked.deadline_at, now)
            found = self._place(asked.request, asked.body, asked.prompt, asked.excluded)
        except KvrouterError as error:
            self.queue.settle(waiting, 0)
            self._end(waiting, error)
            return
        tokens = 0 if asked.prompt is None else asked.prompt.tokens
        self.queue.settle(waiting, self._charge(tokens - found.overlap_tokens))
        self.counters.wait_seconds.observe(now - waiting.added_at)
        self._count_end("admitted")
        route.set_result(found)

    def _end(self, waiting: Waiting[Asked], error: KvrouterError) -> None:
        """Answer one that waited, and waits no longer, with an error."""
        self._count_end("shed" if isinstance(error, ShedError) else "failed")
        route = waiting.subject.route
        if not route.done():
            route.set_exception(error)

    def _left(self, waiting: Waiting[Asked], route: "asyncio.Future[Route]") -> None:
        """What a request waited for came, or its client is gone."""
        if route.cancelled() and self.queue.cancel(waiting):
            self._left_lane(waiting, self._clock())
            self._count_end("client_gone")

    def _left_lane(self, waiting: Waiting[Asked], now: float) -> None:
        if not self.queue.waits_in(waiting.lane):
            self._rates.emptied(waiting.lane, now=now)

    def _has_room(self, lane: Hashable) -> bool:
        assert isinstance(lane, Lane)
        candidates = self._candidates(lane)
        return candidates is not None and self.room.anywhere(candidates)

    def _candidates(self, lane: Lane) -> Candidates | None:
        """The ranks of a lane, whether they have room or not; None: there are none now."""
        fleet, exclude = self._router.fleet, lane.exclude | self._unproxied()
        try:
            candidates = fleet.candidates(lane.model, lane.constraints)
            return fleet.narrow(candidates, exclude=exclude, allowed=None) if exclude else candidates
        except RoutingError:
            return None

    def _predicted(self, lane: Lane, prompt: Prompt | None, now: float) -> float:
        return self._router.predict(prompt, model=lane.model, constraints=lane.constraints, now=now)

    def _uncached(self, prompt: Prompt | None, now: float) -> int:
        """Prompt tokens that the rank which has most of them would have to compute."""
        if prompt is None:
            return 0
        credited = self._router.knowledge.overlaps(prompt, now).credited
        return prompt.tokens - max(credited.values(), default=0)

    def _charge(self, uncached: int) -> int:
        """What a request costs its tenant: its prefill, and what every request costs beside it."""
        return uncached + round(self._router.settings.request_tokens)

    def _refuse_late(self, predicted: float, tenant: str, ttft_max: float, deadline_at: float, now: float) -> None:
        """Turn a request away whose first token would come too late."""
        if predicted > ttft_max:
            what = f"the first token is predicted in {predicted:.1f} s, the bound is {ttft_max:g} s"
            shares = self.queue.shares
            if shares.is_over_share(shares.tenant(tenant)):
                raise self._shed(
                    429, "tenant_over_share", f"{what}, and this tenant is over its share", predicted - ttft_max
                )
            raise self._shed(503, "overloaded", what, predicted - ttft_max)
        if now + predicted > deadline_at:
            late = now + predicted - deadline_at
            what = f"the first token is predicted in {predicted:.1f} s, {late:.1f} s after the request's deadline"
            raise self._shed(504, "deadline_unreachable", what, late)

    def _too_many(self, waiting: Waiting[Asked], predicted: float) -> ShedError:
        """Why the queue lost a request to its bounds; it is not among those that wait any more."""
        tenant = waiting.tenant
        limits = self.queue.settings
        what = f"{limits.requests_max} requests or {limits.bytes_max} bytes are waiting"
        if any(each.requests and each is not tenant for each in self.queue.shares):
            return self._shed(429, "tenant_over_share", f"{what}, most of them of this tenant", predicted)
        return self._shed(503, "queue_full", what, predicted)

    def _shed(self, status: int, code: str, reason: str, seconds: float) -> ShedError:
        self.counters.shed[code] += 1
        retry_after = max(1, min(ceil(seconds), RETRY_AFTER_SECONDS_MAX))
        return ShedError(reason, status=status, code=code, retry_after_seconds=retry_after)

    def _count_end(self, how: str) -> None:
        self.counters.ended[how] += 1
