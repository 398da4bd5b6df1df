"""Takes requests over HTTP/2 (prior knowledge or TLS) and HTTP/1.1 on one port: `http_app.py` on granian.

granian, because it speaks both on one port, holds up handlers whose client does not read, tells of a cancelled stream
at once, and parses in native code: about ten times the requests per second of hypercorn, the other ASGI server that
speaks HTTP/2. It runs on the event loop of the handlers, its sockets in threads of its own. Its embedded server takes
no socket that is bound already, so this hands it one: with port 0 nobody can take the port in between.
"""

import asyncio
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvrouter.errors import MissingExtraError
from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.http_app import Application, HttpApp, HttpAppOptions
from kvrouter.transport.http_settings import HttpTls
from kvrouter.transport.tcp_connection import Heartbeat

try:
    from granian.constants import HTTPModes, Interfaces
    from granian.http import HTTP2Settings
    from granian.net import SocketHolder  # type: ignore[attr-defined]  # not in its __all__
    from granian.server.embed import Server
except ImportError as missing:
    raise MissingExtraError("the server of the request plane over HTTP/2", "http2") from missing

__all__ = ["HttpRequestServer"]

_holder: Any = SocketHolder  # its stub does not tell of its arguments

_BACKLOG = 1024
_STREAMS_MAX = 1000
_HELD_REQUESTS_MAX = 1 << 14
_FLUSH_SECONDS = 5.0


class HttpRequestServer:
    """The server of the request plane over HTTP/2. With port 0 the system chooses one.

    `advertise` is the host that goes into the address; needed where `host` is a wildcard. With `response_port` answers
    that are fetched by a request of their own are served on a port of their own too. A client over HTTP/2 that is
    silent for `interval_seconds` of the heartbeat is asked for a sign of life, and lost if none comes within its
    `timeout_seconds`, whole ones. `wrap` puts another application around this one, `InstrumentedApp` for instance.
    `options`, `authorise` and `accept` are those of `HttpApp`. The key of a certificate is PKCS #8.
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
        authorise: Callable[[str | None], bool] | None = None,
        accept: Callable[[bytes], None] | None = None,
        tls: HttpTls | None = None,
        heartbeat: Heartbeat | None = None,
        wrap: Callable[[Application], Application] | None = None,
    ) -> None:
        self.endpoints = endpoints
        self._host, self._port, self._advertise = host, port, advertise
        self._response_host, self._response_port = response_host or host, response_port
        self._options = options if options is not None else HttpAppOptions()
        self._authorise, self._accept = authorise, accept
        self._tls = tls if tls is not None else HttpTls()
        self._heartbeat = heartbeat if heartbeat is not None else Heartbeat(interval_seconds=30, timeout_seconds=10)
        self._wrap = wrap
        self._origin = ""
        self._app: HttpApp | None = None
        self._servers: list[tuple[_Granian, asyncio.Task[None]]] = []

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
        self._app = HttpApp(self.endpoints, options, authorise=self._authorise, accept=self._accept)
        served = self._app if self._wrap is None else self._wrap(self._app)
        for each in sockets:
            server = _Granian(served, each, self._tls, self._heartbeat)
            task = asyncio.create_task(server.serve(), name=f"http {self._origin}")
            self._servers.append((server, task))
            await server.began(task)

    async def stop(self, *, drain_seconds: float = 0.0) -> None:
        """Take nothing more, let what runs finish for so long, tell the rest, and close. Idempotent."""
        if self._app is None:
            return
        await self.endpoints.drain(drain_seconds)
        # No farewell before every answer has left: a client takes nothing after it.
        await self._app.until_idle(_FLUSH_SECONDS)
        self._app.answers.close()
        self._app = None
        servers, self._servers = self._servers, []
        for server, _ in servers:
            server.stop()  # type: ignore[no-untyped-call]
        await asyncio.gather(*(task for _, task in servers), return_exceptions=True)

    def _origin_of(self, listening: socket.socket) -> str:
        host, port = listening.getsockname()[:2]
        host = self._advertise or host
        scheme = "https" if self._tls.serves else "http"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


class _Granian(Server):
    """granian in this event loop, on a socket that is bound already."""

    def __init__(self, app: Application, listening: socket.socket, tls: HttpTls, heartbeat: Heartbeat) -> None:
        super().__init__(
            app,
            interface=Interfaces.ASGINL,
            http=HTTPModes.auto,
            websockets=False,
            backlog=_BACKLOG,
            backpressure=_HELD_REQUESTS_MAX,
            http2_settings=HTTP2Settings(
                max_concurrent_streams=_STREAMS_MAX,
                max_frame_size=1 << 20,
                keep_alive_interval=max(1, int(heartbeat.interval_seconds * 1000)),
                keep_alive_timeout=max(1, int(heartbeat.timeout_seconds)),
            ),
            log_enabled=False,
            ssl_cert=_path(tls.cert_path),
            ssl_key=_path(tls.key_path),
            ssl_ca=_path(tls.client_ca_path),
            ssl_client_verify=tls.client_ca_path is not None,
        )
        self._listening = listening

    async def began(self, task: "asyncio.Task[None]") -> None:
        """Wait until it serves; raises what kept it from that."""
        while not self.wrks:
            if task.done():
                await task
            await asyncio.sleep(0)

    def _init_shared_socket(self) -> None:
        # It closes what it is given.
        is_unix_socket = False
        self._shd: Any = _holder(self._listening.detach(), is_unix_socket, _BACKLOG)


def _bound(host: str, port: int) -> socket.socket:
    """A listening socket; raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # those that it accepts have it from it
        listening.bind(address)
        listening.listen(_BACKLOG)
        listening.settimeout(0)
    except OSError:
        listening.close()
        raise
    return listening


def _path(path: str | None) -> Path | None:
    return None if path is None else Path(path)
