"""One route as an ASGI application: reads a request, has it answered, sends the answer, counts it.

Everything between a socket and a service that is the same for every route. Who answers is `backends.py`'s to choose.
"""

import asyncio
import logging
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from starlette.types import Receive, Scope, Send

from kvrouter.errors import GatewayError
from kvrouter.gateway.answers import Answer, RawHeaders, error_answer
from kvrouter.gateway.calls import Call, read_call
from kvrouter.gateway.counters import GatewayCounters
from kvrouter.gateway.event_stream import SSE_HEADERS, Ending, EventStream
from kvrouter.gateway.idempotency import AnswerStore, RequestKey, body_digest
from kvrouter.gateway.metadata import read_headers
from kvrouter.gateway.nats_service import NatsService
from kvrouter.gateway.route_table import Route
from kvrouter.service.logs import log_event

__all__ = ["Endpoint", "EndpointLimits", "StreamSlots", "send_answer"]

STREAM_RETRY_SECONDS = 10
_HEADER_BYTES_MAX = 64 * 1024

_log = logging.getLogger("kvrouter.gateway")


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointLimits:
    """Bounds on one request."""

    body_bytes_max: int = 10 << 20
    body_seconds: float = 60.0
    keep_alive_seconds: float = 10.0
    slow_client_seconds: float = 5.0


class ClientGoneError(Exception):
    """The client closed its connection within a request's body: nobody is there to answer."""


class StreamSlots:
    """How many streams are open, of all routes; taken until a stream has ended."""

    def __init__(self, streams_max: int, counters: GatewayCounters) -> None:
        self._streams_max, self._counters = streams_max, counters

    def __enter__(self) -> None:
        if self._counters.streams_active >= self._streams_max:
            raise GatewayError(
                f"{self._streams_max} streams are open already",
                status=429,
                code="RESOURCE_EXHAUSTED",
                retry_after_seconds=STREAM_RETRY_SECONDS,
            )
        self._counters.streams_active += 1

    def __exit__(self, *_: object) -> None:
        self._counters.streams_active -= 1


class Endpoint:
    """Serves one route."""

    def __init__(
        self,
        route: Route,
        service: NatsService,
        *,
        answers: AnswerStore,
        slots: StreamSlots,
        counters: GatewayCounters,
        limits: EndpointLimits,
    ) -> None:
        self.route = route
        self._service, self._answers, self._slots = service, answers, slots
        self._counters, self._limits = counters, limits

    async def serve(self, variables: Mapping[str, str], scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        began = perf_counter()
        request_id = str(uuid.uuid4())
        traced: RawHeaders = ((b"x-request-id", request_id.encode()),)
        try:
            call = await self._read(variables, request_id, scope, receive)
            traced += ((b"x-trace-id", call.trace_id.encode("latin-1", "replace")),)
            if call.wants_stream:
                ending = await self._stream(call, traced, receive, send)
                if ending != "disconnected":
                    self._count(200, began)
                if ending == "slow_client":
                    await _cut(scope)
                return
            answer = await self._answer(call)
        except GatewayError as error:
            answer = error_answer(error)
        except ClientGoneError:
            self._counters.count("disconnects", self.route.name)
            return
        except Exception:  # noqa: BLE001 - supervised edge: one request's bug must not be another one's
            _log.exception("gateway_error", extra={"fields": {"route": self.route.name, "request_id": request_id}})
            bug = GatewayError("the gateway failed to handle this request", status=500, code="INTERNAL")
            answer = error_answer(bug)
        self._count(answer.status, began)
        await send_answer(answer, traced, send)

    # -- one request -------------------------------------------------------------------------------------------------

    async def _read(self, variables: Mapping[str, str], request_id: str, scope: Scope, receive: Receive) -> Call:
        method: str = scope["method"]
        headers = scope["headers"]
        if method not in self.route.methods:
            raise GatewayError(
                f"{self.route.path} takes {' and '.join(self.route.methods)}", status=405, code="METHOD_NOT_ALLOWED"
            )
        caller = read_headers(headers)
        body = b"" if method == "GET" else await self._body(headers, receive)
        return read_call(
            self.route,
            variables,
            method=method,
            path=scope["path"],
            query=scope.get("query_string", b""),
            caller=caller,
            request_id=request_id,
            body=body,
        )

    async def _body(self, headers: list[tuple[bytes, bytes]], receive: Receive) -> bytes:
        for name, value in headers:
            if name == b"content-length" and value.isdigit() and int(value) > self._limits.body_bytes_max:
                raise self._too_large()
        message = await receive()
        if message["type"] == "http.request" and not message.get("more_body"):
            body: bytes = message.get("body", b"")
            if len(body) > self._limits.body_bytes_max:
                raise self._too_large()
            return body
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                return await self._rest_of_body(message, receive)
        except TimeoutError:
            raise GatewayError(
                f"the body did not come within {self._limits.body_seconds:g} s", status=408, code="DEADLINE_EXCEEDED"
            ) from None

    async def _rest_of_body(self, message: Mapping[str, Any], receive: Receive) -> bytes:
        pieces = bytearray()
        while True:
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            pieces += message.get("body", b"")
            if len(pieces) > self._limits.body_bytes_max:
                raise self._too_large()
            if not message.get("more_body"):
                return bytes(pieces)
            message = await receive()

    def _too_large(self) -> GatewayError:
        return GatewayError(
            f"the body exceeds {self._limits.body_bytes_max} bytes", status=413, code="PAYLOAD_TOO_LARGE"
        )

    async def _answer(self, call: Call) -> Answer:
        if not call.key:
            return await self._service.answer(call)

        async def work() -> Answer:
            try:
                return await self._service.answer(call)
            except GatewayError as error:
                return error_answer(error)

        caller = call.caller
        key = RequestKey(caller.tenant_id, caller.user_id, self.route.name, call.key)
        return await self._answers.answer(key, body_digest(call.path, call.body), work)

    # -- streams -----------------------------------------------------------------------------------------------------

    async def _stream(self, call: Call, traced: RawHeaders, receive: Receive, send: Send) -> Ending:
        """Send a stream, unless the client goes first."""
        with self._slots:
            sending = asyncio.ensure_future(self._send_stream(call, traced, send))
            leaving = asyncio.ensure_future(_disconnected(receive))
            try:
                await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (sending, leaving):
                    task.cancel()
                await asyncio.wait((sending, leaving))
        ending: Ending = "disconnected" if sending.cancelled() else sending.result()
        self._counters.count("streams_ended", ending)
        return ending

    async def _send_stream(self, call: Call, traced: RawHeaders, send: Send) -> Ending:
        service, reader = self._service, self._service.translation.chunk
        assert reader is not None, "only routes with a stream type are asked for one"
        stream = await service.open_stream(call)
        try:
            events = EventStream(
                stream,
                reader,
                idle_seconds=service.timeout_seconds,
                keep_alive_seconds=self._limits.keep_alive_seconds,
                slow_client_seconds=self._limits.slow_client_seconds,
            )
            first = await events.first()
            ending = await events.send(first, send, (*SSE_HEADERS, *traced))
            if events.error is not None:
                self._counters.count("errors", self.route.name, str(events.error.status))
            return ending
        finally:
            await stream.aclose()

    def _count(self, status: int, began: float) -> None:
        self._counters.observe(self.route.name, status, perf_counter() - began)
        if status >= 400:
            self._counters.count("errors", self.route.name, str(status))
        if status >= 500:
            log_event(_log, logging.WARNING, "request_failed", route=self.route.name, status=status)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cut(scope: Scope) -> None:
    """Cut the connection, where the server lets us: closing it would wait for a client that reads nothing."""
    abort = scope.get("kvrouter.abort")
    if abort is not None:
        abort()
        await asyncio.sleep(0)  # The server hears of it before it looks at an answer without an end.


async def send_answer(answer: Answer, traced: RawHeaders, send: Send) -> None:
    """Send an answer, with headers of this request."""
    headers = [*answer.headers, *traced, (b"content-length", str(len(answer.body)).encode())]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
