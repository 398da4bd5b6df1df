"""The newest load of each rank, for whoever wants to look: Prometheus' gauges, a handler, a page to ask repeatedly.

None of it depends on the request plane. Sending it to NATS as well is `kv_metrics_publication.py`'s.
"""

import asyncio
import contextlib
import json
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final, TypeAlias
from urllib.parse import parse_qs

from prometheus_client import CollectorRegistry, Gauge

from kvrouter.events.load import LoadReport, load_record
from kvrouter.transport.context import Context
from kvrouter.transport.messages import Request

__all__ = ["LOAD_METRICS", "PATH", "KvMetrics", "KvMetricsApp"]

LOAD_METRICS: Final = "load_metrics"
"""The endpoint's name on the request plane."""
PATH: Final = "/v1/kv_metrics"
_WAIT_SECONDS_MAX: Final = 60.0
_SECONDS: Final = re.compile(r"[0-9]{1,4}(\.[0-9]{1,6})?")
_GAUGES: Final = (
    ("kvstats_active_blocks", "kv_active_blocks", "KV blocks in use."),
    ("kvstats_total_blocks", "kv_total_blocks", "KV blocks that there are."),
    ("kvstats_gpu_cache_usage_percent", "gpu_cache_usage_perc", "The share of KV blocks in use, from 0 to 1."),
    (
        "kvstats_gpu_prefix_cache_hit_rate",
        "gpu_prefix_cache_hit_rate",
        "The share of looked-up tokens that were cached, from 0 to 1.",
    ),
)

Scope: TypeAlias = Mapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Mapping[str, Any]]]
Send: TypeAlias = Callable[[dict[str, Any]], Awaitable[None]]
Application: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]


class KvMetrics:
    """The newest report of each rank of one worker. Lives on one event loop; `publish` waits for nothing."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self._reports: dict[int, LoadReport] = {}
        self._life, self._revision = secrets.token_hex(4), 0
        self._changed = asyncio.Event()
        self._listeners: list[Callable[[LoadReport], None]] = []
        self._gauges = () if registry is None else tuple(_gauge(registry, *each) for each in _GAUGES)

    @property
    def tag(self) -> str:
        """Names the state that is shown now; another one after each change."""
        return f"{self._life}-{self._revision}"

    def publish(self, report: LoadReport) -> None:
        """This is the load of a rank now."""
        self._reports[report.rank] = report
        self._revision += 1
        for figure, gauge in self._gauges:
            value = getattr(report, figure)
            if value is not None:
                gauge.labels(str(report.rank)).set(value)
        for listener in self._listeners:
            listener(report)
        self._changed.set()
        self._changed = asyncio.Event()

    def listen(self, listener: Callable[[LoadReport], None]) -> Callable[[], None]:
        """Call `listener` with what is known and each report to come; returns what ends that."""
        self._listeners.append(listener)
        for report in self._reports.values():
            listener(report)
        return lambda: self._listeners.remove(listener)

    def records(self) -> list[dict[str, object]]:
        """The newest report of each rank, as it travels."""
        return [load_record(report) for _, report in sorted(self._reports.items())]

    def as_json(self) -> bytes:
        """All of them, as the page and the endpoint have it."""
        return json.dumps({"reports": self.records()}, separators=(",", ":")).encode()

    async def changed(self, tag: str, *, seconds: float) -> bool:
        """Wait until the state is another than `tag`; False where it is not within so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.tag == tag:
                    await self._changed.wait()
        return self.tag != tag

    async def load_metrics(self, request: Request, context: Context) -> AsyncIterator[bytes]:
        """The endpoint's handler: one item, whatever is asked."""
        del request, context
        yield self.as_json()


class KvMetricsApp:
    """Puts `GET /v1/kv_metrics` before another ASGI application.

    The answer has an ETag. Who brings it along (`If-None-Match`) is told 304 where nothing has changed, and with
    `?wait=SECONDS` not before something has, or the time is over.
    """

    def __init__(self, app: Application, metrics: KvMetrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass the request on."""
        if scope["type"] != "http" or scope["path"] != PATH:
            await self._app(scope, receive, send)
            return
        if scope["method"] not in ("GET", "HEAD"):
            await _answer(send, 405, b"", ("allow", "GET, HEAD"))
            return
        metrics, known = self._metrics, _known(scope)
        if known is not None:
            await metrics.changed(known, seconds=_wait_seconds(scope))
        tag = ("etag", f'"{metrics.tag}"')
        if known == metrics.tag:
            await _answer(send, 304, b"", tag)
            return
        body = b"" if scope["method"] == "HEAD" else metrics.as_json()
        await _answer(send, 200, body, tag, ("content-type", "application/json"), ("cache-control", "no-cache"))


def _gauge(registry: CollectorRegistry, name: str, figure: str, text: str) -> tuple[str, Gauge]:
    return figure, Gauge(name, text, ("rank",), registry=registry)


def _known(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"if-none-match":
            return bytes(value).decode("latin-1").removeprefix("W/").strip('"')
    return None


def _wait_seconds(scope: Scope) -> float:
    """How long the client would wait; what is no number is no time."""
    words = parse_qs(bytes(scope.get("query_string", b"")).decode("latin-1")).get("wait", ["0"])
    return min(float(words[0]), _WAIT_SECONDS_MAX) if _SECONDS.fullmatch(words[0]) else 0.0


async def _answer(send: Send, status: int, body: bytes, *headers: tuple[str, str]) -> None:
    lines = [(name.encode(), value.encode()) for name, value in headers]
    if status != 304:
        lines.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": body})
