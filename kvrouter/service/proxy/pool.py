"""Connections to workers, kept per endpoint.

Idle connections are reused last in, first out: the warmest first, so that the rest expire before the worker closes
them. The number of connections per endpoint is bounded; those who wait for one are served in order.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable

from .limits import ProxyLimits
from .messages import Endpoint
from .replies import UpstreamError
from .upstream import Upstream, UpstreamConnection

__all__ = ["UpstreamPool"]


class UpstreamPool:
    """The connections of this process to all workers. Its owner calls `expire` now and then, and `close`."""

    def __init__(self, limits: ProxyLimits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._endpoints: dict[Endpoint, _EndpointPool] = {}

    def set_limits(self, limits: ProxyLimits) -> None:
        """Take other limits; connections that are there stay."""
        self._limits = limits
        for pool in self._endpoints.values():
            pool.limits = limits

    def take(self, endpoint: Endpoint) -> UpstreamConnection | None:
        """Return an idle connection, or None. The hot path: no waiting."""
        pool = self._endpoints.get(endpoint)
        return None if pool is None else pool.take()

    async def connect(self, endpoint: Endpoint, *, reserved: bool = False) -> Upstream:
        """Return a new connection, or one given back while all were in use; `reserved` ignores that bound.

        Raises:
            UpstreamError: no connection in time; outcome `connect_failed` or `saturated`.
        """
        if endpoint.open is not None:
            return endpoint.open()
        pool = self._endpoints.get(endpoint)
        if pool is None:
            pool = self._endpoints[endpoint] = _EndpointPool(self._limits, self._clock)
        return await pool.connect(endpoint, reserved=reserved)

    def forget(self, endpoint: Endpoint) -> None:
        """Close the idle connections of an endpoint that is not routed to any more."""
        pool = self._endpoints.get(endpoint)
        if pool is not None:
            pool.close()

    def expire(self) -> None:
        """Close what has been idle for too long; forget endpoints without connections."""
        now = self._clock()
        for endpoint, pool in list(self._endpoints.items()):
            pool.expire(now)
            if not pool.in_use:
                del self._endpoints[endpoint]

    def connections(self, endpoint: Endpoint) -> tuple[int, int]:
        """Return how many connections to `endpoint` are open, and how many of them idle."""
        pool = self._endpoints.get(endpoint)
        return (0, 0) if pool is None else (pool.open, len(pool.idle))

    def close(self) -> None:
        """Close every idle connection; those in use belong to their exchanges."""
        for pool in self._endpoints.values():
            pool.close()


class _EndpointPool:
    """The connections to one endpoint."""

    __slots__ = ("_clock", "connecting", "idle", "limits", "open", "waiting")

    def __init__(self, limits: ProxyLimits, clock: Callable[[], float]) -> None:
        self.limits, self._clock = limits, clock
        self.idle: dict[UpstreamConnection, None] = {}
        self.open = self.connecting = 0
        self.waiting: deque[asyncio.Future[UpstreamConnection | None]] = deque()

    @property
    def in_use(self) -> bool:
        return bool(self.open or self.connecting or self.waiting)

    def take(self) -> UpstreamConnection | None:
        while self.idle:
            connection, _ = self.idle.popitem()
            if self._clock() - connection.idle_since < self.limits.pool_idle_seconds:
                return connection
            connection.abort()
        return None

    def opened(self) -> None:
        self.open += 1

    def released(self, connection: UpstreamConnection) -> None:
        if self.waiting and self._hand_over(connection):
            return
        if len(self.idle) >= self.limits.pool_idle_max:
            connection.abort()
            return
        connection.idle_since = self._clock()
        self.idle[connection] = None

    def closed(self, connection: UpstreamConnection) -> None:
        self.open -= 1
        self.idle.pop(connection, None)
        self._hand_over(None)

    def expire(self, now: float) -> None:
        oldest_first = list(self.idle)
        for connection in oldest_first:
            if now - connection.idle_since < self.limits.pool_idle_seconds:
                break
            connection.abort()

    def close(self) -> None:
        for connection in list(self.idle):
            connection.abort()

    async def connect(self, endpoint: Endpoint, *, reserved: bool) -> UpstreamConnection:
        while not reserved and self.open + self.connecting >= self.limits.worker_connections_max:
            handed_over = await self._wait()
            if handed_over is not None and handed_over.connected:
                return handed_over
        self.connecting += 1
        try:
            return await self._open(endpoint)
        finally:
            self.connecting -= 1

    async def _open(self, endpoint: Endpoint) -> UpstreamConnection:
        """Connect; a failure frees a place for the next one that waits."""
        connection = UpstreamConnection(self)
        try:
            async with asyncio.timeout(self.limits.connect_seconds):
                await _connect(endpoint, connection)
        except TimeoutError as error:
            reason = f"no connection within {self.limits.connect_seconds:g} s"
            raise UpstreamError(reason, outcome="connect_failed") from error
        except OSError as error:
            reason = f"cannot connect: {error.strerror or error}"
            raise UpstreamError(reason, outcome="connect_failed") from error
        finally:
            if not connection.connected:
                self._hand_over(None)
        return connection

    async def _wait(self) -> UpstreamConnection | None:
        """Wait for a connection that another gives back, or (None) for a place to open one."""
        waiter: asyncio.Future[UpstreamConnection | None] = asyncio.get_running_loop().create_future()
        self.waiting.append(waiter)
        try:
            async with asyncio.timeout(self.limits.connect_seconds):
                return await waiter
        except TimeoutError as error:
            self._stop_waiting(waiter)
            reason = f"all {self.limits.worker_connections_max} connections are in use"
            raise UpstreamError(reason, outcome="saturated") from error
        except asyncio.CancelledError:
            self._stop_waiting(waiter)
            raise

    def _stop_waiting(self, waiter: "asyncio.Future[UpstreamConnection | None]") -> None:
        """Leave the queue; what was handed over in the same moment goes to the next one."""
        if waiter in self.waiting:
            self.waiting.remove(waiter)
        if not waiter.done() or waiter.cancelled():
            return
        connection = waiter.result()
        if connection is None:
            self._hand_over(None)
        else:
            connection.release(reusable=True)

    def _hand_over(self, connection: UpstreamConnection | None) -> bool:
        while self.waiting:
            waiter = self.waiting.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return True
        return False


async def _connect(endpoint: Endpoint, connection: UpstreamConnection) -> None:
    loop = asyncio.get_running_loop()
    name = (endpoint.host or None) if endpoint.tls is not None else None
    if endpoint.unix_path is not None:
        await loop.create_unix_connection(
            lambda: connection, endpoint.unix_path, ssl=endpoint.tls, server_hostname=name
        )
    else:
        await loop.create_connection(
            lambda: connection, endpoint.host, endpoint.port, ssl=endpoint.tls, server_hostname=name
        )
