"""The data plane's server: listens, sweeps deadlines, drains. Not a place for routing or policy."""

import asyncio
import socket
import ssl as tls
import time
from collections.abc import Callable
from typing import Any

from kvrouter.errors import OverloadedError

from .client import ClientConnection
from .limits import ProxyLimits, ProxyStatistics
from .messages import Dispatcher
from .plane import DataPlane, ErrorHook
from .pool import UpstreamPool

__all__ = ["ProxyServer"]

_BACKLOG = 4096
_DRAIN_POLL_SECONDS = 0.02
_CLOSE_TURNS_MAX = 1000


class ProxyServer:
    """An HTTP/1.1 server that answers through a dispatcher.

    Order of use: `start`; to stop, `begin_drain` (answers say Connection: close, new requests are still taken),
    `drain` (no new connections, wait for what is under way, then cut it), `close`.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        limits: ProxyLimits | None = None,
        *,
        pool: UpstreamPool | None = None,
        on_error: ErrorHook | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits or ProxyLimits()
        self.pool = pool or UpstreamPool(self._limits, clock=clock)
        """Connections to workers; `fetch` uses it too."""
        self._plane = DataPlane(dispatcher, self._limits, pool=self.pool, on_error=on_error, clock=clock)
        self._connections: set[ClientConnection] = set()
        self._servers: list[asyncio.Server] = []
        self._sweep_timer: asyncio.TimerHandle | None = None

    def change(self, dispatcher: Dispatcher, limits: ProxyLimits) -> None:
        """Serve through another dispatcher, within other limits, from the next call on.

        Who is connected stays, and what is under way goes on where it is. Only bounds on single heads stay as they were
        at the start: the number of header lines, and the length of the target.
        """
        self._limits = self._plane.limits = limits
        self._plane.dispatcher = dispatcher
        self._plane.route_lines.clear()
        self.pool.set_limits(limits)
        for connection in self._connections:
            connection.set_limits(limits)

    @property
    def statistics(self) -> ProxyStatistics:
        """Counts of everything that happened."""
        return self._plane.statistics

    @property
    def port(self) -> int:
        """The TCP port of the first listener; 0 before `start` and after the listeners are closed."""
        for server in self._servers:
            for each in server.sockets:
                return int(each.getsockname()[1])
        return 0

    async def start(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        ssl: tls.SSLContext | None = None,
        *,
        sock: socket.socket | None = None,
    ) -> None:
        """Listen; may be called again for another address. With `sock`, listen on that bound socket."""
        loop = asyncio.get_running_loop()
        options: dict[str, Any] = {"ssl": ssl, "backlog": _BACKLOG}
        if ssl is not None:
            options["ssl_handshake_timeout"] = self._limits.header_seconds
            options["ssl_shutdown_timeout"] = self._limits.linger_seconds
        if sock is not None:
            server = await loop.create_server(self._accept, sock=sock, **options)
        else:
            server = await loop.create_server(self._accept, host, port, **options)
        self._servers.append(server)
        if self._sweep_timer is None:
            self._sweep()

    def begin_drain(self) -> None:
        """From now on every answer says Connection: close."""
        self._plane.draining = True

    def stop_listening(self) -> None:
        """Take no more connections."""
        for server in self._servers:
            server.close()
        self._servers.clear()

    async def drain(self, seconds: float) -> int:
        """Stop listening, wait up to `seconds` for requests under way, cut the rest and return how many they were."""
        self.begin_drain()
        self.stop_listening()
        deadline = self._plane.clock() + seconds
        while True:
            for connection in list(self._connections):
                connection.close_if_idle()
            busy = sum(connection.busy for connection in self._connections)
            if not busy or self._plane.clock() >= deadline:
                break
            await asyncio.sleep(_DRAIN_POLL_SECONDS)
        if busy:
            for connection in list(self._connections):
                connection.stop(OverloadedError("the router is stopping"))
            await asyncio.sleep(_DRAIN_POLL_SECONDS)  # what they were told is sent
        for connection in list(self._connections):
            connection.abort()
        return busy

    async def close(self) -> None:
        """Stop everything at once; idempotent."""
        self.stop_listening()
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
            self._sweep_timer = None
        for connection in list(self._connections):
            connection.abort()
        await self._plane.cancel_tasks()
        self.pool.close()
        await self._wait_closed()

    async def __aenter__(self) -> "ProxyServer":
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def _wait_closed(self) -> None:
        """Give the transports the turns of the loop that they need to close."""
        for _ in range(_CLOSE_TURNS_MAX):
            await asyncio.sleep(0)
            if not self._connections:
                break

    def _accept(self) -> ClientConnection:
        return ClientConnection(self._plane, self._connections)

    def _sweep(self) -> None:
        """Look at all deadlines; one timer for all connections."""
        self._sweep_timer = asyncio.get_running_loop().call_later(self._limits.sweep_seconds, self._sweep)
        plane = self._plane
        plane.tick()
        # Deadlines were set by a clock that may be one sweep late: never act early.
        due = plane.now - self._limits.sweep_seconds
        for connection in [each for each in self._connections if each.deadline < due]:
            connection.expired()
        self.pool.expire()
