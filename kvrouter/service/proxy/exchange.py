"""One request's life after it is whole: routed, sent, answered; sent again elsewhere while nothing was answered.

The rule of retrying: a worker that refuses the connection, or closes it before the first byte of its answer, is left
out and the next best one is asked, a bounded number of times. A kept-alive connection that turns out to be closed is
replaced without counting. Requests that are neither inference nor idempotent are sent at most once, and never on a
kept-alive connection. After the first byte nothing is retried: `relay` carries the answer, or cuts it.
"""

import asyncio
from collections.abc import Awaitable
from functools import partial
from typing import Final, Protocol

from kvrouter.errors import KvrouterError, RoutingError

from .forwarding import render_request
from .messages import Companion, Reply, Route
from .relay import Client, Relay
from .replies import UpstreamError, error_reply
from .upstream import Upstream

__all__ = ["Exchange", "ReplyingClient"]

_JOINED_BYTES_MAX: Final = 16_384
"""Up to here copying a body costs less than sending it as a piece of its own."""
_IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
_NOT_TAKEN: Final = frozenset({"connect_failed", "saturated"})
"""How attempts end that a worker has not begun to work on, so that any request may go elsewhere."""


class ReplyingClient(Client, Protocol):
    """A client connection that also sends answers of our own."""

    def reply(self, reply: Reply) -> None:
        """Send a whole answer."""
        ...


class Exchange(Relay, eq=False):
    """One request between one client and the workers tried for it."""

    _client: ReplyingClient
    _attempts: int = 0
    _excluded: set[str] | tuple[()] = ()
    _failure: UpstreamError | None = None
    """Why the latest attempt failed."""
    _task: asyncio.Task[None] | None = None
    _pending: Awaitable[Route | Reply] | None = None
    """What tells the route, while there is none."""

    def start(self) -> None:
        """Ask for a route and follow it."""
        self._client.deadline = self._plane.now + self._plane.limits.first_byte_seconds
        try:
            decided = self._plane.dispatcher.route(self._request, self._excluded)
        except Exception as error:  # noqa: BLE001 - supervised edge: our errors are replies, others are counted
            self._not_routed(self._plane.failed("route", error))
            return
        if isinstance(decided, Route):
            self._attempt(decided)
        elif isinstance(decided, Reply):
            self._client.reply(decided)
        else:
            self._pending = decided
            self._task = self._plane.spawn(self._await_route(decided))

    def cancel(self) -> None:
        """The client is gone; nobody is told but the dispatcher."""
        self._drop()
        self._settled("client_gone", None)

    def stop(self, error: KvrouterError) -> None:
        """End what is under way for a reason of our own: no worker is to blame, but the client is told."""
        self._drop()
        if self._body is None:
            self._settled("client_gone", None)
            self._client.reply(error_reply(error))
        else:
            self._cut(error, "client_gone")

    def expired(self) -> None:
        """The deadline that `start` or the relay set has passed."""
        limits = self._plane.limits
        if self._upstream is not None:
            self._fail(UpstreamError("the worker has been silent for too long", outcome="timeout"))
            return
        self._drop()
        self._settled("timeout", None)
        late = UpstreamError(f"no worker was found within {limits.first_byte_seconds:g} s", outcome="timeout")
        self._client.reply(error_reply(late))

    def _unanswered(self, error: UpstreamError, *, silent: bool) -> None:
        """Try again where that is safe, else give the client the error."""
        upstream, route = self._upstream, self._route
        assert upstream is not None
        assert route is not None
        lost = silent and error.outcome == "upstream_lost" and self._repeatable(route)
        if lost and upstream.used and _blamed(route) == route.worker_id:
            self._plane.statistics.stale_retries += 1
            self._upstream = None
            self._task = self._plane.spawn(self._connect(route))
            return
        self._attempt_failed(route, error, repeat=lost or (silent and error.outcome in _NOT_TAKEN))

    def _attempt(self, route: Route) -> None:
        self._route = route
        self._attempts += 1
        self._plane.statistics.attempts += 1
        kept = self._plane.pool.take(route.endpoint) if route.is_inference or self._repeatable(route) else None
        if kept is None:
            self._task = self._plane.spawn(self._connect(route))
        else:
            self._send(route, kept)

    def _send(self, route: Route, upstream: Upstream) -> None:
        request, plane = self._request, self._plane
        assert self._silent  # nothing is tried again after a byte was answered
        self._upstream, upstream.consumer = upstream, self
        body = request.body if route.body is None else route.body
        is_short = len(body) <= _JOINED_BYTES_MAX
        rendered = render_request(
            self._head,
            route.endpoint,
            request_id=request.id,
            extra_headers=route.extra_headers,
            length=len(body) or request.length,  # Whoever routes may have changed it.
            body=body if is_short else b"",
        )
        if is_short:
            upstream.send(rendered)
        else:
            upstream.send(rendered, body)
        self._client.deadline = plane.now + plane.limits.first_byte_seconds
        if route.companion is not None:
            route.companion.on_failure(partial(self._companion_failed, route, route.companion))

    def _companion_failed(self, route: Route, companion: Companion) -> None:
        """What the worker needs for its answer will not come: try again elsewhere, or end the answer here."""
        if route is not self._route:
            return
        if self._body is None and companion.refusal is not None:
            self._drop()
            self._settled("client_gone", None)
            self._client.reply(companion.refusal)
        else:
            self._fail(UpstreamError(companion.failure or "", outcome="upstream_lost"))

    def _failed_together(self, route: Route, status: int) -> bool:
        assert route.companion is not None
        assert self._upstream is not None
        if self._attempts >= self._plane.limits.attempts_max:
            return False
        self._upstream.abort()
        self._silent, self._buffer = True, b""
        self._excluded = {*self._excluded, route.companion.worker_id}
        reason = f"worker {route.worker_id} answered with {status}, as worker {route.companion.worker_id} did its part"
        self._failure = UpstreamError(reason, outcome="upstream_lost")
        self._settled("error_status", None)
        self._plane.statistics.retries += 1
        self.start()
        return True

    def _repeatable(self, route: Route) -> bool:
        return route.is_inference or self._request.method in _IDEMPOTENT

    def _attempt_failed(self, route: Route, error: UpstreamError, *, repeat: bool) -> None:
        blamed = _blamed(route)
        who = f"worker {blamed}" if blamed else "the service behind this path"
        self._failure = error.about(who)
        self._excluded = {*self._excluded, blamed}
        self._settled(error.outcome, None)
        if repeat and self._attempts < self._plane.limits.attempts_max:
            self._plane.statistics.retries += 1
            self.start()
        else:
            self._client.reply(error_reply(self._failure))

    def _not_routed(self, error: KvrouterError) -> None:
        """Reply with what went wrong first: a worker that failed says more than that no other one is left."""
        if self._failure is not None and isinstance(error, RoutingError):
            error = self._failure
        self._client.reply(error_reply(error))

    async def _await_route(self, pending: Awaitable[Route | Reply]) -> None:
        try:
            decided = await pending
        except Exception as error:  # noqa: BLE001 - supervised edge, as in `start`
            self._task = self._pending = None
            self._not_routed(self._plane.failed("route", error))
            return
        except asyncio.CancelledError:
            self._withdraw()
            raise
        self._task = self._pending = None
        if isinstance(decided, Route):
            self._attempt(decided)
        else:
            self._client.reply(decided)

    def _withdraw(self) -> None:
        """Want no route any more, also where the task that waits for it has not begun.

        A future may have got its route in this very moment: that attempt ends here.
        """
        pending, self._pending = self._pending, None
        if not isinstance(pending, asyncio.Future) or pending.cancel() or pending.cancelled():
            return
        decided = None if pending.exception() is not None else pending.result()
        if isinstance(decided, Route):
            self._plane.finished(decided, "client_gone", None)

    async def _connect(self, route: Route) -> None:
        try:
            upstream = await self._plane.pool.connect(route.endpoint)
        except UpstreamError as error:
            self._task = None
            self._attempt_failed(route, error, repeat=True)
            return
        self._task = None
        self._send(route, upstream)

    def _drop(self) -> None:
        """Stop whatever is under way."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        self._withdraw()
        if self._upstream is not None:
            self._upstream.abort()


def _blamed(route: Route) -> str:
    """Whose fault it is that an attempt failed."""
    companion = route.companion
    return route.worker_id if companion is None or companion.failure is None else companion.worker_id
