"""The gateway's connections: bounds on heads, and an application may cut a connection that takes nothing."""

import asyncio
import socket
from pathlib import Path
from typing import cast

from starlette.types import ASGIApp, Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from kvrouter.service.embedded import EmbeddedServer

__all__ = ["gateway_server"]

HEAD_BYTES_MAX = 64 * 1024


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


def gateway_server(
    app: ASGIApp,
    listener: socket.socket,
    *,
    head_seconds: float,
    certificate: Path | None = None,
    key: Path | None = None,
) -> EmbeddedServer:
    """Return what serves the gateway's application on a socket that listens."""
    protocol = type("Protocol", (_Protocol,), {"head_seconds": head_seconds})
    return EmbeddedServer(app, listener=listener, http=protocol, certificate=certificate, key=key)
