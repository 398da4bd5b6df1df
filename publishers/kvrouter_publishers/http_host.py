"""The thread and the address that HTTP publishers share: binds, serves, and runs what belongs to its event loop.

The loop is the standard library's and only this thread runs it; an engine's own loop is never touched. What is
answered is `http_desk`'s, how bytes come and go is `http_server`'s.
"""

import asyncio
import concurrent.futures
import ipaddress
import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Coroutine
from typing import Any, Final, Self, TypeVar

from kvrouter.errors import SettingsError
from kvrouter_publishers.http_desk import EventDesk
from kvrouter_publishers.http_request import Answer, Request
from kvrouter_publishers.http_server import HttpServer, ServerLimits

__all__ = ["HttpEventServer"]

_log = logging.getLogger("kvrouter_publishers")

_T = TypeVar("_T")
_BACKLOG: Final = 128
_TIDY_SECONDS: Final = 1.0
_JOIN_SECONDS: Final = 1.0
_KEY_CHARACTERS_MAX: Final = 4096


class HttpEventServer:
    """Serves the streams of any number of `HttpEventPublisher`s, from one thread.

    A publisher that is given an address builds one of its own. Build it where several ranks or workers of one process
    share an address, or where an engine's own web server answers (`http_asgi`).

    Args:
        endpoint: `host:port`; port 0 is one that the system chooses. None listens nowhere, for `EventsApplication`.
        api_key: what clients must send as a bearer token; `/health` is open.
        insecure: allow an address beyond this machine without a key.
        tls: serve HTTPS with this context's certificate.
        limits: the bounds of connections.
        wait_seconds_max: the longest poll.
        polls_max: polls that may wait at once.
        answer_bytes_max: an answer of events ends with the frame that would exceed it.

    Raises:
        SettingsError: the address is malformed, cannot be bound, or is open to others without a key.
    """

    def __init__(
        self,
        endpoint: str | None,
        *,
        api_key: str | None = None,
        insecure: bool = False,
        tls: ssl.SSLContext | None = None,
        limits: ServerLimits | None = None,
        wait_seconds_max: float = 60.0,
        polls_max: int = 512,
        answer_bytes_max: int = 4 << 20,
    ) -> None:
        if api_key is not None and not (0 < len(api_key) <= _KEY_CHARACTERS_MAX and _is_token(api_key)):
            raise SettingsError("api_key must be printable ASCII without spaces")
        self._socket = None if endpoint is None else _listen(endpoint, is_open=api_key is None and not insecure)
        self.endpoint = None if self._socket is None else _url(self._socket, secure=tls is not None)
        self.desk = EventDesk(
            clock=time.monotonic,
            wait_seconds_max=wait_seconds_max,
            polls_max=polls_max,
            answer_bytes_max=answer_bytes_max,
        )
        self._server = HttpServer(self.desk.answer, api_key=api_key, limits=limits or ServerLimits())
        self._tls = tls
        self._process = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._grace_seconds = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kvrouter-http-server", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether the thread runs, and belongs to this process."""
        return not self._ended.is_set() and os.getpid() == self._process

    def submit(self, work: Coroutine[Any, Any, _T]) -> concurrent.futures.Future[_T]:
        """Run a coroutine on the server's loop; called from any other thread. It is cancelled when the server ends."""
        if not self.running:
            work.close()
            future: concurrent.futures.Future[_T] = concurrent.futures.Future()
            future.cancel()
            return future
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def respond_to(self, request: Request) -> Answer:
        """Answer a request that came another way than through our own socket; awaited on any loop."""
        return await asyncio.wrap_future(self.submit(self._server.respond_to(request)))

    def counts(self) -> dict[str, int]:
        """Return the server's counters since the start, and its state now."""
        return {**self._server.counts(), **self.desk.counts()}

    def close(self, *, timeout_seconds: float = 1.0) -> None:
        """Let answers that are under way end, at most so long, then stop. May be called again."""
        if os.getpid() != self._process:
            return  # Sockets and thread belong to the parent.
        self._grace_seconds = timeout_seconds
        if not self._ended.is_set():
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(timeout_seconds + _JOIN_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        """The thread's body: one supervised edge, so that a fault is told instead of vanishing."""
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._serve())
                self._ended.set()  # Before the loop goes, so that nothing more is submitted to it.
        except Exception:  # noqa: BLE001 - told; publishers see that their streams have ended
            _log.exception("kvrouter_http_server_stopped")
        finally:
            self._ended.set()
            if self._socket is not None:
                self._socket.close()

    async def _serve(self) -> None:
        if self._socket is not None:
            await self._server.start(self._socket, self._tls)
        while not self._stopping.is_set():
            self.desk.tidy()
            try:
                async with asyncio.timeout(_TIDY_SECONDS):
                    await self._stopping.wait()
            except TimeoutError:
                continue
        await self._server.close(grace_seconds=self._grace_seconds)


def _listen(endpoint: str, *, is_open: bool) -> socket.socket:
    """Bind in the caller's thread, so that a wrong address fails here and not in the background."""
    host, mark, port = endpoint.removeprefix("http://").rpartition(":")
    if not mark or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise SettingsError(f"cannot publish events on {endpoint!r}: it must look like host:port")
    host = "" if host == "*" else host.strip("[]")
    if is_open and not _is_loopback(host):
        ways = "give api_key (--api-key), or say insecure=True (--insecure)"  # In code, and of `kvrouter events relay`.
        raise SettingsError(f"refusing to bind {endpoint} without a key: {ways}")
    try:
        family, *_ = socket.getaddrinfo(host or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server((host, int(port)), family=family, backlog=_BACKLOG)
    except (OSError, UnicodeError) as error:
        raise SettingsError(f"cannot publish events on {endpoint}: {error}") from error


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_token(key: str) -> bool:
    return key.isascii() and key.isprintable() and " " not in key


def _url(bound: socket.socket, *, secure: bool) -> str:
    host, port = bound.getsockname()[:2]
    return f"http{'s' if secure else ''}://{f'[{host}]' if ':' in host else host}:{port}"
