"""What every transport offers: a client that sends requests, a server that takes them.

One conformance suite (tests/transport/conformance.py) says what that means; each transport passes it.
"""

from typing import Protocol

from kvrouter.transport.client_stream import ClientStream
from kvrouter.transport.context import Context
from kvrouter.transport.messages import Request

__all__ = ["RequestClient", "RequestServer"]


class RequestClient(Protocol):
    """Sends requests to workers by address. Lives on one event loop; many requests at a time.

    A request is done at most once per call: nothing here repeats one. Connections are made when they are needed, kept,
    and shared as the transport allows.
    """

    async def request(self, address: str, request: Request, context: Context) -> ClientStream:
        """Send a request and return its answer as soon as the peer has taken it.

        The request's `items` are sent while the answer is read. The caller closes the stream.

        Raises:
            RefusedError: the peer did not take it.
            UnreachableError: there is no connection to the peer.
            DisconnectedError: the connection was lost meanwhile.
            DeadlineError: the context's deadline is over.
            WireError: the request is too large.
        """
        ...

    async def aclose(self) -> None:
        """Close all connections; streams that have not ended fail. Idempotent."""
        ...


class RequestServer(Protocol):
    """Takes requests for a worker's endpoints."""

    @property
    def address(self) -> str:
        """Where clients reach it, for the discovery record; known once it has started."""
        ...

    async def start(self) -> None:
        """Begin to listen. Raises OSError if the address is taken."""
        ...

    async def stop(self, *, drain_seconds: float = 0.0) -> None:
        """Take nothing more, let what runs finish for so long, tell the rest, and close. Idempotent."""
        ...
