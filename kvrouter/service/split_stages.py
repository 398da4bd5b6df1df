"""Books the two stages of split requests, and says what became of them to the one who sends them.

`dispatcher.py` knows how one request is booked, counted and learnt from; here two of them make one. Planning is
`routing/disaggregation.py`, sending `disaggregation.py`.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from kvrouter.errors import KvrouterError
from kvrouter.routing import Decision, Router
from kvrouter.routing.disaggregation import Asked
from kvrouter.service.body_members import member
from kvrouter.service.disaggregation import Prefill, SplitSender
from kvrouter.service.proxy import Outcome, Reply, Request, Route, Usage
from kvrouter.service.workers import WorkerRegistry

__all__ = ["Departures", "SplitStages"]


class Departures(Protocol):
    """What is needed of the dispatcher."""

    def book(self, request: Request, decision: Decision, asked: Asked, prefill: Prefill | None) -> Route:
        """Book a decision, and tell the way; raises `RoutingError`."""
        ...

    def whole(self, request: Request, asked: Asked) -> Route:
        """Decide where one worker does it all, book and record it, and tell the way; raises `RoutingError`."""
        ...

    def first_token(self, route: Route) -> None:
        """Prefill is over."""
        ...

    def finished(self, route: Route, outcome: Outcome, usage: Usage | None) -> None:
        """An attempt has ended."""
        ...


class SplitStages:
    """The stages of every split request of one dispatcher."""

    def __init__(
        self,
        departures: Departures,
        sender: SplitSender,
        *,
        router: Router,
        registry: WorkerRegistry,
        clock: Callable[[], float],
    ) -> None:
        self._departures, self._sender, self._clock = departures, sender, clock
        self._router, self._registry = router, registry

    def decide(self, request: Request, asked: Asked, *, batch: int, now: float) -> tuple[Decision, Route] | None:
        """Plan and book a request; None where it goes to one worker, whichever takes it.

        Raises:
            RoutingError: as `Router.decide`.
        """
        plan = self._sender.planner.plan(asked, splittable=_splittable(request, batch), now=now)
        verdicts = self._sender.counts.verdicts
        verdicts[plan.verdict] = verdicts.get(plan.verdict, 0) + 1
        if plan.decode is None:
            return None
        if plan.prefill is None:
            return plan.decode, self._departures.book(request, plan.decode, asked, None)
        prefill = Prefill(request, asked)
        self.depart_prefill(prefill, plan.prefill)
        try:
            route = self.depart(prefill, plan.decode)
        except KvrouterError:
            self.finished(prefill.route, "client_gone", None)
            raise
        route.overlap_tokens = max(route.overlap_tokens, plan.prefill.overlap_tokens)
        return plan.decode, route

    def leave(self, prefill: Prefill, route: Route) -> "Route | asyncio.Task[Route | Reply]":
        """Send the first stage off; return the way of the second, or what tells it."""
        return self._sender.leave(self, prefill, route)

    def leave_later(
        self, found: "asyncio.Future[Route]", prefill_of: Callable[[Route], Prefill | None]
    ) -> "asyncio.Task[Route | Reply]":
        """The same for a request that is still to be admitted."""
        task = asyncio.get_running_loop().create_task(self._leave_later(found, prefill_of), name="leave")
        task.add_done_callback(partial(self._withdraw, found, prefill_of))
        return task

    async def _leave_later(
        self, found: "asyncio.Future[Route]", prefill_of: Callable[[Route], Prefill | None]
    ) -> Route | Reply:
        route = await found
        prefill = prefill_of(route)
        left = route if prefill is None else self.leave(prefill, route)
        return left if isinstance(left, Route) else await left

    def _withdraw(
        self,
        found: "asyncio.Future[Route]",
        prefill_of: Callable[[Route], Prefill | None],
        task: "asyncio.Task[Any]",
    ) -> None:
        """A client left: it waits no more. What was admitted in the same moment, and has not left, ends here."""
        if not task.cancelled() or found.cancel() or found.cancelled() or found.exception() is not None:
            return
        route = found.result()
        prefill = prefill_of(route)
        if prefill is None or not prefill.has_left:
            self._departures.finished(route, "client_gone", None)

    # -- what the sender calls -----------------------------------------------------------------------------------------

    def depart(self, prefill: Prefill, decision: Decision) -> Route:
        """Book the decision of a second stage, and tell the way.

        Its rank is not expected to have the prompt yet: that is `expect`, when somebody has computed it.
        """
        decision.prompt, prefill.decode = None, decision
        return self._departures.book(prefill.request, decision, prefill.asked, prefill)

    def expect(self, prefill: Prefill) -> None:
        """From now on the second stage's rank counts as having the prompt."""
        prompt, decision = prefill.asked.prompt, prefill.decode
        if prompt is None or decision is None:
            return
        prefill.asked = prefill.asked._replace(prompt=None)  # an answer may take long, and must not hold its prompt
        self._router.knowledge.predict(
            decision.dense_rank,
            prompt,
            decision.block_size,
            confirmed=decision.confirmed_tokens,
            promised=decision.overlap_tokens,
            cost=decision.cost,
            now=self._clock(),
        )

    def depart_prefill(self, prefill: Prefill, decision: Decision) -> None:
        """Book the decision of a first stage, and tell it the way."""
        without_session = prefill.asked._replace(session=None)  # a conversation is where its answers come from
        route = self._departures.book(prefill.request, decision, without_session, None)
        route.is_inference = False  # its times are not those that a client sees
        prefill.goes_to(route, self._registry.workers[decision.worker_id], decision)

    def depart_whole(self, prefill: Prefill) -> Route:
        """Decide where one worker does it all, book it, and tell the way."""
        return self._departures.whole(prefill.request, prefill.asked)

    def first_token(self, route: Route) -> None:
        """Prefill is over."""
        self._departures.first_token(route)

    def finished(self, route: Route, outcome: Outcome, usage: Usage | None) -> None:
        """A stage has ended."""
        self._departures.finished(route, outcome, usage)


def _splittable(request: Request, batch: int) -> bool:
    """Blocks are handed over for one answer to one prompt."""
    return batch == 1 and (b'"n"' not in request.body or member(request.body, "n") in (None, 1))
