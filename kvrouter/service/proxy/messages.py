"""The words that the data plane and its dispatcher exchange: endpoints, routes, requests, replies, usage.

The data plane knows nothing of workers or routing beyond these; the dispatcher knows nothing of sockets.
"""

import ssl
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Literal, Protocol

import msgspec

from .upstream import Upstream

__all__ = ["Companion", "Dispatcher", "Endpoint", "Outcome", "Reply", "Request", "Route", "Usage"]

Outcome = Literal[
    "ok", "error_status", "client_gone", "connect_failed", "saturated", "upstream_lost", "timeout", "bad_response"
]
"""How an attempt ended. `ok`: a whole answer below 500. `error_status`: a whole answer of 500 or more.
`client_gone`: the client left or stopped reading. `connect_failed`: no connection. `saturated`: every connection to
the worker is in use. `upstream_lost`: closed before the answer ended. `timeout`: silent for too long.
`bad_response`: the worker broke HTTP."""


class Endpoint:
    """Where bytes go. Compared by identity: keep one per worker, its connection pool hangs on it.

    Args:
        host: name or address.
        port: TCP port.
        tls: context for TLS to the worker, or None.
        unix_path: connect to this socket instead of host and port.
        host_header: value of the Host header; empty: made from host and port.
        path_prefix: put before every path, without a final slash: the path of the worker's base URL.
        authorization: value of Authorization for the worker; None keeps the client's, empty removes it.
        open: makes a way to the worker for one exchange, if it is not reached by connections of the pool.
    """

    __slots__ = (
        "authorization",
        "authorization_line",
        "host",
        "host_header",
        "open",
        "path_prefix",
        "port",
        "tls",
        "unix_path",
    )

    def __init__(
        self,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None = None,
        unix_path: str | None = None,
        host_header: bytes = b"",
        path_prefix: bytes = b"",
        authorization: bytes | None = None,
        open: Callable[[], Upstream] | None = None,  # noqa: A002 - the field's name
    ) -> None:
        self.open = open
        self.host, self.port, self.tls, self.unix_path = host, port, tls, unix_path
        self.path_prefix, self.authorization = path_prefix, authorization
        self.authorization_line = b"authorization: %b\r\n" % authorization if authorization else authorization
        """As a line with its CRLF; None and empty as `authorization`."""
        self.host_header = host_header or (b"localhost" if unix_path is not None else str(self).encode("ascii"))

    def __str__(self) -> str:
        if self.unix_path is not None:
            return f"unix:{self.unix_path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Companion(Protocol):
    """A request that was sent to another worker, and on whose success an attempt depends."""

    @property
    def worker_id(self) -> str:
        """Left out of further attempts if it fails."""
        ...

    @property
    def failure(self) -> str | None:
        """Why it failed; None as long as it has not."""
        ...

    @property
    def refusal(self) -> "Reply | None":
        """What its worker answered, if that says that the request is wrong: the client gets it."""
        ...

    def on_failure(self, call: Callable[[], None]) -> None:
        """Call `call` once if it fails; at once if it has failed already."""
        ...


class Route(msgspec.Struct, eq=False):
    """Where one attempt of one request goes."""

    endpoint: Endpoint
    worker_id: str
    """Empty for what is no worker, such as our own admin API: the answer does not name it."""
    overlap_tokens: int = 0
    extra_headers: bytes = b""
    """Ready-made header lines, each with its CRLF; they replace the client's lines of the same names."""
    token: object = None
    """Whatever the dispatcher needs to know this attempt again."""
    body: bytes | None = None
    """Sent instead of the request's own body, if the worker needs another one."""
    companion: "Companion | None" = None
    """Another request without which this one cannot be answered, if there is one."""
    is_inference: bool = True
    """The answer's usage is looked for, and the request may be sent twice if no byte was answered."""
    status: int = 0
    """Filled in by the data plane: the status of the worker's answer, 0 before it."""


class Usage(msgspec.Struct, eq=False, frozen=True, gc=False):
    """What an engine says a request cost, in tokens; None where it does not say."""

    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None


class Request(msgspec.Struct, eq=False):
    """One request, whole. While `Dispatcher.admit` looks at it, its body has not been read yet.

    `headers` are in the client's order with lower-case names, and may be shared between requests: not to be changed.
    Content-Length is not among them; `body` says it. The body is let go when a worker begins to answer.
    """

    id: str
    method: str
    path: str
    query: str
    headers: list[tuple[bytes, bytes]]
    body: bytes
    peer: str
    received_at: float
    asked: tuple[tuple[bytes, bytes], ...] = ()
    """Those of the headers that ask something of this process about the worker; they are not passed on."""
    length: int = -1
    """Of the whole body; -1 where the client announced none."""
    is_whole: bool = False
    """Whether its answer will come in one piece, after the last token; the dispatcher's to say."""

    def header(self, name: bytes) -> bytes | None:
        """Return the first value of the header `name` (lower-case), or None."""
        for each, value in self.headers:
            if each == name:
                return value
        return None


class Reply:
    """An answer of our own. Content-Length, Date, Connection and X-Request-Id are added when it is sent."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, body: bytes = b"", headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        self.status, self.body, self.headers = status, body, headers


class Dispatcher(Protocol):
    """Decides about requests; called on the event loop, so it must be quick.

    `KvrouterError`s that it raises become error replies; any other exception is counted and answered with 500.
    Calls for one request: admit, try_local, then per attempt route, first_token, finished.
    """

    def admit(self, request: Request) -> Reply | None:
        """Refuse with a reply, before the body is read, or return None."""
        ...

    def try_local(self, request: Request) -> Reply | None:
        """Answer at once what needs no worker, or return None."""
        ...

    def route(self, request: Request, excluded: Collection[str]) -> Route | Reply | Awaitable[Route | Reply]:
        """Choose a worker that is not `excluded`; an awaitable is cancelled when the client leaves."""
        ...

    def first_token(self, route: Route) -> None:
        """Note the first body byte of a successful answer."""
        ...

    def finished(self, route: Route, outcome: Outcome, usage: Usage | None) -> None:
        """Note the end of an attempt: exactly once for each route returned."""
        ...
