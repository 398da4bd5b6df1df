"""What a worker serves: handlers by name, who may come in, and how the last ones leave.

The same for every transport: they bring decoded requests and wires, and get streams, or refusals to send.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from kvrouter.errors import PermissionDeniedError, RateLimitedError, RefusedError, UnauthenticatedError
from kvrouter.transport.access import NOBODY, AccessGuard, Identity, Peer, without_token
from kvrouter.transport.context import Context
from kvrouter.transport.duplex import StreamLimits
from kvrouter.transport.messages import DecodedRequest, Wire
from kvrouter.transport.server_stream import Handler, ServerStream

__all__ = ["EndpointCounters", "Endpoints"]

_RETRY_AFTER_SECONDS = 1.0
_SOMEBODY = Peer()


@dataclass(slots=True)
class EndpointCounters:
    """What happened since the start."""

    requests: int = 0
    failures: int = 0
    refused_unknown: int = 0
    refused_busy: int = 0
    refused_draining: int = 0
    refused_repeated: int = 0
    refused_unauthenticated: int = 0
    refused_denied: int = 0
    refused_rate: int = 0
    refused_keys: int = 0
    """Clients whose key ZeroMQ does not know."""
    malformed: int = 0
    """Messages that are none of their transport, or no request."""
    gaps: int = 0
    """Messages before which others of their stream were lost."""


class Endpoints:
    """The handlers of one worker process, shared by all its transports.

    At most `streams_max` requests are worked on at a time; more are refused, so that a queue stands where it can be
    seen: at the router. A request id is taken once within the last `remembered_max` ones, so that a repeated request
    is never worked on twice. `guard` says who may ask and how often; without one everybody may.
    """

    def __init__(
        self, *, streams_max: int = 4096, remembered_max: int = 65_536, guard: AccessGuard | None = None
    ) -> None:
        self.streams_max, self.guard = streams_max, guard
        self.counters = EndpointCounters()
        self.draining = False
        self._handlers: dict[str, Handler] = {}
        self._running: dict[asyncio.Task[None], str] = {}
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._remembered_max = remembered_max
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        """Requests that are worked on now."""
        return len(self._running)

    def register(self, name: str, handler: Handler) -> Callable[[], None]:
        """Serve an endpoint; returns what ends that. Raises ValueError if the name is taken or empty."""
        if not name or name in self._handlers:
            raise ValueError(f"endpoint {name!r} is {'taken' if name else 'no name'}")
        self._handlers[name] = handler

        def unregister() -> None:
            self._handlers.pop(name, None)

        return unregister

    def names(self) -> tuple[str, ...]:
        """What is served."""
        return tuple(self._handlers)

    def identify(self, peer: Peer) -> Identity:
        """Tell who a peer is before it has asked for anything, by what its transport says.

        Raises:
            UnauthenticatedError, PermissionDeniedError: it may not ask here.
        """
        if self.guard is None:
            return NOBODY
        try:
            return self.guard.identify(peer)
        except RefusedError as error:
            self._count(error)
            raise

    def open(self, decoded: DecodedRequest, wire: Wire, limits: StreamLimits, peer: Peer = _SOMEBODY) -> ServerStream:
        """Begin to work on a request; the transport says to the peer that it was accepted before it sends more.

        Raises:
            RefusedError: it is not taken; the transport tells the peer why.
        """
        identity = self._let_in(decoded, peer)
        handler = self._admit(decoded)
        loop = asyncio.get_running_loop()
        deadline = None if decoded.remaining_seconds is None else loop.time() + decoded.remaining_seconds
        context = Context(decoded.id, headers=without_token(decoded.headers), deadline=deadline)
        context.identity = identity.name
        stream = ServerStream(wire, context, limits, decoded.request, on_failure=self._failed)
        self.counters.requests += 1
        task = stream.start(handler)
        self._running[task] = decoded.request.endpoint
        self._idle.clear()
        task.add_done_callback(self._done)
        return stream

    def forget(self, id: str) -> None:  # noqa: A002 - the field's name
        """A request has failed and may be taken again, under the same id: its transport repeats requests by itself."""
        self._seen.pop(id, None)

    async def drain(self, seconds: float) -> int:
        """Take nothing more and wait for what runs, at most so long; then cancel the rest and return how many."""
        self.draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            left = tuple(self._running)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            return len(left)
        return 0

    def _let_in(self, decoded: DecodedRequest, peer: Peer) -> Identity:
        if self.guard is None:
            return NOBODY
        try:
            return self.guard.admit(decoded.request.endpoint, decoded.headers, peer)
        except RefusedError as error:
            self._count(error)
            raise

    def _count(self, error: RefusedError) -> None:
        counters = self.counters
        counters.refused_unauthenticated += isinstance(error, UnauthenticatedError)
        counters.refused_denied += isinstance(error, PermissionDeniedError)
        counters.refused_rate += isinstance(error, RateLimitedError)

    def _admit(self, decoded: DecodedRequest) -> Handler:
        handler = self._handlers.get(decoded.request.endpoint)
        counters = self.counters
        if self.draining:
            counters.refused_draining += 1
            raise RefusedError("the worker is draining", code="UNAVAILABLE", retry_after_seconds=_RETRY_AFTER_SECONDS)
        if handler is None:
            counters.refused_unknown += 1
            raise RefusedError(f"endpoint {decoded.request.endpoint[:256]!r} is not served here", code="NOT_FOUND")
        if len(self._running) >= self.streams_max:
            counters.refused_busy += 1
            message = f"the worker has {self.streams_max} requests in work, as many as it takes"
            raise RefusedError(message, code="RESOURCE_EXHAUSTED", retry_after_seconds=_RETRY_AFTER_SECONDS)
        if decoded.id in self._seen:
            counters.refused_repeated += 1
            raise RefusedError(f"request {decoded.id[:256]!r} was taken before", code="ALREADY_EXISTS")
        self._seen[decoded.id] = None
        if len(self._seen) > self._remembered_max:
            self._seen.popitem(last=False)
        return handler

    def _failed(self) -> None:
        self.counters.failures += 1

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._running.pop(task, None)
        if not self._running:
            self._idle.set()
