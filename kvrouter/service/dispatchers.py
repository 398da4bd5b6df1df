"""Which dispatcher the data plane has: the plain one, or where anything bounds the ranks the one that lets wait.

Bounds may come and go while the router runs. Both share what they have sent on, so that either may see the end of it;
while nothing is bounded, nothing of the queue is on the way of a request.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping
from typing import Any

from kvrouter.blocks import Prompt
from kvrouter.routing import Router
from kvrouter.service.admission import Admission, AdmissionBounds
from kvrouter.service.admission_dispatcher import QueueingDispatcher
from kvrouter.service.dispatcher import RequestDispatcher
from kvrouter.service.prompts import InferenceBody
from kvrouter.service.proxy import Request, Route

__all__ = ["Dispatchers"]


class Dispatchers:
    """Makes them, and the admission, as they are needed. `parts` are those of `RequestDispatcher`."""

    def __init__(
        self,
        parts: Mapping[str, Any],
        bounds: AdmissionBounds,
        *,
        router: Router,
        unproxied: Callable[[], frozenset[str]],
        clock: Callable[[], float],
    ) -> None:
        self._parts, self._router, self._unproxied, self._clock = parts, router, unproxied, clock
        self._plain: RequestDispatcher | None = None
        self._queueing: QueueingDispatcher | None = None
        self._bounded = asyncio.Event()
        self.admission: Admission | None = None
        """The queue, once there was anything to wait for."""
        self.current: RequestDispatcher = self._chosen(bounds)

    def admit_within(self, bounds: AdmissionBounds) -> None:
        """Let requests wait by other bounds. Who waits goes on waiting until there is room by the new ones."""
        if self.admission is not None and self._queueing is not None:
            self.admission.change(bounds)
            self._queueing.look_for_room()
            self.admission.pump()
        before, self.current = self.current, self._chosen(bounds)
        if before is not self.current:
            self.current.take_over(before)

    async def bounded(self) -> Admission:
        """Wait until there is a queue."""
        await self._bounded.wait()
        assert self.admission is not None
        return self.admission

    def _chosen(self, bounds: AdmissionBounds) -> RequestDispatcher:
        waits = self.admission is not None and self.admission.queue.requests > 0
        if not bounds.is_bounded and not waits:
            self._plain = self._plain or RequestDispatcher(**self._parts)
            return self._plain
        if self._queueing is None:
            self.admission = self._admission(bounds)
            self._queueing = QueueingDispatcher(admission=self.admission, **self._parts)
            self._bounded.set()
        return self._queueing

    def _admission(self, bounds: AdmissionBounds) -> Admission:
        return Admission(
            router=self._router, unproxied=self._unproxied, bounds=bounds, place=self._place, clock=self._clock
        )

    def _place(self, request: Request, body: InferenceBody, prompt: Prompt | None, excluded: Collection[str]) -> Route:
        assert self._queueing is not None
        return self._queueing.place(request, body, prompt, excluded)
