"""uvicorn inside our event loop: on a port or a unix socket, and signals stay ours."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import uvicorn
from starlette.types import ASGIApp

__all__ = ["EmbeddedServer"]

_KEEP_ALIVE_SECONDS = 75


class _Server(uvicorn.Server):
    """uvicorn alone would take over SIGTERM and raise it again after its end."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.accepting = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.accepting.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class EmbeddedServer:
    """Serves an application on a socket that listens, or on a unix socket that it makes."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        listener: socket.socket | None = None,
        unix_path: str | None = None,
        certificate: Path | None = None,
        key: Path | None = None,
        drain_seconds: int = 5,
        http: type[asyncio.Protocol] | Literal["auto"] = "auto",
    ) -> None:
        config = uvicorn.Config(
            app,
            uds=unix_path,
            http=http,
            ws="none",
            ssl_certfile=certificate,
            ssl_keyfile=key,
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=drain_seconds,
        )
        self._server = _Server(config)
        self._sockets = None if listener is None else [listener]

    async def run(self) -> None:
        """Serve until `stop`, and until what is then being answered has ended."""
        try:
            await self._server.serve(self._sockets)
        finally:
            self._server.accepting.set()

    async def started(self) -> None:
        """Wait until connections are accepted, or `run` has ended without."""
        await self._server.accepting.wait()

    def stop(self) -> None:
        """Accept nothing more."""
        self._server.should_exit = True
