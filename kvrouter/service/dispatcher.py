"""Decides about each request that the data plane has read: answer it here, send it to a worker, or refuse it.

The data plane (`proxy`) moves bytes and calls this; reading and tokenising prompts is `prompts`, choosing is `routing`,
what a worker's answers say about its health is `workers.py`. On the hot path nothing is logged and no label is looked
up.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from itertools import count
from typing import Protocol, TypeAlias
from urllib.parse import unquote

import msgspec

from kvrouter.blocks import Prompt
from kvrouter.errors import NoWorkerError, RequestError, RoutingError, UnknownModelError
from kvrouter.routing import Decision, Router
from kvrouter.routing.constraints import Constraints
from kvrouter.routing.disaggregation import Asked
from kvrouter.routing.queue_room import RankRoom
from kvrouter.routing.sessions import SessionTable
from kvrouter.service.auth import Authenticator, refuse_foreign_page
from kvrouter.service.body_members import with_members
from kvrouter.service.decisions import DecisionRing
from kvrouter.service.disaggregation import SPLIT_PATHS, Prefill, SplitSender
from kvrouter.service.fleet_view import FleetViews
from kvrouter.service.placement import SESSION_END, PlacementReader
from kvrouter.service.prompts import InferenceBody, PromptResolver, RequestReader
from kvrouter.service.proxy import Endpoint, Outcome, Reply, Request, Route, Usage
from kvrouter.service.rates import ClientRates
from kvrouter.service.replies import JSON_HEADERS, json_reply
from kvrouter.service.report_mode import without_report_mode
from kvrouter.service.split_stages import SplitStages
from kvrouter.service.traffic import TrafficCounters
from kvrouter.service.whole_answers import WholeAnswers
from kvrouter.service.workers import Worker, WorkerRegistry

__all__ = ["LocalRoutes", "ModelRoutes", "RequestDispatcher"]

_SESSION_HEADERS = (b"x-kvrouter-session", b"x-session-id", b"x-dynamo-session-id")
INFERENCE_PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"})


class LocalRoutes(Protocol):
    """Something that answers requests without a worker."""

    def answer(self, request: Request) -> Reply | None:
        """Return the answer, or None when the path is not one of its own."""
        ...


Conversation: TypeAlias = tuple[str, str | None, bool]
"""Session and model, and whether this is its last request."""


class Flight(msgspec.Struct, eq=False, frozen=True, gc=False):
    """One attempt of one request, from the decision to its end."""

    worker: Worker
    decision: Decision
    booking: int
    received_at: float
    conversation: Conversation | None = None
    """None where conversations are not followed."""
    prefill: Prefill | None = None
    """The first stage of a split request, of which this is the second."""
    is_whole: bool = False
    """Whether the answer comes in one piece, so that nobody tells when its first token was computed."""


class RequestDispatcher:
    """The data plane's `Dispatcher`."""

    def __init__(
        self,
        *,
        registry: WorkerRegistry,
        router: Router,
        reader: RequestReader,
        resolver: PromptResolver,
        views: FleetViews,
        authenticator: Authenticator,
        decisions: DecisionRing,
        traffic: TrafficCounters,
        placement: PlacementReader,
        sessions: SessionTable | None,
        splits: SplitSender | None,
        local: tuple[LocalRoutes, ...],
        admin: Endpoint | None,
        uses_sessions: bool,
        clock: Callable[[], float],
        rates: ClientRates | None = None,
    ) -> None:
        self._uses_sessions = uses_sessions
        """Whether the policy looks at them; headers are only searched if it does."""
        self._registry, self._router, self._views = registry, router, views
        self._reader, self._resolver = reader, resolver
        self._authenticator, self._decisions, self._traffic = authenticator, decisions, traffic
        self._asks_for_keys, self._rates = not authenticator.is_open, rates
        self._placement, self._sessions, self._splits = placement, sessions, splits
        self._stages = None
        if splits is not None:
            self._stages = SplitStages(self, splits, router=router, registry=registry, clock=clock)
        self._local, self._admin, self._clock = local, admin, clock
        self._whole_answers = WholeAnswers(router.book)
        self._bookings = count(1)
        self._wall_offset = time.time() - clock()
        self._room: RankRoom | None = None
        """What ranks must have for inference; set by `QueueingDispatcher`, which lets requests wait for it."""

    def take_over(self, other: "RequestDispatcher") -> None:
        """Go on where another one stops: what it has sent on ends here."""
        self._bookings, self._whole_answers = other._bookings, other._whole_answers  # noqa: SLF001 - our own class
        self.change(rates=other._rates, uses_sessions=other._uses_sessions)  # noqa: SLF001 - as above

    def change(self, *, rates: ClientRates | None, uses_sessions: bool) -> None:
        """Hold clients to other rates, and look for sessions or not."""
        self._rates, self._uses_sessions = rates, uses_sessions

    # -- the data plane's calls, in their order ------------------------------------------------------------------------

    def admit(self, request: Request) -> Reply | None:
        """Check the key and how often it is used, before the body is read."""
        if self._asks_for_keys:
            self._authenticator.check(request.method, request.path, request.header(b"authorization"))
        if self._rates is not None:
            self._rates.check(request)
        return None

    def try_local(self, request: Request) -> Reply | None:
        """Answer what needs no worker."""
        if request.path in INFERENCE_PATHS:
            return None
        for routes in self._local:
            reply = routes.answer(request)
            if reply is not None:
                return reply
        return None

    def route(self, request: Request, excluded: Collection[str]) -> Route | Reply | Awaitable[Route | Reply]:
        """Choose where the request goes; called again with the workers that failed it."""
        path = request.path
        if path in INFERENCE_PATHS:
            if request.method != "POST":
                raise RequestError.wrong_method(path, "POST")
            body = self._reader.read(path, request.body)
            if body.has_engine_arguments:
                request.body = without_report_mode(request.body)
            prompt = self._resolver.resolve(body, model_profile=body.model or self._views.current().sole_model)
            if prompt is None or isinstance(prompt, Prompt):
                found = self._choose(request, body, prompt, excluded)
                return self._leave(found) if self._registry.prefillers else found
            return self._choose_later(request, body, prompt, excluded)
        if path.startswith("/v1/"):
            return self._route_other(request, excluded)
        if self._admin is None:
            raise RequestError(f"unknown path {path}", status=404, code="unknown_url")
        refuse_foreign_page(request.method, path, request.header(b"origin"), request.header(b"host"))
        return Route(self._admin, "", is_inference=False)

    def first_token(self, route: Route) -> None:
        """Prefill is over: its load is gone, and the time that it took is known unless it was over long ago."""
        flight = route.token
        if isinstance(flight, Flight):
            now = self._clock()
            if flight.is_whole:
                self._router.book.prefill_complete(flight.booking, now=now)
            else:
                # How long others took is nothing to learn from.
                self._router.first_token(flight.booking, now=now, learns=flight.prefill is None)
            if route.is_inference:
                traffic, decision = self._traffic, flight.decision
                traffic.ttft_seconds.observe(now - flight.received_at)
                if decision.cost > 0 and flight.prefill is None and decision.first_token_seconds is not None:
                    traffic.ttft_ratio.observe(decision.first_token_seconds / decision.cost)

    def finished(self, route: Route, outcome: Outcome, usage: Usage | None) -> None:
        """Give back what was booked, and learn from how it ended."""
        flight = route.token
        if not isinstance(flight, Flight):
            return
        now, worker, decision = self._clock(), flight.worker, flight.decision
        counters = worker.counters
        worker.active -= 1
        cached_tokens = None if usage is None else worker.cached_reports.read(usage)
        self._router.finished(
            flight.booking,
            now=now,
            cached_tokens=cached_tokens,
            completed=outcome == "ok",
            learns=flight.prefill is None,
        )
        decision.status = outcome
        if flight.conversation is not None:
            self._end_of_request(flight.conversation, now)
        counters.outcomes[outcome] = counters.outcomes.get(outcome, 0) + 1
        if outcome == "ok":
            if route.is_inference:
                self._traffic.request_seconds.observe(now - flight.received_at)
            if worker.losses_in_row or worker.ejections_in_row:
                self._registry.answered(worker)
        elif flight.prefill is None or flight.prefill.failure is None:
            self._learn_from_failure(worker, outcome, now)
        if flight.prefill is not None and self._splits is not None and self._stages is not None:
            self._splits.ended(self._stages, flight.prefill, outcome)
        if usage is not None and usage.prompt_tokens:
            decision.output_tokens = usage.completion_tokens
            promised, cached = decision.overlap_tokens, cached_tokens or 0
            counters.usage_reports += 1
            counters.usage_prompt_tokens += usage.prompt_tokens
            counters.usage_promised_tokens += promised
            counters.usage_cached_tokens += cached
            counters.usage_error_tokens += abs(promised - cached)

    def advance(self, now: float) -> bool:
        """Take the prompts for computed that must be by now although nobody tells; whether there were any."""
        return self._whole_answers.advance(now)

    # -- choosing ------------------------------------------------------------------------------------------------------

    async def _choose_later(
        self, request: Request, body: InferenceBody, prompt: Awaitable[Prompt | None], excluded: Collection[str]
    ) -> Route | Reply:
        found = self._choose(request, body, await prompt, excluded)
        left = self._leave(found) if self._registry.prefillers else found
        return left if isinstance(left, Route) else await left

    def _choose(
        self, request: Request, body: InferenceBody, prompt: Prompt | None, excluded: Collection[str]
    ) -> "Route | asyncio.Future[Route]":
        session = (_session(request) or body.session) if self._uses_sessions else None
        model, now = body.model, self._clock()
        request.is_whole = not (body.stream or body.max_tokens == 1 or request.path == "/v1/embeddings")
        constraints = self._placement.headers(request.asked) if request.asked else None
        decision, route = self._decide(
            request,
            prompt,
            model,
            excluded,
            session=session,
            constraints=constraints,
            now=now,
            room=self._room,
            batch=body.batch,
        )
        traffic = self._traffic
        traffic.prompt_tokens += decision.prompt_tokens
        traffic.overlap_tokens += decision.overlap_tokens
        traffic.by_policy[decision.policy] += 1
        prefill = _prefill_of(route) if self._registry.prefillers else None
        first_stage = None if prefill is None else prefill.decision
        self._decisions.record(request.id, decision, model, now + self._wall_offset, first_stage)
        return route

    def _route_other(self, request: Request, excluded: Collection[str]) -> Route:
        """Send a path that we do not interpret to the least loaded worker of the model that its body names."""
        model = self._reader.model_of(request.body)
        request.is_whole = True  # nobody knows what is computed there, and when its first token is
        constraints = self._placement.headers(request.asked) if request.asked else None
        _, route = self._decide(
            request, None, model, excluded, session=None, constraints=constraints, now=self._clock()
        )
        self._traffic.other_requests += 1
        route.is_inference = False
        return route

    def _decide(
        self,
        request: Request,
        prompt: Prompt | None,
        model: str | None,
        excluded: Collection[str],
        *,
        session: str | None,
        constraints: Constraints | None,
        now: float,
        room: RankRoom | None = None,
        batch: int = 1,
    ) -> tuple[Decision, Route]:
        """Decide, book the decision, and tell the way."""
        self.advance(now)
        registry = self._registry
        if registry.unproxied:
            excluded = registry.unproxied.union(excluded)
        if session is not None and self._sessions is not None:
            constraints = self._sessions.asked(session, model, constraints, now)
        try:
            if registry.prefillers and self._stages is not None and request.path in SPLIT_PATHS:
                asked = Asked(prompt, model, session, excluded, constraints or self._router.fleet.defaults)
                found = self._stages.decide(request, asked, batch=batch, now=now)
                if found is not None:
                    return found
            booking = next(self._bookings)
            decision = self._router.place(
                prompt,
                model=model,
                session=session,
                exclude=excluded,
                id=booking,
                now=now,
                constraints=constraints,
                room=room,
            )
        except (UnknownModelError, NoWorkerError) as error:
            raise self._refusal(error, model) from None
        conversation = None
        if session is not None and self._sessions is not None:
            conversation = self._followed(request, decision, session, model)
        return decision, self._way(request, decision, booking, conversation, None, is_whole=request.is_whole)

    def book(self, request: Request, decision: Decision, asked: Asked, prefill: Prefill | None) -> Route:
        """Book a decision, and tell the way; `prefill` is the first stage if this is the second."""
        booking = next(self._bookings)
        self._router.commit(decision, id=booking, now=self._clock())
        conversation = self._followed(request, decision, asked.session, asked.model)
        return self._way(request, decision, booking, conversation, prefill)

    def whole(self, request: Request, asked: Asked) -> Route:
        """Decide where one worker does all of a request that was to be split, and book and record it."""
        now, booking = self._clock(), next(self._bookings)
        decision = self._router.place(
            asked.prompt,
            model=asked.model,
            session=asked.session,
            exclude=asked.exclude,
            id=booking,
            now=now,
            constraints=asked.constraints,
        )
        self._decisions.record(request.id, decision, asked.model, now + self._wall_offset)
        conversation = self._followed(request, decision, asked.session, asked.model)
        return self._way(request, decision, booking, conversation, None, is_whole=request.is_whole)

    def _way(
        self,
        request: Request,
        decision: Decision,
        booking: int,
        conversation: Conversation | None,
        prefill: Prefill | None,
        *,
        is_whole: bool = False,
    ) -> Route:
        """The way of what is booked."""
        worker_id, rank = decision.target.source
        worker = self._registry.workers[worker_id]
        worker.active += 1
        worker.counters.requests += 1
        assert worker.endpoint is not None
        flight = Flight(worker, decision, booking, request.received_at, conversation, prefill, is_whole)
        if is_whole:
            self._whole_answers.expect(booking, due=self._clock() + decision.cost)
        route = Route(worker.endpoint, worker_id, decision.overlap_tokens, worker.rank_headers[rank], flight)
        if worker.rank_members is not None:
            route.body = with_members(request.body, worker.rank_members[rank])
        return route

    def _leave(self, found: "Route | asyncio.Future[Route]") -> "Route | Awaitable[Route | Reply]":
        """Send the first stage of a request off that is split; others have none."""
        if self._stages is None:
            return found
        if not isinstance(found, Route):
            return self._stages.leave_later(found, _prefill_of)
        prefill = _prefill_of(found)
        return found if prefill is None else self._stages.leave(prefill, found)

    def _followed(
        self, request: Request, decision: Decision, session: str | None, model: str | None
    ) -> Conversation | None:
        """Note where a conversation is, if there is one and they are followed."""
        if session is None or self._sessions is None:
            return None
        self._sessions.placed(session, model, decision.target.source, self._clock())
        return session, model, SESSION_END in dict(request.asked)

    def _end_of_request(self, conversation: Conversation, now: float) -> None:
        """From now on a conversation is idle, or over."""
        assert self._sessions is not None
        session, model, is_last = conversation
        self._sessions.ended(session, model, now)
        if is_last:
            self._sessions.close(session, model)

    def _refusal(self, error: UnknownModelError | NoWorkerError, model: str | None) -> RoutingError:
        """A worker that was never reached could serve anything; but if others are there, 404 helps a client more."""
        known = self._views.current().models
        if isinstance(error, NoWorkerError) and model is not None and known and model not in known:
            error = UnknownModelError(model, known)
        if isinstance(error, UnknownModelError):
            self._traffic.refused_unknown_model += 1
        else:
            self._traffic.refused_no_worker += 1
        return error

    # -- learning ------------------------------------------------------------------------------------------------------

    def _learn_from_failure(self, worker: Worker, outcome: Outcome, now: float) -> None:
        if outcome == "connect_failed":
            self._registry.connect_failed(worker, now=now)
        elif outcome in ("upstream_lost", "bad_response"):
            self._registry.upstream_lost(worker, now=now)
        elif outcome == "timeout":
            self._registry.check_soon(worker, now=now)


class ModelRoutes:
    """`GET /v1/models` and `GET /v1/models/{id}`, answered from what the workers said last."""

    def __init__(self, views: FleetViews) -> None:
        self._views = views

    def answer(self, request: Request) -> Reply | None:
        """Answer, or return None for other paths."""
        path = request.path
        if not path.startswith("/v1/models") or request.method not in ("GET", "HEAD"):
            return None
        if path == "/v1/models":
            return Reply(200, self._views.models_answer(), JSON_HEADERS)
        if not path.startswith("/v1/models/"):
            return None
        name = unquote(path[len("/v1/models/") :])
        known = self._views.current().models_body
        if name not in known:
            raise UnknownModelError(name, known)
        return json_reply(200, known[name])


def _session(request: Request) -> str | None:
    """The conversation that a client names in a header."""
    for name in _SESSION_HEADERS:
        value = request.header(name)
        if value:
            return value.decode("latin-1")
    return None


def _prefill_of(route: Route) -> Prefill | None:
    """The first stage of a request that is split, given the way of its second."""
    return route.token.prefill if isinstance(route.token, Flight) else None
