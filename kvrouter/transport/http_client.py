"""Requests over HTTP/2: many streams over few connections, answers on the same stream or fetched from a second one.

The request is a two-part message as on every other transport, so that HTTP and NATS carry the same bytes. Whoever
wants its answers sent home over TCP composes `HttpAckClient` with `callhome_client.py`.
"""

import asyncio
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from typing import Any, Literal, TypeAlias
from urllib.parse import quote, urljoin
from uuid import uuid4

import msgspec

from kvrouter.errors import (
    DeadlineError,
    ProtocolError,
    TransportError,
    UnreachableError,
    WireError,
)
from kvrouter.transport.access import Token, with_token
from kvrouter.transport.client_stream import ClientStream
from kvrouter.transport.context import Context
from kvrouter.transport.duplex import StreamLimits
from kvrouter.transport.flow import PIECE_COST
from kvrouter.transport.http_connection import Header, HttpExchange
from kvrouter.transport.http_errors import refusal_of
from kvrouter.transport.http_formats import CONTENT_TYPES, AnswerReader, Format, Said, answer_reader, format_of
from kvrouter.transport.http_origins import HttpOrigins, Origin, parse_http_address
from kvrouter.transport.messages import Codec, Kind, Request, decode_error, decode_request
from kvrouter.transport.requesting import connected, encode_now
from kvrouter.transport.tcp_connection import Heartbeat
from kvrouter.transport.tls import PlaneTls
from kvrouter.transport.two_part import decode_two_part, encode_two_part

__all__ = ["Answers", "HttpAckClient", "HttpRequestClient"]

Answers: TypeAlias = Literal["inline", "attached"]
"""Whether an answer comes as the response to the request, or is fetched by a second one."""

_REFUSAL_BYTES_MAX = 64 << 10
_CREDIT_BYTES = 32 << 10
_UNBOUNDED = 1 << 60
_LIMITS = StreamLimits(peer_window_bytes=_UNBOUNDED, frame_bytes_max=_UNBOUNDED, enforced=False)
_TRACE_HEADERS = ("traceparent", "tracestate", "x-request-id")


class _Call:
    """One request: the wire of its stream, and the receiver of the response that carries its answer."""

    def __init__(self, client: "HttpRequestClient", codec: Codec, url: str) -> None:
        self.stream: ClientStream
        self._url = url
        self.location: str | None = None
        self.is_over = False
        self._client, self._codec = client, codec
        self._exchange: HttpExchange | None = None
        self._reader: AnswerReader | None = None
        self._status = 0
        self._refusal = b""
        self._received = self._held = 0  # bytes of HTTP not credited yet; cost of the items not taken yet

    def carried_by(self, exchange: HttpExchange) -> None:
        """What is sent and heard is that of `exchange`."""
        self._exchange = exchange

    def found_at(self, location: str) -> None:
        """Where the worker keeps the answer, for control."""
        self.location = urljoin(self._url, location)

    # -- the wire of the stream --------------------------------------------------------------------------------------

    def transmit(self, kind: Kind, payload: bytes | memoryview = b"", *, more: bool = False) -> None:
        """See `Wire`."""
        assert not more, "items are never cut here"
        exchange = self._exchange
        if kind is Kind.STOP:
            self._client.stop(self)
        elif kind in (Kind.KILL, Kind.RESET):
            self._client.kill(self)
            if exchange is not None:
                exchange.reset()
        elif exchange is None:
            pass
        elif kind is Kind.DATA:
            exchange.write(encode_two_part(b"", payload, bytes_max=_UNBOUNDED))
        elif kind is Kind.END:
            exchange.finish()
        elif kind is Kind.WINDOW:
            self._held -= int.from_bytes(payload, "big")
            self._credit()

    async def writable(self) -> None:
        """See `Wire`."""
        if self._exchange is not None:
            await self._exchange.writable()

    def forget(self) -> None:
        """See `Wire`."""
        self.is_over = True
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.let_go()

    # -- the receiver ------------------------------------------------------------------------------------------------

    def on_response(self, status: int, headers: dict[str, str]) -> None:
        """See `Receiver`."""
        self._status = status
        if status != 200:
            return
        content_type = headers.get("content-type", "")
        kind = format_of(content_type)
        if kind is None:
            self.stream.reset(ProtocolError(f"the answer is of type {content_type[:64]!r}"))
            return
        if "content-location" in headers:
            self.found_at(headers["content-location"])
        self._reader = answer_reader(kind, self._codec)
        self.stream.on_ack(b"")

    def on_bytes(self, data: bytes) -> None:
        """See `Receiver`."""
        self._received += len(data)
        if self._reader is None:
            self._refusal = (self._refusal + data)[:_REFUSAL_BYTES_MAX]
        else:
            self._read(self._reader, data)
        self._credit()

    def on_close(self, reason: str | None) -> None:
        """See `Receiver`."""
        self._exchange = None
        if reason is None and self._status != 200:
            self.stream.on_ack(refusal_of(self._status, self._refusal))
        else:
            self.stream.on_lost(reason or "the response ended before the answer did")

    # -- inside ------------------------------------------------------------------------------------------------------

    def _read(self, reader: AnswerReader, data: bytes) -> None:
        try:
            for said in reader.feed(data):
                self._on_said(said)
                if self.is_over:
                    return
        except (ProtocolError, WireError) as error:
            self.stream.reset(error if isinstance(error, ProtocolError) else ProtocolError(str(error)))

    def _on_said(self, said: Said) -> None:
        match said.kind:
            case Kind.DATA:
                self._held += len(said.payload) + PIECE_COST
                self.stream.on_data(said.payload)
            case Kind.PROLOGUE:
                self.stream.on_prologue(b"")
            case Kind.END:
                self.stream.on_end()
            case Kind.RESET:
                self.stream.on_error(decode_error(said.payload))

    def _credit(self) -> None:
        """Let the peer send as much more as the application has taken; pieces of an item that is not whole too."""
        due = self._received - max(0, self._held)
        if due >= _CREDIT_BYTES and self._exchange is not None:
            self._received -= due
            self._exchange.credit(due)


class HttpRequestClient:
    """The client of the request plane over HTTP/2. Addresses are the base URL of workers: `http://host:port/v1/rpc`.

    `acknowledge_seconds` bounds the wait until a worker has taken a request, not its answer. `tls` is for `https`,
    which trusts the system's authorities otherwise.
    """

    def __init__(
        self,
        *,
        answers: Answers = "inline",
        answer_format: Format = "binary",
        acknowledge_seconds: float = 5.0,
        token: Token | None = None,
        heartbeat: Heartbeat | None = None,
        connect_seconds: float = 5.0,
        connections_max: int = 50,
        tls: PlaneTls | None = None,
    ) -> None:
        self.origins = HttpOrigins(
            heartbeat=heartbeat, connect_seconds=connect_seconds, connections_max=connections_max, tls=tls
        )
        self._answers, self._format = answers, answer_format
        self._acknowledge_seconds = acknowledge_seconds
        self._token = token
        self._errands: set[asyncio.Task[None]] = set()

    async def request(self, address: str, request: Request, context: Context) -> ClientStream:
        """Send a request; see `RequestClient`."""
        if request.many_in and self._answers == "attached":
            raise TransportError("a request with further items needs its answer inline", code="UNIMPLEMENTED")
        origin, root = parse_http_address(address)
        encoded = self._encode(request, context)
        headers = self._headers(request, context, len(encoded))
        path = f"{root}/{quote(request.endpoint)}"
        call = _Call(self, request.codec, f"{origin.scheme}://{origin.authority}{path}")
        connection = await connected(lambda _: self.origins.acquire(origin), address, context)
        call.stream = ClientStream(call, context, _LIMITS, many_in=request.many_in)
        try:
            async with asyncio.timeout(self._acknowledge_seconds), asyncio.timeout_at(context.deadline):
                if self._answers == "inline":
                    self._send(connection.open("POST", path, headers, call), call, encoded, many_in=request.many_in)
                else:
                    await self._request_attached(call, origin, path, headers, encoded)
                return await call.stream.taken(request)
        except TimeoutError:
            await call.stream.aclose()
            if context.deadline is not None and asyncio.get_running_loop().time() >= context.deadline:
                raise DeadlineError(f"request {context.id} was not taken within its deadline") from None
            message = f"{address} has not taken the request within {self._acknowledge_seconds:g} seconds"
            raise UnreachableError(message) from None
        except BaseException:
            await call.stream.aclose()
            raise

    async def aclose(self) -> None:
        """Close all connections. Idempotent."""
        await self.origins.aclose()
        errands = list(self._errands)
        for errand in errands:
            errand.cancel()
        await asyncio.gather(*errands, return_exceptions=True)

    def stop(self, call: _Call) -> None:
        """Ask the worker in the background to end a request by itself."""
        self._run(self._tell(call, "POST", "/stop"))

    def kill(self, call: _Call) -> None:
        """Tell a worker that keeps an answer to be fetched that nobody will."""
        if self._answers == "attached" and call.location is not None:
            self._run(self._tell(call, "DELETE", ""))

    # -- inside ------------------------------------------------------------------------------------------------------

    def _encode(self, request: Request, context: Context) -> bytes:
        encoded = encode_now(request, context)
        transport = "inline" if self._answers == "inline" else "http_response"
        info = msgspec.json.encode({"subject": uuid4().hex}).decode()
        header, body = decode_two_part(encoded)
        told = msgspec.json.encode({"transport": transport, "info": info})
        return encode_two_part(bytes(header[:-1]) + b',"connection_info":' + told + b"}", body)

    def _headers(self, request: Request, context: Context, length: int) -> list[Header]:
        headers = [*_request_headers(context.headers), *self._answer_headers()]
        if not request.many_in:
            headers.append(("content-length", str(length)))
        return headers

    def _answer_headers(self) -> list[Header]:
        return [
            ("accept", CONTENT_TYPES[self._format]),
            ("x-kvrouter-prologue", "inline"),
            *_authorisation(self._token),
        ]

    def _send(self, exchange: HttpExchange, call: _Call, encoded: bytes, *, many_in: bool) -> None:
        call.carried_by(exchange)
        exchange.write(encoded, ends=not many_in)

    async def _request_attached(
        self, call: _Call, origin: Origin, path: str, headers: list[Header], encoded: bytes
    ) -> None:
        """Wait for the 202, then fetch the answer from where the worker says that it is."""
        answer = await self.origins.fetch(origin, "POST", path, headers, encoded)
        if answer.status != 202:
            raise decode_error(refusal_of(answer.status, answer.body), refused=True)
        if "location" not in answer.headers:
            raise ProtocolError("the worker has taken the request, and does not say where its answer is")
        call.found_at(answer.headers["location"])
        call.stream.on_ack(b"")
        there, answer_path = parse_http_address(call.location or "")
        connection = await self.origins.acquire(there)
        if call.is_over:
            self.kill(call)
            return
        exchange = connection.open("GET", answer_path, self._answer_headers(), call)
        call.carried_by(exchange)
        exchange.finish()

    def _run(self, errand: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(errand, name="http errand")
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    async def _tell(self, call: _Call, method: str, suffix: str) -> None:
        # What fails here has failed for the stream too, or its answer has ended meanwhile.
        with suppress(TransportError, TimeoutError):
            async with asyncio.timeout(self._acknowledge_seconds):
                await call.stream.accepted()
                if call.location is not None:
                    origin, path = parse_http_address(call.location)
                    await self.origins.fetch(origin, method, path + suffix, _authorisation(self._token))


class HttpAckClient:
    """Sends requests whose answers come another way; done when the worker has said 202."""

    def __init__(
        self,
        *,
        acknowledge_seconds: float = 5.0,
        token: Token | None = None,
        heartbeat: Heartbeat | None = None,
        tls: PlaneTls | None = None,
    ) -> None:
        self.origins = HttpOrigins(heartbeat=heartbeat, tls=tls)
        self._acknowledge_seconds, self._token = acknowledge_seconds, token

    async def send(self, address: str, message: bytes, context: Context) -> None:
        """Post a request, encoded by `encode_request`; returns when the worker has taken it.

        Raises:
            RefusedError: it has not.
            UnreachableError, DisconnectedError: nobody is there, or nobody knows.
        """
        origin, root = parse_http_address(address)
        endpoint = decode_request(message).request.endpoint
        headers = [
            *_request_headers(context.headers),
            *_authorisation(self._token),
            ("content-length", str(len(message))),
        ]
        try:
            async with asyncio.timeout(self._acknowledge_seconds):
                answer = await self.origins.fetch(origin, "POST", f"{root}/{quote(endpoint)}", headers, message)
        except TimeoutError:
            text = f"{address} has not taken the request within {self._acknowledge_seconds:g} seconds"
            raise UnreachableError(text) from None
        if answer.status != 202:
            raise decode_error(refusal_of(answer.status, answer.body), refused=True)

    async def aclose(self) -> None:
        """Close all connections. Idempotent."""
        await self.origins.aclose()


def _authorisation(token: Token | None) -> list[Header]:
    return list(with_token({}, token).items())


def _request_headers(headers: Mapping[str, str]) -> list[Header]:
    """The type of the body, and what proxies on the way may read."""
    traced = [(name, headers[name]) for name in _TRACE_HEADERS if headers.get(name, "\n").isprintable()]
    return [("content-type", "application/octet-stream"), *traced]
