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

HEAD_BYTES_MAX = 64 * 1024
_KEEP_ALIVE_SECONDS = 75
_LAST_SECONDS = 5


class _Protocol(HttpToolsProtocol):
    """What uvicorn leaves open: how large a head may be, how long it may take, and how to cut a deaf client."""

    head_seconds = 15.0
    _in_head = True
    _has_ended = False
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast("asyncio.Transport", transport))
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._has_ended = False
        super().data_received(data)
        if not self._in_head:
            return
        self._head_bytes = 0 if self._has_ended else self._head_bytes + len(data)
        if self._head_bytes > HEAD_BYTES_MAX:
            self.transport.abort()
        elif self._head_timer is None:
            self._watch_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        scope: Scope = cast("Scope", self.scope)
        # Closing waits for what is written; a client that reads nothing can only be cut.
        scope["kvrouter.abort"] = self.transport.abort

    def on_headers_complete(self) -> None:
        self._in_head, self._head_bytes = False, 0
        self._forget_head()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._has_ended = True
        super().on_message_complete()

    def _watch_head(self) -> None:
        self._head_timer = self.loop.call_later(self.head_seconds, self.transport.abort)

    def _forget_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


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
        self,
        app: ASGIApp,
        listener: socket.socket,
        *,
        head_seconds: float,
        certificate: Path | None = None,
        key: Path | None = None,
    ) -> None:
        config = uvicorn.Config(
            app,
            http=type("Protocol", (_Protocol,), {"head_seconds": head_seconds}),
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
