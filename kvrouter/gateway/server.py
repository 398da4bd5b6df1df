"""uvicorn inside our event loop: signals stay ours, and an application may cut a connection that takes nothing."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import uvicorn
from starlette.types import ASGIApp, Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["HttpServer"]

_KEEP_ALIVE_SECONDS = 75
_LAST_SECONDS = 5


class _Protocol(HttpToolsProtocol):
    """Closing waits for what is written; a client that reads nothing can only be cut."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        scope: Scope = cast("Scope", self.scope)
        scope["kvrouter.abort"] = self.transport.abort


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.accepting = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.accepting.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave SIGTERM alone: it would be raised again after the end."""
        yield


class HttpServer:
    """Serves an application on a socket that listens."""

    def __init__(
        self, app: ASGIApp, listener: socket.socket, *, certificate: Path | None = None, key: Path | None = None
    ) -> None:
        config = uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            ssl_certfile=certificate,
            ssl_keyfile=key,
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_LAST_SECONDS,
        )
        self._server = _Server(config)
        self._listener = listener

    async def run(self) -> None:
        """Serve until `stop`, and until what is then being answered has ended."""
        await self._server.serve([self._listener])

    async def started(self) -> None:
        """Wait until connections are accepted."""
        await self._server.accepting.wait()

    def stop(self) -> None:
        """Accept nothing more."""
        self._server.should_exit = True
