"""One exchange over a request plane, behind the data plane's seam: what comes in and goes out is HTTP/1.1.

The data plane renders a request and reads an answer as ever; here the one becomes a call, and the items of the other
become its bytes. A call that a worker has not taken ends as `connect_failed` or `saturated`, so that any request goes
to the next worker; after that it ends as it would on a connection that was lost.
"""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from http import HTTPStatus
from math import ceil
from time import perf_counter
from typing import Any, Final, Protocol

from kvrouter.errors import (
    DeadlineError,
    DisconnectedError,
    HandlerError,
    NoInstancesError,
    ProtocolError,
    RefusedError,
    TransportError,
    UnreachableError,
    WireError,
)
from kvrouter.service.planes.figures import PlaneFigures
from kvrouter.service.proxy import Outcome, UpstreamError
from kvrouter.service.proxy.upstream import ResponseConsumer
from kvrouter.transport.calls import AnswerHead, call_request, carried, error_answer, read_answer_head
from kvrouter.transport.client_stream import ClientStream
from kvrouter.transport.context import Context
from kvrouter.transport.messages import Request
from kvrouter.transport.registry import NoTransportError

__all__ = ["Caller", "PlaneConnection", "upstream_error"]

_LINGER_SECONDS: Final = 5.0
_STATUS_OF_LARGE: Final = 413
_FRAMING: Final = frozenset({"connection", "keep-alive", "transfer-encoding"})
_PHRASES: Final = {status.value: status.phrase for status in HTTPStatus}
_BODILESS: Final = frozenset({204, 304})
_LAST_CHUNK: Final = b"0\r\n\r\n"


class Caller(Protocol):
    """Who sends the call to its worker."""

    @property
    def endpoint(self) -> str:
        """Name of the worker's endpoint."""
        ...

    @property
    def overload_status(self) -> int:
        """What a client is answered where every worker that was asked has too much to do."""
        ...

    @property
    def figures(self) -> PlaneFigures:
        """What is told to Prometheus."""
        ...

    async def call(self, request: Request, context: Context) -> ClientStream:
        """Send it; see `InstanceClient.request`."""
        ...

    def spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Run what waits for the answer."""
        ...


class PlaneConnection:
    """An `Upstream` for one exchange."""

    __slots__ = ("_caller", "_flowing", "_opened_at", "_released", "_silent", "_task", "consumer", "used")

    def __init__(self, caller: Caller) -> None:
        self.consumer: ResponseConsumer | None = None
        self.used = False
        self._caller, self._opened_at = caller, perf_counter()
        self._silent = True
        self._released = False
        self._flowing: asyncio.Future[None] | None = None
        """Done when the client has caught up; None while it keeps up."""
        self._task: asyncio.Task[None] | None = None

    def send(self, head: bytes, body: bytes = b"") -> None:
        """Send the request."""
        self._task = self._caller.spawn(self._run(head, body))

    def pause(self) -> None:
        """Take no more items; the worker's sender waits for credit."""
        if self._flowing is None:
            self._flowing = asyncio.get_running_loop().create_future()

    def resume(self) -> None:
        """Go on after `pause`."""
        flowing, self._flowing = self._flowing, None
        if flowing is not None and not flowing.done():
            flowing.set_result(None)

    def release(self, *, reusable: bool) -> None:
        """The answer is whole. What the worker still has to say may only be that it has ended."""
        self.consumer = None
        self._released = reusable
        self.resume()
        if not reusable:
            self._cancel()

    def abort(self) -> None:
        """Kill the call, wherever it is."""
        self.consumer = None
        self._cancel()

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self, head: bytes, body: bytes) -> None:
        figures = self._caller.figures
        figures.inflight.inc()
        try:
            method, target, headers, rest = _read_request(head)
            context = Context(headers=headers)
            request = call_request(self._caller.endpoint, method, target, body or rest)
            began = perf_counter()
            figures.queue_seconds.observe(began - self._opened_at)
            async with await self._caller.call(request, context) as stream:
                figures.send_seconds.observe(perf_counter() - began)
                await self._read(stream, began)
        except TransportError as error:
            self._failed(error)
        except WireError as error:
            self._broken(error)
        except Exception:
            # A bug, which whoever spawned this reports; the request must not wait for its deadline.
            self._end(UpstreamError("the router failed to ask the worker", outcome="bad_response"))
            raise
        finally:
            figures.inflight.dec()

    async def _read(self, stream: ClientStream, began: float) -> None:
        """Tell the consumer the answer as it comes."""
        try:
            head = read_answer_head(await anext(stream))
        except StopAsyncIteration:
            raise ProtocolError("the worker's answer is empty") from None
        self._caller.figures.ttft_seconds.observe(perf_counter() - began)
        is_chunked = "content-length" not in head.headers and head.status not in _BODILESS
        data = _render(head, is_chunked=is_chunked)
        while self.consumer is not None:
            if stream.waiting:
                items = [await anext(stream) for _ in range(stream.waiting)]
                data += _chunk(items) if is_chunked else b"".join(items)
            is_whole = stream.is_whole
            self._tell(data + _LAST_CHUNK if is_whole and is_chunked else data)
            if is_whole:
                self._end(UpstreamError("the worker's answer is shorter than it says", outcome="bad_response"))
            elif self.consumer is not None:
                if self._flowing is not None:
                    await self._flowing
                data = await self._next(stream, is_chunked=is_chunked)
        if self._released and not stream.is_whole:
            await _until_ended(stream)

    async def _next(self, stream: ClientStream, *, is_chunked: bool) -> bytes:
        """The next piece of the body; nothing where there is none."""
        try:
            item = await anext(stream)
        except StopAsyncIteration:
            return b""
        return _chunk([item]) if is_chunked else item

    def _tell(self, data: bytes) -> None:
        consumer = self.consumer
        if consumer is not None and data:
            self._silent = False
            consumer.response_data(data)

    def _end(self, error: UpstreamError) -> None:
        consumer, self.consumer = self.consumer, None
        if consumer is not None:
            consumer.response_ended(error)

    def _failed(self, error: TransportError) -> None:
        """A handler's no is an answer; everything else is a failure of the worker, or of the way to it."""
        if self._silent and _is_answer(error):
            head, body = error_answer(error)
            self._tell(_render(head, is_chunked=False) + body)
        else:
            self._end(upstream_error(error, overload_status=self._caller.overload_status))

    def _broken(self, error: WireError) -> None:
        if error.reason == "too_large" and self._silent:
            head, body = error_answer(TransportError(str(error), code="INVALID_ARGUMENT"))
            large = AnswerHead(_STATUS_OF_LARGE, head.headers)
            self._tell(_render(large, is_chunked=False) + body)
        else:
            self._end(UpstreamError(f"malformed answer: {error}", outcome="bad_response"))


def upstream_error(error: TransportError, *, overload_status: int) -> UpstreamError:
    """What a failed call is to the data plane; before the first item it decides whether others are asked."""
    if error.code == "RESOURCE_EXHAUSTED" and isinstance(error, RefusedError | HandlerError):
        again = ceil(getattr(error, "retry_after_seconds", None) or 1)
        return UpstreamError(str(error), outcome="saturated", status=overload_status, retry_after_seconds=again)
    if error.code == "ALREADY_EXISTS":  # taken over another way, whose acknowledgement was lost with its connection
        return UpstreamError(str(error), outcome="upstream_lost")
    if isinstance(error, RefusedError):
        # Draining; or it does not know the endpoint or us, which the next check will find too.
        return UpstreamError(str(error), outcome="saturated" if error.retryable else "connect_failed")
    outcomes: tuple[tuple[tuple[type[TransportError], ...], Outcome], ...] = (
        ((DeadlineError,), "timeout"),
        ((UnreachableError, NoInstancesError, NoTransportError), "connect_failed"),
        ((DisconnectedError,), "upstream_lost"),
        ((HandlerError,), "error_status"),
    )
    for classes, outcome in outcomes:
        if isinstance(error, classes):
            return UpstreamError(str(error), outcome=outcome)
    return UpstreamError(str(error), outcome="bad_response")


def _is_answer(error: TransportError) -> bool:
    """Whether the worker has judged the request, so that nobody else need be asked."""
    if isinstance(error, RefusedError):
        # Too much of this client is not too much of all: nobody else is asked, and it is told when to come back.
        return error.code == "INVALID_ARGUMENT" or (error.code == "RESOURCE_EXHAUSTED" and not error.retryable)
    return isinstance(error, HandlerError) and error.code != "RESOURCE_EXHAUSTED"


def _read_request(head: bytes) -> tuple[str, str, dict[str, str], bytes]:
    """Take apart what the data plane has rendered: method, target, headers, and the body if it came along."""
    lines, _, body = head.partition(b"\r\n\r\n")
    first, *rest = lines.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ", 2)
    pairs = (line.partition(":") for line in rest if line)
    return method, target, carried((name, value.strip()) for name, _, value in pairs), body


def _render(head: AnswerHead, *, is_chunked: bool) -> bytes:
    """The head of the answer in HTTP/1.1; raises WireError for a header that would be more than one line."""
    lines = [f"HTTP/1.1 {head.status} {_PHRASES.get(head.status, '')}"]
    for name, value in head.headers.items():
        if not name.isascii() or not f"{name}{value}".isprintable():
            raise WireError(f"the answer's header {name[:64]!r} is none")
        if name not in _FRAMING:
            lines.append(f"{name}: {value}")
    if is_chunked:
        lines.append("transfer-encoding: chunked")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")


def _chunk(items: list[bytes]) -> bytes:
    """Items as one chunk; nothing for nothing, which would be the last one."""
    size = sum(map(len, items))
    return b"%x\r\n%b\r\n" % (size, b"".join(items)) if size else b""


async def _until_ended(stream: ClientStream) -> None:
    """Let a whole answer end by itself: leaving it would kill what the worker thinks it has still to do."""
    with suppress(TimeoutError, TransportError, StopAsyncIteration):
        async with asyncio.timeout(_LINGER_SECONDS):
            await anext(stream)
