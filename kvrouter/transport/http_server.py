"""Takes requests over HTTP/2 (prior knowledge or TLS) and HTTP/1.1 on one port, on the event loop of the handlers.

The application (`http_app.py`) is plain ASGI and runs under granian or hypercorn too. This server is our own, on h2 and
uvicorn, because of how it ends: granian's embedded server goes on in threads of its own after it has stopped, which can
abort a process that exits, and its farewell may overtake answers, which h2's clients then lose; it takes no socket that
is bound already. hypercorn is several times slower than h2 alone.
"""

import asyncio
import socket
from collections.abc import Callable
from dataclasses import replace

from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.http_accepted import Served
from kvrouter.transport.http_app import Accept, Application, HttpApp, HttpAppOptions
from kvrouter.transport.tcp_connection import Heartbeat
from kvrouter.transport.tls import PlaneTls, ServerTls

__all__ = ["HttpRequestServer"]

_BACKLOG = 1024
_FLUSH_SECONDS = 5.0


class HttpRequestServer:
    """The server of the request plane over HTTP/2. With port 0 the system chooses one.

    `advertise` is the host that goes into the address; needed where `host` is a wildcard. With `response_port` answers
    that are fetched by a request of their own are served on a port of their own too. A client over HTTP/2 that is
    silent for `interval_seconds` of the heartbeat is asked for a sign of life, and lost after `timeout_seconds`.
    `wrap` puts another application around this one, `InstrumentedApp` for instance. `options` and `accept`
    are those of `HttpApp`.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        advertise: str | None = None,
        response_host: str | None = None,
        response_port: int | None = None,
        options: HttpAppOptions | None = None,
        accept: Accept | None = None,
        tls: PlaneTls | None = None,
        heartbeat: Heartbeat | None = None,
        wrap: Callable[[Application], Application] | None = None,
    ) -> None:
        self.endpoints = endpoints
        self._host, self._port, self._advertise = host, port, advertise
        self._response_host, self._response_port = response_host or host, response_port
        self._options = options if options is not None else HttpAppOptions()
        self._accept = accept
        self._tls = ServerTls(tls, alpn=("h2", "http/1.1")) if tls is not None and tls.serves else None
        self._heartbeat = heartbeat if heartbeat is not None else Heartbeat()
        self._wrap = wrap
        self._origin = ""
        self._app: HttpApp | None = None
        self._served: Served | None = None
        self._servers: list[asyncio.Server] = []

    @property
    def address(self) -> str:
        """Where clients reach it: the base URL of the request plane."""
        if self._app is None:
            raise RuntimeError("the server has not started")
        return self._origin + self._options.root

    @property
    def app(self) -> HttpApp:
        """The application that is served."""
        if self._app is None:
            raise RuntimeError("the server has not started")
        return self._app

    async def start(self) -> None:
        """Begin to listen. Raises OSError if an address is taken."""
        tls = {} if self._tls is None else self._tls.options()
        sockets = [_bound(self._host, self._port)]
        try:
            if self._response_port is not None:
                sockets.append(_bound(self._response_host, self._response_port))
        except OSError:
            sockets[0].close()
            raise
        options = self._options
        self._origin = self._origin_of(sockets[0])
        if len(sockets) > 1:
            options = replace(options, response_origin=self._origin_of(sockets[1]))
        self._app = HttpApp(self.endpoints, options, accept=self._accept)
        self._served = Served(self._app if self._wrap is None else self._wrap(self._app), self._heartbeat)
        loop = asyncio.get_running_loop()
        for each in sockets:
            self._servers.append(await loop.create_server(self._served.accept, sock=each, backlog=_BACKLOG, **tls))

    async def stop(self, *, drain_seconds: float = 0.0) -> None:
        """Take nothing more, let what runs finish for so long, tell the rest, and close. Idempotent."""
        if self._app is None or self._served is None:
            return
        await self.endpoints.drain(drain_seconds)
        # No farewell before every answer has left: a client takes nothing after it.
        await self._app.until_idle(_FLUSH_SECONDS)
        self._app.answers.close()
        self._app = None
        servers, self._servers = self._servers, []
        for server in servers:
            server.close()
        await self._served.close()
        for server in servers:
            await server.wait_closed()

    def _origin_of(self, listening: socket.socket) -> str:
        host, port = listening.getsockname()[:2]
        host = self._advertise or host
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _bound(host: str, port: int) -> socket.socket:
    """A listening socket; raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(_BACKLOG)
        listening.settimeout(0)
    except OSError:
        listening.close()
        raise
    return listening
