"""One answer on its way from a worker to a client: bytes pass as they are, only their end is looked for.

Until the head has been sent nothing is decided, and a failure is the exchange's to handle. After it, a failure cuts
the answer so that the client can tell: an event stream gets an error event as its last event and no final chunk, any
other body just ends before its announced end.
"""

from abc import abstractmethod
from typing import Protocol

import msgspec

from kvrouter.errors import KvrouterError, WireError

from .chunked import ChunkedBody
from .forwarding import render_response
from .messages import Outcome, Request, Route, Usage
from .plane import DataPlane
from .replies import UpstreamError, error_object
from .request_head import RequestHead
from .response_head import LengthBody, ResponseHead, UntilCloseBody
from .upstream import Upstream
from .usage import TAIL_BYTES, Tail, find_usage, without_framing

__all__ = ["Client", "Relay"]


class Client(Protocol):
    """What an answer needs of the connection it goes out on."""

    deadline: float
    write_paused: bool

    def send(self, data: bytes) -> None:
        """Send bytes."""
        ...

    def body_done(self) -> None:
        """Let go of the request's body."""
        ...

    def answered(self, *, keep_alive: bool) -> None:
        """The answer is whole."""
        ...

    def cut(self, *, abort: bool) -> None:
        """The answer ends here, short; `abort` gives up what is not sent yet."""
        ...


class Relay(msgspec.Struct, eq=False):
    """The answer's side of an exchange; the consumer of its upstream connection.

    One object with the exchange, because both live as long as the request and share most of what they know.
    """

    _plane: DataPlane
    _client: Client
    _head: RequestHead
    _request: Request
    _route: Route | None = None
    """The attempt that `Dispatcher.finished` has not been told of yet."""
    _upstream: Upstream | None = None
    """Where the route leads, from when the request was sent."""
    _silent: bool = True
    """Not one byte of an answer is here."""
    _buffer: bytes = b""
    _response: ResponseHead | None = None
    _body: LengthBody | ChunkedBody | UntilCloseBody | None = None
    _sink: list[bytes] | None = None
    """Payload without chunked framing, for clients that do not know it (HTTP/1.0)."""
    _tail: Tail | None = None
    _tokens_seen: bool = False
    _keep_alive: bool = False

    @abstractmethod
    def _unanswered(self, error: UpstreamError, *, silent: bool) -> None:
        """Handle a failure before the client saw anything; `silent`: the worker sent no byte at all."""

    @abstractmethod
    def _failed_together(self, route: Route, status: int) -> bool:
        """Try again what failed because its companion did, as far as one can tell; False if it was tried enough."""

    def response_data(self, data: bytes) -> None:
        """Take the next bytes of the answer."""
        body = self._body
        if body is None:
            self._read_head(data)
            return
        try:
            end = body.feed(data)
        except WireError as error:
            self._fail(UpstreamError(f"malformed answer: {error}", outcome="bad_response"))
            return
        self._send_body(data, end)
        if body.done:
            self._complete(surplus=end < len(data))

    def response_ended(self, error: Exception | None) -> None:
        """Learn that the worker closed the connection."""
        if isinstance(self._body, UntilCloseBody) and error is None:
            self._complete(surplus=False)
        elif isinstance(error, UpstreamError):
            self._fail(error)
        else:
            when = "before" if self._silent else "in the middle of"
            self._fail(UpstreamError(f"the worker closed the connection {when} its answer", outcome="upstream_lost"))

    def pause(self) -> None:
        """The client reads slowly: stop reading from the worker."""
        if self._upstream is not None:
            self._upstream.pause()

    def resume(self) -> None:
        """The client has caught up."""
        self._client.deadline = self._plane.now + self._plane.limits.idle_seconds
        if self._upstream is not None:
            self._upstream.resume()

    def _settled(self, outcome: Outcome, usage: Usage | None) -> None:
        """Tell the dispatcher, once, how the attempt ended."""
        route, self._route, self._upstream = self._route, None, None
        if route is not None:
            self._plane.finished(route, outcome, usage)

    def _fail(self, error: UpstreamError) -> None:
        """End the attempt for a reason of the worker's."""
        assert self._upstream is not None
        self._upstream.abort()
        if self._body is None:
            self._unanswered(error, silent=self._silent)
        else:
            self._cut(error, error.outcome)

    def _cut(self, error: KvrouterError, outcome: Outcome) -> None:
        """End an answer that has begun."""
        self._plane.statistics.truncated += 1
        told = self._tell(error)
        self._settled(outcome, self._usage())
        # Only a reset tells a client that a body without any length is short.
        self._client.cut(abort=not told and isinstance(self._body, UntilCloseBody))

    def _read_head(self, data: bytes) -> None:
        plane, self._silent = self._plane, False
        if self._buffer:
            data = self._buffer + data
        try:
            heads = plane.response_heads
            memory = heads.memory
            while (found := memory.recall(data, len(data), memory.plain) or heads.read(data)) is not None:
                head, length, end = found
                if head.status >= 200:
                    self._begin(head, length, data, end)
                    return
                self._interim(head, data[:end])
                data = data[end:]
        except WireError as error:
            self._fail(UpstreamError(f"malformed answer: {error}", outcome="bad_response"))
            return
        self._buffer = data
        if len(data) > plane.limits.response_header_bytes_max:
            self._fail(UpstreamError("malformed answer: its head is too long", outcome="bad_response"))

    def _interim(self, head: ResponseHead, data: bytes) -> None:
        """Pass a 1xx answer on (RFC 9110 section 15.2); 100 answers our own words, 101 nobody asked for."""
        if head.status == 101:
            raise WireError("switching protocols without being asked", reason="upgrade")
        if head.status != 100 and not self._head.line.http10:
            self._client.send(data)

    def _begin(self, head: ResponseHead, length: int, data: bytes, start: int) -> None:
        """Send the head and what came with it of the body, which begins at `start`, in one piece."""
        request, body, route = self._head, data[start:], self._route
        assert route is not None
        if route.companion is not None and head.status >= 500 and self._failed_together(route, head.status):
            return
        if length == len(body) and not head.chunked and not head.bodiless and request.line.method != "HEAD":
            # All of it is here, as with most answers that are no streams: no framing has to be kept.
            self._keep_alive = request.keep_alive and not self._plane.draining
            answer = self._start(head, length, body)
            if length and head.status < 300:
                self._plane.first_token(route)
            self._client.send(answer)
            self._complete(surplus=False, whole=body)
        else:
            self._begin_body(head, length, body)

    def _begin_body(self, head: ResponseHead, length: int, data: bytes) -> None:
        plane, route, request = self._plane, self._route, self._head
        assert route is not None
        route.body = None
        self._client.body_done()  # nothing will be sent again, and the answer may take its time
        self._sink = [] if request.line.http10 and head.chunked else None
        body = head.body(request.line.method, length, self._sink)
        end = body.feed(data)
        self._body = body
        delimited = self._sink is None and not isinstance(body, UntilCloseBody)
        self._keep_alive = delimited and request.keep_alive and not plane.draining
        if not body.done and (head.event_stream or (route.is_inference and head.status < 300)):
            self._tail = Tail()
        self._send_body(data, end, self._start(head, length, b""))
        if body.done:
            self._complete(surplus=end < len(data), whole=data)

    def _start(self, head: ResponseHead, length: int, body: bytes) -> bytes:
        """Note what the worker answers; return the head for the client, and `body` after it."""
        plane, route, status = self._plane, self._route, head.status
        assert route is not None
        self._response, route.status = head, status
        responses = plane.statistics.responses
        responses[status] = responses.get(status, 0) + 1
        return render_response(
            head,
            length=length,
            request_id=self._request.id,
            route_line=plane.route_lines.get(route.worker_id) or plane.route_line(route),
            overlap_tokens=route.overlap_tokens,
            keep_alive=self._keep_alive,
            http10=self._head.line.http10,
            body=body,
        )

    def _send_body(self, data: bytes, end: int, head: bytes = b"") -> None:
        client = self._client
        if end < len(data):
            data = data[:end]
        if data and not self._tokens_seen:
            self._first_body_byte()
        if self._tail is not None:
            self._tail.add(data)
        if self._sink is not None:
            data = b"".join(self._sink)
            self._sink.clear()
        client.send(head + data if head else data)
        if not client.write_paused:
            client.deadline = self._plane.now + self._plane.limits.idle_seconds

    def _first_body_byte(self) -> None:
        self._tokens_seen = True
        assert self._route is not None
        if self._route.status < 300:
            self._plane.first_token(self._route)

    def _complete(self, *, surplus: bool, whole: bytes = b"") -> None:
        """The answer is whole; bytes beyond its end make the connection unfit for another.

        `whole` is the body, if it came in one piece with the head.
        """
        head, upstream = self._response, self._upstream
        assert head is not None
        assert upstream is not None
        upstream.release(reusable=head.keep_alive and not surplus)
        self._settled("ok" if head.status < 500 else "error_status", self._usage(whole))
        self._client.answered(keep_alive=self._keep_alive)

    def _usage(self, whole: bytes = b"") -> Usage | None:
        route = self._route
        if route is None or not route.is_inference or route.status >= 300:
            return None
        chunked = isinstance(self._body, ChunkedBody)
        if self._tail is None:
            return find_usage(without_framing(whole[-TAIL_BYTES:]) if chunked else whole[-TAIL_BYTES:])
        return find_usage(self._tail.bytes(chunked=chunked))

    def _tell(self, error: KvrouterError) -> bool:
        """Add an error event to an event stream; False where that is not possible."""
        if self._response is None or self._body is None or self._tail is None or not self._response.event_stream:
            return False
        event = b"%bdata: %b\n\n" % (b"" if self._between_events(self._tail) else b"\n\n", error_object(error))
        text = event if self._sink is not None else self._body.interruption(event)
        if text is None:
            return False
        self._client.send(text)
        return True

    def _between_events(self, tail: Tail) -> bool:
        """The last event sent was whole; when in doubt no, since empty lines between events mean nothing."""
        chunked = isinstance(self._body, ChunkedBody)
        seen = tail.bytes(chunked=chunked)
        if chunked:
            seen = seen.removesuffix(b"\r\n")
        return not seen or seen.endswith((b"\n\n", b"\r\n\r\n"))
