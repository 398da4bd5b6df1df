"""The request plane of a worker as an ASGI application: requests, their answers, and control over them.

    POST {root}/{endpoint}              a request; 202, or 200 and the answer where that is asked for inline
    GET  {response_root}/{subject}      the answer to one that got 202; `Last-Event-ID` where somebody comes back
    POST {response_root}/{subject}/stop   ask its handler to end by itself
    DELETE {response_root}/{subject}    kill it
    GET  {root}/health                  200, or 503 while the worker drains

It runs under any ASGI server, over HTTP/2 and HTTP/1.1 alike; `http_server.py` brings one. Requests are refused before
anything is done: 400, 401, 404, 405, 409, 413, 415, and 429 or 503 with `Retry-After`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, MutableMapping
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any, Protocol, TypeAlias
from uuid import uuid4

import msgspec

from kvrouter.errors import DeadlineError, RefusedError, TransportError, WireError
from kvrouter.transport.access import Peer
from kvrouter.transport.duplex import StreamLimits
from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.http_answers import HttpAnswer, HttpAnswers
from kvrouter.transport.http_bodies import Assembling, ClientGoneError, Receive, RequestBody, Way, endpoint_of, way_of
from kvrouter.transport.http_errors import HttpRefusedError, error_body, status_of
from kvrouter.transport.http_formats import CONTENT_TYPES, Format, accepted_format, answer_writer
from kvrouter.transport.messages import DecodedRequest, encode_error
from kvrouter.transport.two_part import MESSAGE_BYTES_MAX

__all__ = ["Accept", "Application", "HttpApp", "HttpAppOptions", "HttpCounters"]

Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application: TypeAlias = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
"""What an ASGI server calls."""


class Accept(Protocol):
    """Takes requests whose answers go another way: `CallHomeWorker.accept`."""

    def __call__(self, message: bytes, /, *, peer: Peer) -> None:
        """Take one; raises RefusedError."""
        ...


_Headers: TypeAlias = dict[bytes, bytes]
_UntilGone: TypeAlias = Callable[[], Awaitable[None]]

ROOT_ALIAS = "/v1/dynamo"
UNTIL_GONE = "kvrouter.until_gone"
"""An extension of ASGI: waits until the client has gone, also while its further items are not read. Servers that do not
have it tell of that when they are."""
_UNBOUNDED = 1 << 60
_LIMITS = StreamLimits(peer_window_bytes=_UNBOUNDED, frame_bytes_max=_UNBOUNDED, enforced=False)
_SENT_BYTES = 64 << 10
_TRACE_HEADERS = (b"traceparent", b"tracestate", b"x-request-id")
_REQUEST_IDS = (b"request-id", b"x-dynamo-request-id")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpAppOptions:
    """How the application behaves; paths have no slash at their end."""

    root: str = "/v1/rpc"
    response_root: str = "/v1/rpc/response"
    response_origin: str = ""
    """Scheme, host and port of the response plane, where it is not that of the request plane."""
    answer_format: Format = "sse"
    """Where `Accept` names none."""
    stream_seconds: float = 3600.0
    beat_seconds: float = 15.0
    attach_seconds: float = 10.0
    resume_seconds: float = 0.0
    body_seconds: float = 60.0
    """How long a request may take to arrive."""
    message_bytes_max: int = MESSAGE_BYTES_MAX
    assembling_bytes_max: int = 4 * MESSAGE_BYTES_MAX
    """Bound of all requests that have not arrived wholly."""


@dataclass(slots=True)
class HttpCounters:
    """What happened since the start."""

    requests: int = 0
    refused: int = 0
    lost_clients: int = 0
    expired_streams: int = 0


@dataclass(slots=True)
class _Consumer:
    """Whoever an answer is sent to, and how."""

    send: Send
    kind: Format
    tells_prologue: bool
    position: int = 0
    """The first item that is sent."""
    extra: tuple[tuple[bytes, bytes], ...] = ()
    """Further headers."""
    is_gone: bool = False


class HttpApp:
    """See the module. `accept` takes requests whose answers go another way."""

    def __init__(
        self,
        endpoints: Endpoints,
        options: HttpAppOptions | None = None,
        *,
        accept: Accept | None = None,
    ) -> None:
        self.endpoints = endpoints
        self.options = options if options is not None else HttpAppOptions()
        self.counters = HttpCounters()
        self.answers = HttpAnswers(
            attach_seconds=self.options.attach_seconds, resume_seconds=self.options.resume_seconds
        )
        self._accept = accept
        self._assembling = Assembling(self.options.assembling_bytes_max)
        self._open = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        """Requests of HTTP that are not answered wholly."""
        return self._open

    async def until_idle(self, seconds: float) -> None:
        """Wait until all are, at most so long."""
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            self.answers.close()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """ASGI's call."""
        if scope["type"] != "http":
            return
        self._open += 1
        self._idle.clear()
        try:
            await self._answer(scope, receive, send)
        except ClientGoneError:
            self.counters.lost_clients += 1
        except (TransportError, WireError) as error:
            self.counters.refused += 1
            await _refuse(send, error)
        finally:
            self._open -= 1
            if not self._open:
                self._idle.set()

    # -- which request -----------------------------------------------------------------------------------------------

    async def _answer(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        method, path = str(scope["method"]), str(scope["path"])
        headers: _Headers = dict(scope["headers"])
        if method in ("GET", "HEAD") and path in (f"{self.options.root}/health", f"{ROOT_ALIAS}/health"):
            await self._health(send)  # whoever probes has no token
            return
        peer = _peer(scope, headers)
        self.endpoints.identify(peer)
        response = _below(path, self.options.response_root)
        if response is not None:
            await self._on_response_path(method, response, headers, receive, send)
            return
        for root in (self.options.root, ROOT_ALIAS):
            tail = _below(path, root)
            if tail is not None:
                _check_method(method, "POST")
                until_gone = (scope.get("extensions") or {}).get(UNTIL_GONE)
                await self._request(tail, headers, receive, send, until_gone=until_gone, peer=peer)
                return
        raise HttpRefusedError(404, f"Endpoint not found: nothing is served at {path[:256]!r}")

    async def _on_response_path(self, method: str, tail: str, headers: _Headers, receive: Receive, send: Send) -> None:
        subject, _, action = tail.partition("/")
        if action == "stop":
            _check_method(method, "POST")
            self.answers.find(subject).stream.on_stop()
            await _reply(send, 202)
        elif action:
            raise HttpRefusedError(404, f"answers cannot {action[:64]!r}")
        elif method == "DELETE":
            self.answers.drop(self.answers.find(subject))
            await _reply(send, 204)
        else:
            _check_method(method, "GET", "DELETE")
            await self._attach(subject, headers, receive, send)

    async def _health(self, send: Send) -> None:
        draining = self.endpoints.draining
        told: dict[str, object] = {"status": "draining" if draining else "ready"}
        if self.endpoints.guard is None:
            told["endpoints"] = self.endpoints.names()
        await _reply(send, 503 if draining else 200, msgspec.json.encode(told))

    # -- requests ----------------------------------------------------------------------------------------------------

    async def _request(
        self,
        tail: str,
        headers: _Headers,
        receive: Receive,
        send: Send,
        *,
        until_gone: _UntilGone | None,
        peer: Peer,
    ) -> None:
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > self.options.message_bytes_max:
            raise HttpRefusedError(413, f"a request exceeds {self.options.message_bytes_max} bytes")
        content_type = headers.get(b"content-type", b"").decode("latin-1")
        body = RequestBody(receive, content_type, self._assembling, bytes_max=self.options.message_bytes_max)
        try:
            async with asyncio.timeout(self.options.body_seconds):
                message, decoded = await body.request()
        except TimeoutError:
            raise HttpRefusedError(408, f"the request was not whole within {self.options.body_seconds:g} s") from None
        decoded = _with_http(decoded, endpoint_of(tail, self.endpoints.names()), headers)
        way = way_of(message)
        self.counters.requests += 1
        wanted = accepted_format(headers.get(b"accept", b"").decode("latin-1"))
        if way.transport == "inline" or (not way.transport and wanted is not None):
            answer = self._begin(decoded, way, peer, kept_max=0)
            self.answers.add_inline(answer)
            try:
                hear: Callable[[], Awaitable[None]] = body.until_gone
                if decoded.request.many_in:
                    hear = partial(_read_items, body, answer, until_gone)
                await self._send_inline(answer, hear, headers, send)
            finally:
                self.answers.drop(answer)
        elif way.transport in ("", "http_response"):
            if decoded.request.many_in:
                raise HttpRefusedError(400, "Invalid message: a request with further items needs its answer inline")
            answer = self._begin(decoded, way, peer, kept_max=self.answers.kept_max())
            self.answers.add(answer)
            location = f"{self.options.response_origin}{self.options.response_root}/{answer.subject}"
            await _reply(send, 202, headers=[(b"location", location.encode())])
        elif self._accept is None:
            raise HttpRefusedError(400, f"answers over {way.transport[:64]!r} do not go from this worker")
        else:
            self._accept(message, peer=peer)
            await _reply(send, 202)

    def _begin(self, decoded: DecodedRequest, way: Way, peer: Peer, *, kept_max: int) -> HttpAnswer:
        answer = HttpAnswer(way.subject or uuid4().hex, decoded.request.codec, kept_max=kept_max)
        self.answers.check(answer.subject)
        try:
            answer.stream = self.endpoints.open(decoded, answer, _LIMITS, peer)
        except RefusedError as error:
            if error.code == "NOT_FOUND":
                raise HttpRefusedError(404, f"Endpoint not found: {error}") from None
            raise
        return answer

    async def _send_inline(
        self, answer: HttpAnswer, hear: Callable[[], Awaitable[None]], headers: _Headers, send: Send
    ) -> None:
        async def listen() -> None:
            await hear()
            self.counters.lost_clients += not answer.is_over
            answer.kill()

        location = f"{self.options.response_root}/{answer.subject}".encode()
        consumer = self._consumer(headers, send, extra=((b"content-location", location),))
        await _while_listening(listen(), self._send_answer(answer, consumer))

    # -- answers -----------------------------------------------------------------------------------------------------

    async def _attach(self, subject: str, headers: _Headers, receive: Receive, send: Send) -> None:
        seen = headers.get(b"last-event-id")
        if seen is not None and not (seen.isdigit() and len(seen) < 16):
            raise HttpRefusedError(400, "Last-Event-ID is the number of an item")
        consumer = self._consumer(headers, send, position=0 if seen is None else int(seen) + 1)
        answer = self.answers.attach(subject, consumer.position)

        async def listen() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            consumer.is_gone = True
            answer.changed.wake()

        try:
            await _while_listening(listen(), self._send_answer(answer, consumer))
        finally:
            self.counters.lost_clients += consumer.is_gone
            self.answers.leave(answer)

    def _consumer(
        self, headers: _Headers, send: Send, *, position: int = 0, extra: tuple[tuple[bytes, bytes], ...] = ()
    ) -> _Consumer:
        kind = accepted_format(headers.get(b"accept", b"").decode("latin-1")) or self.options.answer_format
        tells_prologue = headers.get(b"x-kvrouter-prologue") == b"inline"
        return _Consumer(send, kind, tells_prologue, position, extra)

    async def _send_answer(self, answer: HttpAnswer, consumer: _Consumer) -> None:
        loop, send = asyncio.get_running_loop(), consumer.send
        deadline = loop.time() + self.options.stream_seconds
        if not consumer.tells_prologue and not await self._begun(answer, consumer, deadline):
            return
        headers = [*_answer_headers(consumer.kind), *consumer.extra]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        sender = _Sender(answer, consumer)
        await asyncio.sleep(0)  # what the handler has at once goes with the first piece
        first = sender.writer.beat()  # servers hold headers back until something of the body is there
        while not (consumer.is_gone or answer.is_cut):
            data, is_last = sender.next()
            data, first = data or first, b""
            if data or is_last:
                await send({"type": "http.response.body", "body": data, "more_body": not is_last})
                answer.delivered(sender.position)
                if is_last:
                    return
            elif not await _changed(answer, min(self.options.beat_seconds, deadline - loop.time())):
                if loop.time() >= deadline:
                    self.counters.expired_streams += 1
                    await send(_last(sender.expired()))
                    answer.kill()
                    return
                await send({"type": "http.response.body", "body": sender.writer.beat(), "more_body": True})

    async def _begun(self, answer: HttpAnswer, consumer: _Consumer, deadline: float) -> bool:
        """Wait until the handler has begun; its failure becomes the response, and then this is False."""
        loop = asyncio.get_running_loop()
        while not (answer.is_begun or answer.failure is not None or answer.is_over or consumer.is_gone):
            if loop.time() >= deadline:
                answer.kill()
                raise DeadlineError("the answer did not begin in time")
            await _changed(answer, deadline - loop.time())
        if answer.failure is not None:
            await _reply(consumer.send, status_of(answer.failure), error_body(answer.failure))
        return answer.is_begun and not consumer.is_gone


class _Sender:
    """What of an answer is sent next."""

    def __init__(self, answer: HttpAnswer, consumer: _Consumer) -> None:
        self.writer = answer_writer(consumer.kind, answer.codec)
        self.position = consumer.position
        self._answer, self._tells_prologue = answer, consumer.tells_prologue

    def next(self) -> tuple[bytes, bool]:
        """What is there now, up to some length, and whether it is the last."""
        answer, out, length = self._answer, list[bytes](), 0
        if self._tells_prologue and answer.is_begun:
            self._tells_prologue = False
            out.append(self.writer.prologue())
        while length < _SENT_BYTES and (item := answer.item(self.position)) is not None:
            try:
                out.append(self.writer.item(self.position, item))
            except WireError as error:
                answer.kill()
                out.append(self.writer.error(encode_error(RefusedError(str(error), code="RESOURCE_EXHAUSTED"))))
                return b"".join(out), True
            length += len(out[-1])
            self.position += 1
        if answer.item(self.position) is not None:
            return b"".join(out), False
        told = answer.failure if answer.failure is not None else answer.final
        if told is not None:
            out.append(self.writer.error(told) if told else self.writer.end())
        return b"".join(out), told is not None

    def expired(self) -> bytes:
        """The answer took too long."""
        return self.writer.error(encode_error(DeadlineError("the answer took longer than this worker sends one")))


async def _read_items(body: RequestBody, answer: HttpAnswer, until_gone: _UntilGone | None) -> None:
    """Hand on further items until the client has gone."""
    if until_gone is None:
        await body.items(answer)
        await body.until_gone()
        return
    reading = asyncio.create_task(body.items(answer), name="http items")
    try:
        await until_gone()
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


async def _while_listening(listening: Coroutine[Any, Any, None], sending: Coroutine[Any, Any, None]) -> None:
    """Send an answer, while something listens to its client."""
    listener = asyncio.create_task(listening, name="http client")
    try:
        await sending
    finally:
        listener.cancel()
        await asyncio.gather(listener, return_exceptions=True)


async def _changed(answer: HttpAnswer, seconds: float) -> bool:
    """Wait for a change of the answer; False if there was none in time."""
    try:
        async with asyncio.timeout(max(0.0, seconds)):
            await answer.changed.wait()
    except TimeoutError:
        return False
    return True


def _below(path: str, root: str) -> str | None:
    return path[len(root) + 1 :] if path.startswith(root + "/") and len(path) > len(root) + 1 else None


def _peer(scope: MutableMapping[str, Any], headers: _Headers) -> Peer:
    client, shown = scope.get("client"), headers.get(b"authorization")
    return Peer(str(client[0]) if client else "", None if shown is None else shown.decode("latin-1"))


def _check_method(method: str, *allowed: str) -> None:
    if method not in allowed:
        raise HttpRefusedError(405, f"only {' and '.join(allowed)}", headers=((b"allow", ", ".join(allowed).encode()),))


def _with_http(decoded: DecodedRequest, endpoint: str, headers: _Headers) -> DecodedRequest:
    """The request with what HTTP says of it: its endpoint, and trace headers that the message does not have."""
    traced = {name.decode(): headers[name].decode("latin-1") for name in _TRACE_HEADERS if name in headers}
    for name in _REQUEST_IDS:
        if name in headers:
            traced.setdefault("x-request-id", headers[name].decode("latin-1"))
    request = decoded.request
    if request.endpoint != endpoint:
        request = type(request)(
            endpoint=endpoint,
            body=request.body,
            codec=request.codec,
            many_in=request.many_in,
            metadata=request.metadata,
        )
    return msgspec.structs.replace(decoded, request=request, headers=traced | decoded.headers)


def _answer_headers(kind: Format) -> list[tuple[bytes, bytes]]:
    return [
        (b"content-type", CONTENT_TYPES[kind].encode()),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),
    ]


def _last(data: bytes) -> dict[str, object]:
    return {"type": "http.response.body", "body": data, "more_body": False}


async def _reply(send: Send, status: int, body: bytes = b"", *, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
    told = [*headers, (b"content-length", b"%d" % len(body))]
    if body:
        told.append((b"content-type", b"application/json"))
    await send({"type": "http.response.start", "status": status, "headers": told})
    await send(_last(body))


async def _refuse(send: Send, error: TransportError | WireError) -> None:
    headers: list[tuple[bytes, bytes]] = []
    if isinstance(error, WireError):
        error = HttpRefusedError(400, str(error))
    told = encode_error(error)
    status = status_of(told)
    if isinstance(error, HttpRefusedError):
        status = error.status
        headers += error.headers
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if isinstance(error, RefusedError) and error.retry_after_seconds is not None:
        headers.append((b"retry-after", b"%d" % ceil(error.retry_after_seconds)))
    await _reply(send, status, error_body(told), headers=headers)
