"""One route as an ASGI application: reads a request, has it answered, sends the answer, counts it.

Everything between a socket and whoever answers that is the same for every route.
"""

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from starlette.types import Receive, Scope, Send

from kvrouter.errors import GatewayError, TransportError, UnreachableError
from kvrouter.gateway.answers import Answer, RawHeaders, error_answer, unpack_answer
from kvrouter.gateway.bodies import BodyReader, ClientGoneError
from kvrouter.gateway.calls import Call, pack_call, read_call, unpack_call
from kvrouter.gateway.counters import GatewayCounters
from kvrouter.gateway.cutover import Cutover
from kvrouter.gateway.error_table import gateway_error
from kvrouter.gateway.event_stream import SSE_HEADERS, Ending, EventStream, relay
from kvrouter.gateway.idempotency import AnswerStore, RequestKey, body_digest
from kvrouter.gateway.legacy import LegacyService
from kvrouter.gateway.metadata import read_headers
from kvrouter.gateway.nats_service import NatsService
from kvrouter.gateway.quiet_log import QuietLog
from kvrouter.gateway.route_table import Route
from kvrouter.gateway.shadow import Shadow
from kvrouter.gateway.siblings import Siblings
from kvrouter.gateway.sides import Side

__all__ = ["Endpoint", "EndpointParts", "StreamSlots", "send_answer"]

STREAM_RETRY_SECONDS = 10
_SIDE = b"x-gateway-side"
_AGAIN_SECONDS = 0.5
_HANDING_OVER_SECONDS = 5.0


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


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointParts:
    """What all routes share."""

    bodies: BodyReader
    answers: AnswerStore
    slots: StreamSlots
    cutover: Cutover
    shadow: Shadow
    siblings: Siblings
    counters: GatewayCounters
    log: QuietLog
    keep_alive_seconds: float
    slow_client_seconds: float


class Endpoint:
    """Serves one route."""

    def __init__(self, route: Route, nats: NatsService, legacy: LegacyService | None, parts: EndpointParts) -> None:
        self.route = route
        self._nats, self._legacy = nats, legacy
        self._parts = parts

    async def serve(self, variables: Mapping[str, str], scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        began = perf_counter()
        request_id = str(uuid.uuid4())
        traced: RawHeaders = ((b"x-request-id", request_id.encode()),)
        try:
            call = await self._read(variables, request_id, scope, receive)
            traced += ((b"x-trace-id", call.trace_id.encode("latin-1", "replace")),)
            if call.wants_stream:
                answer = await self._stream(call, traced, _Client(scope, receive, send), began)
                if answer is None:
                    return
            else:
                answer = await self._answer(call)
        except GatewayError as error:
            answer = error_answer(error)
            if error.status == 405:
                allowed = (b"allow", ", ".join(self.route.methods).encode())
                answer = answer._replace(headers=(*answer.headers, allowed))
        except ClientGoneError:
            self._parts.counters.count("disconnects", self.route.name)
            return
        except Exception as bug:  # noqa: BLE001 - supervised edge: one request's bug must not be another one's
            self._parts.log.tell_bug("gateway_bug", self.route.name, bug, request_id=request_id)
            failed = GatewayError("the gateway failed to handle this request", status=500, code="INTERNAL")
            answer = error_answer(failed)
        self._count(answer.status, began)
        await send_answer(answer, traced, send)

    async def _read(self, variables: Mapping[str, str], request_id: str, scope: Scope, receive: Receive) -> Call:
        method: str = scope["method"]
        if method not in self.route.methods:
            allowed = " and ".join(self.route.methods)
            raise GatewayError(f"{self.route.path} takes {allowed}", status=405, code="METHOD_NOT_ALLOWED")
        caller = read_headers(scope["headers"])
        body = b"" if method == "GET" else await self._parts.bodies.read(scope["headers"], receive)
        return read_call(self.route, variables, scope, caller=caller, request_id=request_id, body=body)

    # -- whole answers -----------------------------------------------------------------------------------------------

    async def _answer(self, call: Call) -> Answer:
        if not call.key:
            return await self._ask(call)
        key = RequestKey(call.caller.tenant_id, call.caller.user_id, self.route.name, call.key)
        owner = self._parts.siblings.owner_of("\0".join(key))
        if owner is None:
            return await self._answer_once(key, call)
        try:
            return await self._answered_by(owner, call)
        except UnreachableError:  # It is being started again, and remembers nothing.
            return await self._answer_once(key, call)
        except TransportError as error:
            raise gateway_error(error) from None

    async def _answered_by(self, owner: int, call: Call) -> Answer:
        """Have a call answered by the process that looks after its key."""
        question = [self.route.name, pack_call(call)]
        seconds = self._nats.timeout_seconds + _HANDING_OVER_SECONDS
        return unpack_answer(await self._parts.siblings.ask(owner, "answer", question, seconds=seconds))

    async def _answer_once(self, key: RequestKey, call: Call) -> Answer:
        async def work() -> Answer:
            try:
                return await self._ask(call)
            except GatewayError as error:
                return error_answer(error)

        return await self._parts.answers.answer(key, body_digest(call.path, call.body), work)

    async def answer_sibling(self, packed: Any) -> Any:
        """Answer a call whose key is ours, for a process beside us that was asked."""
        call = unpack_call(self.route, packed)
        key = RequestKey(call.caller.tenant_id, call.caller.user_id, self.route.name, call.key)
        try:
            return await self._answer_once(key, call)
        except GatewayError as error:
            return error_answer(error)

    async def _ask(self, call: Call) -> Answer:
        """Have a call answered by its side, and send a copy to the other one where that is wanted."""
        if self._legacy is None:
            return await self._nats.answer(call)
        side: Side
        other: Side
        side, other = (
            (self._nats, self._legacy) if self._parts.cutover.goes_to_nats(call) else (self._legacy, self._nats)
        )
        shadowed = self._parts.cutover.is_shadowed(call)
        try:
            answer = await side.answer(call)
        except GatewayError as error:
            answer = error_answer(error)
        if shadowed and answer.status < 500:
            self._parts.shadow.submit(call, other, primary=side.name, given=answer)
        return answer._replace(headers=(*answer.headers, (_SIDE, side.name.encode())))

    # -- streams -----------------------------------------------------------------------------------------------------

    async def _stream(self, call: Call, traced: RawHeaders, client: "_Client", began: float) -> Answer | None:
        """Send a stream, unless the client goes first; returns an answer where there is none, but a whole one."""
        with self._parts.slots:
            outcome = await client.until_gone(self._send_stream(call, traced, client.send))
        if isinstance(outcome, Answer):
            return outcome
        self._parts.counters.count("streams_ended", outcome)
        if outcome != "disconnected":
            self._count(200, began)
        if outcome == "slow_client":
            await client.cut()
        return None

    def _send_stream(self, call: Call, traced: RawHeaders, send: Send) -> Awaitable[Ending | Answer]:
        if self._legacy is None:
            return self._send_chunks(call, traced, send)
        if self._parts.cutover.goes_to_nats(call):
            return self._send_chunks(call, (*traced, (_SIDE, b"nats")), send)
        return self._relay(self._legacy, call, (*traced, (_SIDE, b"legacy")), send)

    async def _send_chunks(self, call: Call, headers: RawHeaders, send: Send) -> Ending:
        reader = self._nats.translation.chunk
        assert reader is not None, "only routes with a stream type are asked for one"
        stream = await self._nats.open_stream(call)
        try:
            events = EventStream(
                stream,
                reader,
                idle_seconds=self._nats.timeout_seconds,
                keep_alive_seconds=self._parts.keep_alive_seconds,
                slow_client_seconds=self._parts.slow_client_seconds,
            )
            first = await events.first()
            ending = await events.send(first, send, (*SSE_HEADERS, *headers))
            self._broke_off(events.error)
            return ending
        finally:
            await stream.aclose()

    async def _relay(self, legacy: LegacyService, call: Call, headers: RawHeaders, send: Send) -> Ending | Answer:
        async with legacy.stream(call) as stream:
            if not stream.is_events:
                return await stream.whole()
            ending, error = await relay(
                stream.pieces(),
                send,
                (*SSE_HEADERS, *headers),
                slow_client_seconds=self._parts.slow_client_seconds,
            )
            self._broke_off(error)
            return ending

    def _broke_off(self, error: GatewayError | None) -> None:
        """A stream ended with an error after its head had been sent."""
        if error is not None:
            self._parts.counters.count("errors", self.route.name, str(error.status))
            self._parts.log.tell(logging.WARNING, "stream_broke_off", self.route.name, code=error.code)

    def _count(self, status: int, began: float) -> None:
        self._parts.counters.observe(self.route.name, status, perf_counter() - began)
        if status >= 400:
            self._parts.counters.count("errors", self.route.name, str(status))
        if status >= 500:
            self._parts.log.tell(logging.WARNING, "request_failed", self.route.name, status=status)


class _Client:
    """The other end of one request."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope, self._receive, self.send = scope, receive, send

    async def until_gone(self, sending: Awaitable[Ending | Answer]) -> Ending | Answer:
        """Do what is to be done for the client, and stop it when the client is gone."""
        task, leaving = asyncio.ensure_future(sending), asyncio.ensure_future(self._gone())
        try:
            await asyncio.wait((task, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            while not task.done():
                task.cancel()  # More than once: the client library of NATS may swallow the first one.
                await asyncio.wait((task,), timeout=_AGAIN_SECONDS)
        return "disconnected" if task.cancelled() else task.result()

    async def cut(self) -> None:
        """Cut the connection, where the server lets us: closing would wait for a client that reads nothing."""
        abort = self._scope.get("kvrouter.abort")
        if abort is not None:
            abort()
            await asyncio.sleep(0)  # The server hears of it before it looks at an answer without an end.

    async def _gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass


async def send_answer(answer: Answer, traced: RawHeaders, send: Send) -> None:
    """Send an answer, with headers of this request."""
    headers = [*answer.headers, *traced, (b"content-length", str(len(answer.body)).encode())]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
