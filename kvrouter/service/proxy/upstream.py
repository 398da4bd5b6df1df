"""One connection to a worker: carries one exchange at a time, and goes back to its pool in between.

It knows nothing of HTTP; its consumer does. `Upstream` is what exchanges need of it, so that workers may be reached by
other means than a socket.
"""

import asyncio
from typing import Protocol, cast

__all__ = ["ConnectionHome", "ResponseConsumer", "Upstream", "UpstreamConnection"]


class ResponseConsumer(Protocol):
    """Takes what a worker answers on the connection it was given."""

    def response_data(self, data: bytes) -> None:
        """Take the next bytes."""
        ...

    def response_ended(self, error: Exception | None) -> None:
        """Learn that the connection is gone: closed by the worker (None) or broken."""
        ...


class Upstream(Protocol):
    """A way to a worker for one exchange at a time. It takes a request and tells `consumer` the answer, in HTTP/1.1."""

    consumer: ResponseConsumer | None

    @property
    def used(self) -> bool:
        """It has carried a whole exchange before, so the worker may have closed it meanwhile."""
        ...

    def send(self, head: bytes, body: bytes = b"") -> None:
        """Send a request; a short body had better be part of `head`."""
        ...

    def pause(self) -> None:
        """Take no more of the answer for now."""
        ...

    def resume(self) -> None:
        """Go on after `pause`."""
        ...

    def release(self, *, reusable: bool) -> None:
        """The answer was taken; `reusable`: wholly, and nothing else came."""
        ...

    def abort(self) -> None:
        """Give up what is under way; the worker learns of it. The consumer is told nothing more."""
        ...


class ConnectionHome(Protocol):
    """Where a connection belongs: the pool of its endpoint."""

    def opened(self) -> None:
        """Count a connection that has been made."""
        ...

    def released(self, connection: "UpstreamConnection") -> None:
        """Take a connection back that may be used again."""
        ...

    def closed(self, connection: "UpstreamConnection") -> None:
        """Forget a connection that is gone."""
        ...


class UpstreamConnection(asyncio.Protocol):
    """A connection to a worker; `consumer` is set while a request is on it."""

    __slots__ = ("_paused", "_pool", "_transport", "consumer", "idle_since", "used")

    def __init__(self, pool: ConnectionHome) -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._paused = False
        self.consumer: ResponseConsumer | None = None
        self.used = False
        """It has carried a whole exchange before, so the worker may have closed it meanwhile."""
        self.idle_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport."""
        self._transport = cast("asyncio.Transport", transport)
        self._pool.opened()

    def data_received(self, data: bytes) -> None:
        """Hand bytes to the consumer; bytes that nobody asked for end the connection."""
        if self.consumer is not None:
            self.consumer.response_data(data)
        else:
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the consumer and the pool."""
        self._transport = None
        self._pool.closed(self)
        consumer, self.consumer = self.consumer, None
        if consumer is not None:
            consumer.response_ended(exc)

    @property
    def connected(self) -> bool:
        """It is open as far as we know."""
        return self._transport is not None

    def send(self, head: bytes, body: bytes = b"") -> None:
        """Send a request; a short body had better be part of `head`."""
        assert self._transport is not None
        if body:
            self._transport.writelines((head, body))
        else:
            self._transport.write(head)

    def pause(self) -> None:
        """Stop reading from the worker."""
        if self._transport is not None and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read from the worker again."""
        if self._transport is not None and self._paused:
            self._paused = False
            self._transport.resume_reading()

    def release(self, *, reusable: bool) -> None:
        """Give the connection back after an exchange; one that is not `reusable` is closed."""
        self.consumer = None
        transport = self._transport
        if transport is None:
            return
        if reusable and not transport.get_write_buffer_size() and not transport.is_closing():
            self.used = True
            if self._paused:
                self.resume()
            self._pool.released(self)
        else:
            self.abort()

    def abort(self) -> None:
        """Close at once; the worker sees it and stops working on the request."""
        self.consumer = None
        if self._transport is not None:
            self._transport.abort()
