"""Figures of HTTP requests for any ASGI application, under the names that dashboards of Dynamo know; by decoration.

Labels are bounded: methods and statuses by HTTP, routes by whoever composes the process.
"""

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from time import perf_counter
from typing import Any, TypeAlias

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

__all__ = ["HttpMetrics", "InstrumentedApp", "Message"]

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_OTHER = "other"
_CLIENT_GONE = 499
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 180.0, 600.0)


class HttpMetrics:
    """The families; one for all applications of a process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter("http_requests", "Requests answered.", ("method", "route", "code"), registry=registry)
        self.duration = Histogram(
            "http_request_duration_seconds", "From the request's head to the answer's end.", ("route",),
            buckets=_BUCKETS, registry=registry,
        )  # fmt: skip
        self.inflight = Gauge("http_inflight_requests", "Requests being answered.", registry=registry)
        self.request_bytes = Counter("http_request_bytes", "Bytes of requests' bodies.", ("route",), registry=registry)
        self.response_bytes = Counter("http_response_bytes", "Bytes of answers' bodies.", ("route",), registry=registry)


class InstrumentedApp:
    """An ASGI application that counts what another one does.

    `routes` are beginnings of paths, such as `/v1/rpc`, each of them a label; what begins with none is `other`.
    """

    def __init__(self, app: Application, metrics: HttpMetrics, *, routes: Sequence[str]) -> None:
        self._app, self._metrics = app, metrics
        self._routes = sorted(routes, key=len, reverse=True)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request, or what else the server says."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        metrics, route, began = self._metrics, self._route(scope["path"]), perf_counter()
        bytes_in, bytes_out = metrics.request_bytes.labels(route), metrics.response_bytes.labels(route)
        code: int | None = None

        async def hear() -> Message:
            message = await receive()
            bytes_in.inc(len(message.get("body", b"")))
            return message

        async def say(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
            bytes_out.inc(len(message.get("body", b"")))
            await send(message)

        method = scope["method"] if scope["method"] in _METHODS else _OTHER
        try:
            with metrics.inflight.track_inprogress():
                await self._app(scope, hear, say)
        except Exception:
            code = code or 500
            raise
        finally:
            metrics.requests.labels(method, route, str(code or _CLIENT_GONE)).inc()
            metrics.duration.labels(route).observe(perf_counter() - began)

    def _route(self, path: str) -> str:
        for route in self._routes:
            if path == route or path.startswith(f"{route}/"):
                return route
        return _OTHER
