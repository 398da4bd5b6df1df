"""The dispatcher of a router whose requests may have to wait. Without a queue the plain one is used, as it is."""

import asyncio
from collections.abc import Awaitable, Collection
from typing import Any

from kvrouter.blocks import Prompt
from kvrouter.service.admission import Admission
from kvrouter.service.dispatcher import RequestDispatcher
from kvrouter.service.prompts import InferenceBody
from kvrouter.service.proxy import Outcome, Reply, Request, Route, Usage

__all__ = ["QueueingDispatcher"]

_DOUBTFUL: frozenset[Outcome] = frozenset({"connect_failed", "upstream_lost", "timeout", "bad_response"})


class QueueingDispatcher(RequestDispatcher):
    """Asks `admission` before it chooses, and tells it when there may be room."""

    def __init__(self, *, admission: Admission, **parts: Any) -> None:
        super().__init__(**parts)
        self._admission = admission
        self.look_for_room()

    def look_for_room(self) -> None:
        """Choose among the ranks that have it by the bounds of now."""
        room = self._admission.room
        self._room = room if room.is_bounded else None

    def place(self, request: Request, body: InferenceBody, prompt: Prompt | None, excluded: Collection[str]) -> Route:
        """Choose among the ranks that have room, now."""
        found = super()._choose(request, body, prompt, excluded)
        assert isinstance(found, Route)
        return found

    def first_token(self, route: Route) -> None:
        """Prefill is over, which may be what others wait for."""
        super().first_token(route)
        if self._admission.queue.requests:
            self._admission.pump()

    def finished(self, route: Route, outcome: Outcome, usage: Usage | None) -> None:
        """An attempt has ended, which makes room; but one that failed makes it where things may be going wrong.

        Whoever waits goes there a moment later, when others have found out whether it can be reached.
        """
        super().finished(route, outcome, usage)
        if self._admission.queue.requests and outcome not in _DOUBTFUL:
            self._admission.pump()

    def _choose(
        self, request: Request, body: InferenceBody, prompt: Prompt | None, excluded: Collection[str]
    ) -> "Route | asyncio.Future[Route]":
        self.advance(self._clock())
        constraints = self._placement.headers(request.asked) if request.asked else None
        return self._admission.admit(request, body, prompt, excluded, constraints)

    async def _choose_later(
        self, request: Request, body: InferenceBody, prompt: Awaitable[Prompt | None], excluded: Collection[str]
    ) -> Route | Reply:
        found = self._choose(request, body, await prompt, excluded)
        if self._registry.prefillers:
            left = self._leave(found)
            return left if isinstance(left, Route) else await left
        if isinstance(found, Route):
            return found
        try:
            return await found
        except asyncio.CancelledError:
            # It may have been admitted in the moment in which its client left.
            if found.done() and not found.cancelled() and found.exception() is None:
                self.finished(found.result(), "client_gone", None)
            raise
