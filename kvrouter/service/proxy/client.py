"""One client connection: requests in, one after the other; answers out, in the same order.

Requests are read whole before they are routed. Pipelined ones wait, unread beyond a bound, until the answer before
them has gone out. The end of the client's stream means that it has left: whatever is under way for it is aborted.
"""

import asyncio
import socket
import struct
from typing import cast

from kvrouter.errors import KvrouterError, OverloadedError, RequestError

from .exchange import Exchange
from .limits import ProxyLimits
from .messages import Reply, Request
from .plane import DataPlane
from .replies import CONTINUE, error_reply, render_reply
from .request_head import RequestHead
from .request_parser import RequestParser

__all__ = ["ClientConnection"]

_IDLE, _HEAD, _BODY, _BUSY, _CLOSING = range(5)


class ClientConnection(asyncio.BufferedProtocol):
    """The server side of one connection."""

    __slots__ = (
        "_advancing",
        "_exchange",
        "_head",
        "_home",
        "_parser",
        "_paused",
        "_peer",
        "_plane",
        "_request",
        "_reserved",
        "_state",
        "_transport",
        "deadline",
        "write_paused",
    )

    def __init__(self, plane: DataPlane, home: "set[ClientConnection]") -> None:
        self._plane, self._home = plane, home
        self._parser = RequestParser(plane.limits, plane.request_heads)
        self._transport: asyncio.Transport | None = None
        self._state = _IDLE
        self._peer = ""
        self._head: RequestHead | None = None
        self._request: Request | None = None
        self._exchange: Exchange | None = None
        self._reserved = 0
        """Bytes of `statistics.buffered_bytes` that are this connection's."""
        self._paused = False
        self._advancing = False
        self.write_paused = False
        self.deadline = plane.now + plane.limits.keepalive_seconds

    def set_limits(self, limits: ProxyLimits) -> None:
        """Read what comes by other limits; deadlines that run already stay."""
        self._parser.set_limits(limits)

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or refuse it when there are too many."""
        self._transport = cast("asyncio.Transport", transport)
        statistics = self._plane.statistics
        self._home.add(self)
        statistics.connections_open += 1
        if statistics.connections_open > self._plane.limits.connections_max:
            statistics.connections_refused += 1
            self._refuse(OverloadedError("too many connections"), "too_many_connections")
            return
        statistics.connections_accepted += 1
        peer = transport.get_extra_info("peername")
        self._peer = f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "local"

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left."""
        del exc
        self._transport = None
        self._state = _CLOSING
        self._home.discard(self)
        self._plane.statistics.connections_open -= 1
        exchange = self._exchange
        self._request_over()
        if exchange is not None:
            exchange.cancel()

    def eof_received(self) -> None:
        """The client will send nothing more: it has left, and must not keep a worker busy."""
        if self._state == _BUSY and self._transport is not None:
            self._transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Lend the memory that all connections are read into; `buffer_updated` follows before the next one is read."""
        del sizehint
        return self._plane.receive_buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take bytes; while an answer is under way they wait, after the last answer nobody reads them."""
        received, state = self._plane.receive_buffer, self._state
        if state == _CLOSING:
            return
        if state == _IDLE and not self.write_paused:
            whole = self._parser.take_whole(received, nbytes)
            if whole is not None:
                head, body = whole
                try:
                    if self._admit(head):
                        self._begin(body)
                except RequestError as error:
                    self._refuse(error, error.code or "bad_request")
                return
        self._parser.feed(bytes(received[:nbytes]))
        if state == _BUSY or self.write_paused:
            self._pause_reading()
        else:
            self._advance()

    def pause_writing(self) -> None:
        """The client reads more slowly than its answer comes."""
        self.write_paused = True
        self.deadline = self._plane.now + self._plane.limits.stall_seconds
        if self._exchange is not None:
            self._exchange.pause()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self.write_paused = False
        if self._state == _CLOSING:
            self.deadline = self._plane.now + self._plane.limits.linger_seconds
            return
        if self._exchange is not None:
            self._exchange.resume()
        elif self._state != _BUSY and not self._advancing:
            self.deadline = self._plane.now + self._plane.limits.keepalive_seconds
            self._advance()

    # What the server calls.

    def expired(self) -> None:
        """The deadline has passed."""
        if self._transport is None:
            return
        if self.write_paused or self._state == _CLOSING:
            self._transport.abort()
        elif self._state == _BUSY and self._exchange is not None:
            self._exchange.expired()
        elif self._state == _IDLE:
            self._close()
        else:
            what = "head" if self._state == _HEAD else "body"
            self._refuse(
                RequestError(f"the request {what} did not arrive in time", status=408, code="request_timeout"),
                "request_timeout",
            )

    @property
    def busy(self) -> bool:
        """A request is being read or answered, or an answer has not been sent to its end."""
        transport = self._transport
        return transport is not None and (self._state != _IDLE or transport.get_write_buffer_size() > 0)

    def close_if_idle(self) -> None:
        """Close unless there is something left to do."""
        if not self.busy:
            self._close()

    def stop(self, error: KvrouterError) -> None:
        """End the request under way, and tell the client why; without one, close at once."""
        if self._state == _BUSY and self._exchange is not None:
            self._exchange.stop(error)
        else:
            self.abort()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    # What the exchange calls.

    def send(self, data: bytes) -> None:
        """Send bytes to the client."""
        if self._transport is not None:
            self._transport.write(data)

    def reply(self, reply: Reply) -> None:
        """Answer the current request ourselves."""
        head, request = self._head, self._request
        assert head is not None
        assert request is not None
        keep_alive = head.keep_alive and not self._plane.draining
        self.send(
            render_reply(
                reply,
                request_id=request.id,
                date=self._plane.date,
                keep_alive=keep_alive,
                http10=head.line.http10,
                head_only=head.line.method == "HEAD",
            )
        )
        self._plane.statistics.count_reply(reply.status)
        self.answered(keep_alive=keep_alive)

    def answered(self, *, keep_alive: bool) -> None:
        """The answer is whole: go on with the next request, or close."""
        self._request_over()
        if not keep_alive:
            self._close()
            return
        self._state = _IDLE
        if not self.write_paused:
            self.deadline = self._plane.now + self._plane.limits.keepalive_seconds
        if self._parser.buffered and not self._advancing:
            self._advance()

    def body_done(self) -> None:
        """Let go of the request's body; a long answer must not hold it."""
        if self._request is not None:
            self._request.body = b""
        self._plane.statistics.buffered_bytes -= self._reserved
        self._reserved = 0

    def cut(self, *, abort: bool) -> None:
        """End the connection in the middle of an answer."""
        self._request_over()
        if abort and self._transport is not None:
            # Closing in this way sends a reset: an orderly end would look like the end of the answer.
            connection = self._transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()
        else:
            self._close()

    # The steps of a request.

    def _advance(self) -> None:
        """Go as far as the bytes received allow."""
        self._advancing = True
        try:
            while self._state < _BUSY and not self.write_paused and self._step():
                pass
        except RequestError as error:
            self._refuse(error, error.code or "bad_request")
        finally:
            self._advancing = False
        if self._paused and not self.write_paused:
            self._resume_reading()

    def _step(self) -> bool:
        """Take one step; False when more bytes are needed or an answer is under way."""
        parser = self._parser
        if self._state != _BODY:
            head = parser.read_head()
            if head is None:
                self._await_head()
                return False
            if not self._admit(head):
                return True
        body = parser.read_body()
        if body is None:
            self._await_body()
            return False
        self._begin(body)
        return True

    def _await_head(self) -> None:
        """Wait for the rest of a head, for a time that more bytes do not prolong; or for the next request."""
        if not self._parser.buffered:
            self._state = _IDLE
        elif self._state == _IDLE:
            self._state = _HEAD
            self.deadline = self._plane.now + self._plane.limits.header_seconds

    def _admit(self, head: RequestHead) -> bool:
        """Let the dispatcher look at the request before its body is read."""
        plane, line = self._plane, head.line
        plane.statistics.requests += 1
        plane.statistics.requests_active += 1
        request = self._request = Request(
            head.request_id or plane.new_request_id(),
            line.method,
            line.path,
            line.query,
            head.headers,
            b"",
            self._peer,
            plane.clock(),
            head.asked,
            self._parser.length,
        )
        self._head = head
        try:
            refusal = plane.dispatcher.admit(request)
        except Exception as error:  # noqa: BLE001 - supervised edge: our errors are replies, others are counted
            refusal = error_reply(plane.failed("admit", error))
        if refusal is None:
            if self._parser.length > 0:
                self._reserve(self._parser.length)
            return True
        if head.chunked or self._parser.length > 0:
            self._last_reply(refusal)
        else:
            self.reply(refusal)
        return False

    def _await_body(self) -> None:
        head = self._head
        assert head is not None
        if head.chunked:
            self._reserve(self._parser.body_bytes - self._reserved)
        if self._state != _BODY:
            self._state = _BODY
            if head.expects_continue and not self._parser.body_bytes:
                self.send(CONTINUE)
        self.deadline = self._plane.now + self._plane.limits.body_seconds

    def _reserve(self, size: int) -> None:
        """Account for body bytes to be held in memory."""
        statistics = self._plane.statistics
        if statistics.buffered_bytes + size > self._plane.limits.buffered_bytes_max:
            raise RequestError(
                "too many request bytes are waiting", status=503, kind="server_error", code="buffers_full"
            )
        self._reserved += size
        statistics.buffered_bytes += size

    def _begin(self, body: bytes) -> None:
        """Answer a whole request, here or through a worker."""
        request, head = self._request, self._head
        assert request is not None
        assert head is not None
        request.body = body
        self._state = _BUSY
        try:
            reply = self._plane.dispatcher.try_local(request)
        except Exception as error:  # noqa: BLE001 - supervised edge: our errors are replies, others are counted
            reply = error_reply(self._plane.failed("try_local", error))
        if reply is not None:
            self.reply(reply)
            return
        if head.chunked:
            request.length = len(body)
        exchange = self._exchange = Exchange(self._plane, self, head, request)
        exchange.start()

    def _request_over(self) -> None:
        """Forget the current request."""
        statistics = self._plane.statistics
        if self._request is not None:
            statistics.requests_active -= 1
        statistics.buffered_bytes -= self._reserved
        self._reserved = 0
        self._exchange = self._request = self._head = None

    def _refuse(self, error: KvrouterError, code: str) -> None:
        """Answer what cannot be understood or is too much, and end the connection."""
        refusals = self._plane.statistics.refusals
        refusals[code] = refusals.get(code, 0) + 1
        self._last_reply(error_reply(error))

    def _last_reply(self, reply: Reply) -> None:
        """Answer while the client may still be sending, and take no more from it."""
        request, head, transport = self._request, self._head, self._transport
        if transport is None:
            return
        self.send(
            render_reply(
                reply,
                request_id=request.id if request is not None else "",
                date=self._plane.date,
                keep_alive=False,
                http10=head is not None and head.line.http10,
                head_only=head is not None and head.line.method == "HEAD",
            )
        )
        self._plane.statistics.count_reply(reply.status)
        self._request_over()
        self._linger(transport)

    def _close(self) -> None:
        """Close when everything has been sent; a client that does not read is cut off after a while."""
        self._state = _CLOSING
        self.deadline = self._plane.now + self._plane.limits.stall_seconds
        if self._transport is None:
            return
        if self._parser.buffered or self._paused:
            self._linger(self._transport)
        else:
            self._transport.close()

    def _linger(self, transport: asyncio.Transport) -> None:
        """Send what there is and the end, then read on for a moment: closing on unread bytes would send a reset."""
        limits = self._plane.limits
        self._state = _CLOSING
        unsent = transport.get_write_buffer_size()
        self.deadline = self._plane.now + (limits.stall_seconds if unsent else limits.linger_seconds)
        if self._paused:
            self._paused = False
            transport.resume_reading()
        if transport.can_write_eof():
            transport.write_eof()
        else:
            transport.close()

    def _pause_reading(self) -> None:
        """Leave further requests in the kernel's buffers once enough of them are here."""
        if self._parser.buffered > self._plane.limits.header_bytes_max and not self._paused:
            self._paused = True
            assert self._transport is not None
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        """Read on when little is left over, so that a client that leaves is noticed."""
        needed = self._state < _BUSY or self._parser.buffered <= self._plane.limits.header_bytes_max
        if needed and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
