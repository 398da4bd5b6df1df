"""The gateway's connections: bounds on heads, and an application may cut a connection that takes nothing."""

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from starlette.types import ASGIApp, Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from kvrouter.service.embedded import EmbeddedServer

__all__ = ["ConnectionBounds", "gateway_server"]

HEAD_BYTES_MAX = 64 * 1024


class _Protocol(HttpToolsProtocol):
    """What uvicorn leaves open: how large a head may be, how long it may take, and clients that take no answer."""

    bounds: "ConnectionBounds"
    _in_head = True
    _has_ended = False
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None
    _answer_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast("asyncio.Transport", transport))
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_head()
        self._forget_answer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._has_ended = False
        super().data_received(data)
        if not self._in_head:
            return
        self._head_bytes = 0 if self._has_ended else self._head_bytes + len(data)
        if self._head_bytes > HEAD_BYTES_MAX:
            self._cut("head_bytes")
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

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._forget_answer()
        self._watch_answer(None)

    def _watch_head(self) -> None:
        self._head_timer = self.loop.call_later(self.bounds.head_seconds, self._cut, "head_seconds")

    def _forget_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _watch_answer(self, before: int | None) -> None:
        """Cut a client that takes nothing of an answer that is written: it would be kept for ever."""
        left = self.transport.get_write_buffer_size()
        if left and left == before:
            self._cut("slow_client")
        elif left:
            self._answer_timer = self.loop.call_later(self.bounds.idle_seconds, self._watch_answer, left)

    def _forget_answer(self) -> None:
        if self._answer_timer is not None:
            self._answer_timer.cancel()
            self._answer_timer = None

    def _cut(self, reason: str) -> None:
        self.bounds.on_cut(reason)
        self.transport.abort()


@dataclass(frozen=True, slots=True)
class ConnectionBounds:
    """How long a client may take.

    Attributes:
        head_seconds: for a request's head.
        idle_seconds: without taking a byte of an answer that is written.
        on_cut: hears why a connection was cut: head_bytes, head_seconds or slow_client.
    """

    head_seconds: float
    idle_seconds: float
    on_cut: Callable[[str], None]


def gateway_server(
    app: ASGIApp,
    listener: socket.socket,
    bounds: ConnectionBounds,
    *,
    certificate: Path | None = None,
    key: Path | None = None,
) -> EmbeddedServer:
    """Return what serves the gateway's application on a socket that listens."""
    protocol = type("Protocol", (_Protocol,), {"bounds": bounds})
    return EmbeddedServer(app, listener=listener, http=protocol, certificate=certificate, key=key)
