"""Spans over every transport: one of the requester, one of the worker below it, and what fails is told."""

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from kvrouter.errors import HandlerError, RefusedError
from kvrouter.transport.context import Context
from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.messages import Request
from kvrouter.transport.tracing import PlaneTracing
from tests.servers import NatsServer
from tests.transport.conformance import eventually, run
from tests.transport.handlers import Handlers
from tests.transport.secured import WAYS, Ways


class Spans:
    """What was exported, in memory."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = provider.get_tracer("test")
        self.tracing = PlaneTracing(self.tracer)

    def of(self, kind: trace.SpanKind) -> list[ReadableSpan]:
        """Those of a kind that have ended."""
        return [span for span in self._exporter.get_finished_spans() if span.kind is kind]


@pytest.fixture
def spans() -> Spans:
    """A fresh exporter."""
    return Spans()


def traced_endpoints(spans: Spans) -> Endpoints:
    """The handlers of the suite, each with a span."""
    handlers, endpoints = Handlers(), Endpoints()
    for name in ("echo", "fail_before", "fail_after"):
        endpoints.register(name, spans.tracing.handler(name, getattr(handlers, name)))
    return endpoints


@pytest.mark.parametrize("way", WAYS)
def test_a_request_has_a_span_at_both_ends(way: str, nats: NatsServer, spans: Spans) -> None:
    """A-145: one trace, from the caller's span over the request to the worker's."""
    ways = Ways(nats=nats.url)

    async def scenario() -> None:
        server = ways.server(way, traced_endpoints(spans))
        await server.start()
        client = spans.tracing.client(ways.client(way), way)
        with spans.tracer.start_as_current_span("caller") as caller:
            request = Request(endpoint="echo", body=b"x")
            async with await client.request(server.address, request, Context("r", headers={"a": "b"})) as stream:
                assert await stream.collect() == [b"x"]
        await eventually(lambda: spans.of(trace.SpanKind.CLIENT) and spans.of(trace.SpanKind.SERVER))
        await client.aclose()
        await server.stop()
        (asked,), (worked,) = spans.of(trace.SpanKind.CLIENT), spans.of(trace.SpanKind.SERVER)
        assert asked.parent is not None
        assert worked.parent is not None
        assert asked.context is not None
        assert asked.parent.span_id == caller.get_span_context().span_id
        assert worked.parent.span_id == asked.context.span_id
        assert worked.parent.trace_id == caller.get_span_context().trace_id
        assert (asked.attributes or {})["kvrouter.request_id"] == "r"

    run(scenario())


def test_the_headers_of_a_request_are_taken_up(spans: Spans) -> None:
    """A-145: where no span is current, the trace of who has asked goes on; its context is left as it was."""
    ways = Ways()
    headers = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01", "tracestate": "a=b"}

    async def scenario() -> None:
        server = ways.server("tcp", traced_endpoints(spans))
        await server.start()
        client = spans.tracing.client(ways.client("tcp"), "tcp")
        context = Context(headers=headers)
        async with await client.request(server.address, Request(endpoint="echo"), context) as stream:
            await stream.collect()
        assert context.headers == headers
        assert not context._children
        await client.aclose()
        await server.stop()

    run(scenario())
    (asked,) = spans.of(trace.SpanKind.CLIENT)
    assert asked.parent is not None
    assert asked.context is not None
    assert f"{asked.parent.span_id:016x}" == "cd" * 8
    assert f"{asked.context.trace_id:032x}" == "ab" * 16


def test_what_fails_is_an_error_of_its_span(spans: Spans) -> None:
    """A-145: refused, failed before an item and after; with the code, and without what an error may repeat."""
    ways = Ways()

    async def scenario() -> None:
        server = ways.server("tcp", traced_endpoints(spans))
        await server.start()
        client = spans.tracing.client(ways.client("tcp"), "tcp")
        for endpoint, error in (
            ("nonsense", RefusedError),
            ("fail_before", HandlerError),
            ("fail_after", HandlerError),
        ):
            with pytest.raises(error):
                async with await client.request(server.address, Request(endpoint=endpoint), Context()) as stream:
                    await stream.collect()
        await client.aclose()
        await server.stop()

    run(scenario())
    codes = [(span.name, (span.attributes or {})["error.type"]) for span in spans.of(trace.SpanKind.CLIENT)]
    assert codes == [("nonsense", "NOT_FOUND"), ("fail_before", "INTERNAL"), ("fail_after", "RESOURCE_EXHAUSTED")]
    worked = spans.of(trace.SpanKind.SERVER)
    assert [span.status.status_code for span in worked] == [trace.StatusCode.ERROR] * 2
    assert not any("a secret" in span.to_json() for span in worked)


def test_a_stop_reaches_the_worker_through_a_traced_client(spans: Spans) -> None:
    """A-145, A-307: the context of the caller still is that of the request."""
    ways, handlers, endpoints = Ways(), Handlers(), Endpoints()
    endpoints.register("until_stopped", spans.tracing.handler("until_stopped", handlers.until_stopped))

    async def scenario() -> None:
        server = ways.server("tcp", endpoints)
        await server.start()
        client = spans.tracing.client(ways.client("tcp"), "tcp")
        context = Context("s")
        async with await client.request(server.address, Request(endpoint="until_stopped"), context) as stream:
            assert await anext(stream) == b"first"
            context.stop()
            assert await stream.collect() == [b"last"]
        assert handlers.stopped == ["s"]
        await client.aclose()
        await server.stop()

    run(scenario())
