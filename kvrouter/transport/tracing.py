"""Spans of requests between workers, by OpenTelemetry; W3C's `traceparent` carries them over every transport.

By decoration, as the metrics: whoever composes a process wraps its clients and handlers with what is here, and those
know nothing of it. Without this module the headers of a request travel all the same. Spans have no bodies, no tokens
and no texts of errors.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractContextManager
from inspect import isawaitable
from typing import Any

from kvrouter.errors import MissingExtraError, TransportError
from kvrouter.transport.client_stream import ClientStream
from kvrouter.transport.context import Context
from kvrouter.transport.messages import Request
from kvrouter.transport.planes import RequestClient
from kvrouter.transport.server_stream import Handler

try:
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as missing:
    raise MissingExtraError("spans of OpenTelemetry", "otel") from missing

__all__ = ["PlaneTracing", "TracedClient"]

_W3C = TraceContextTextMapPropagator()


class PlaneTracing:
    """Makes spans with a tracer of the application's, by default the one that it has set for this process."""

    def __init__(self, tracer: trace.Tracer | None = None) -> None:
        self._tracer = tracer if tracer is not None else trace.get_tracer("kvrouter.transport")

    def client(self, client: RequestClient, transport: str) -> "TracedClient":
        """Wrap a client: a span of kind CLIENT from each request to the end of its answer."""
        return TracedClient(client, self._tracer, transport)

    def handlers(self, handlers: Mapping[str, Handler]) -> dict[str, Handler]:
        """Wrap every handler, by the name of its endpoint."""
        return {name: self.handler(name, handler) for name, handler in handlers.items()}

    def handler(self, endpoint: str, handler: Handler) -> Handler:
        """Wrap a handler: a span of kind SERVER while it works, below the requester's; its own are below that one."""

        async def traced(request: Request, context: Context) -> AsyncIterator[bytes]:
            above = _W3C.extract(dict(context.headers))
            attributes = {"rpc.system": "kvrouter", "rpc.method": endpoint, "kvrouter.request_id": context.id}
            span = self._tracer.start_span(endpoint, above, trace.SpanKind.SERVER, attributes)
            items: AsyncIterator[bytes] | None = None
            try:
                # Entered for each step: between two items others run in the same task's context.
                with _within(span):
                    answer = handler(request, context)
                    items = await answer if isawaitable(answer) else answer
                while True:
                    with _within(span):
                        item = await anext(items, None)
                    if item is None:
                        break
                    yield item
            except Exception as error:
                span.set_attribute("error.type", type(error).__name__)
                span.set_status(trace.StatusCode.ERROR)
                raise
            finally:
                close = getattr(items, "aclose", None)
                if close is not None:
                    await close()
                span.end()

        return traced


class TracedClient:
    """A `RequestClient` whose requests have spans."""

    def __init__(self, client: RequestClient, tracer: trace.Tracer, transport: str) -> None:
        self._client, self._tracer, self._transport = client, tracer, transport

    async def request(self, address: str, request: Request, context: Context) -> ClientStream:
        """Send a request below the span that is current, or that the context's headers name; see `RequestClient`."""
        current = trace.get_current_span()
        above = None if current.get_span_context().is_valid else _W3C.extract(dict(context.headers))
        attributes: dict[str, Any] = {
            "rpc.system": "kvrouter",
            "rpc.method": request.endpoint,
            "network.transport": self._transport,
            "server.address": address,
            "kvrouter.request_id": context.id,
        }
        span = self._tracer.start_span(request.endpoint, above, trace.SpanKind.CLIENT, attributes)
        carried = context.child(context.id)
        headers = dict(context.headers)
        _W3C.inject(headers, trace.set_span_in_context(span, above))
        carried.headers = headers
        try:
            stream = await self._client.request(address, request, carried)
        except BaseException as error:
            _end(span, carried, error)
            raise
        stream.when_closed(lambda: _end(span, carried, stream.error))
        return stream

    async def aclose(self) -> None:
        """Close all connections. Idempotent."""
        await self._client.aclose()


def _within(span: trace.Span) -> AbstractContextManager[trace.Span]:
    """Make a span the current one; what an exception says stays out of it."""
    return trace.use_span(span, record_exception=False, set_status_on_exception=False)


def _end(span: trace.Span, context: Context, error: BaseException | None) -> None:
    """A request is over: as it should, or with an error, of which the code is told and no text."""
    context.close()
    if error is not None:
        code = error.code if isinstance(error, TransportError) else type(error).__name__
        span.set_attribute("error.type", code)
        span.set_status(trace.StatusCode.ERROR)
    span.end()
