"""Which transports this process has, what each can do, and which one is taken.

Pure bookkeeping: whoever composes a process registers what it has made. A smaller priority number goes first; among
equals the one that was registered first.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from kvrouter.errors import TransportError
from kvrouter.transport.planes import RequestClient, RequestServer
from kvrouter.transport.two_part import MESSAGE_BYTES_MAX

__all__ = ["Capabilities", "NoTransportError", "Plane", "Registered", "TransportRegistry"]

Plane: TypeAlias = Literal["request", "response"]
PRIORITY_MAX = 255


class NoTransportError(TransportError):
    """No transport of this process can do what is asked; the text lists those that there are."""

    code = "UNIMPLEMENTED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a transport can do, or what somebody needs of one; a bound in bytes for one message."""

    streaming: bool = False
    persistent_connections: bool = False
    bidirectional: bool = False
    max_message_size: int = 0

    def satisfy(self, needed: "Capabilities") -> bool:
        """Whether these are enough."""
        return (
            self.streaming >= needed.streaming
            and self.persistent_connections >= needed.persistent_connections
            and self.bidirectional >= needed.bidirectional
            and self.max_message_size >= needed.max_message_size
        )


EVERYTHING = Capabilities(
    streaming=True, persistent_connections=True, bidirectional=True, max_message_size=MESSAGE_BYTES_MAX
)
NOTHING_NEEDED = Capabilities()


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """One transport on one plane."""

    transport_id: str
    plane: Plane = "request"
    capabilities: Capabilities = EVERYTHING
    priority: int = 100
    client: RequestClient | None = field(default=None, repr=False)
    server: RequestServer | None = field(default=None, repr=False)


class TransportRegistry:
    """The transports of a process. Changes take effect for what is asked from then on: streams go on as they are."""

    def __init__(self) -> None:
        self._registered: dict[tuple[Plane, str], Registered] = {}

    def register(self, registered: Registered) -> None:
        """Add a transport.

        Raises:
            ValueError: its plane has one of that id, or its priority is not between 0 and 255.
        """
        key = registered.plane, registered.transport_id
        if key in self._registered:
            raise ValueError(f"transport {registered.transport_id!r} is registered for the {registered.plane} plane")
        if not 0 <= registered.priority <= PRIORITY_MAX:
            raise ValueError(f"priority {registered.priority} is not between 0 and {PRIORITY_MAX}")
        self._registered[key] = registered

    def unregister(self, transport_id: str, plane: Plane = "request") -> Registered | None:
        """Take a transport out and return it; closing it is its maker's."""
        return self._registered.pop((plane, transport_id), None)

    def transports(self, plane: Plane | None = None) -> tuple[Registered, ...]:
        """Every transport, the preferred ones first."""
        found = [each for each in self._registered.values() if plane is None or each.plane == plane]
        return tuple(sorted(found, key=lambda each: each.priority))

    def select(
        self,
        plane: Plane = "request",
        needed: Capabilities = NOTHING_NEEDED,
        *,
        among: Collection[str] | None = None,
        exclude: Collection[str] = (),
    ) -> Registered:
        """The preferred transport of a plane that can do what is needed.

        Args:
            plane: which plane.
            needed: capabilities that it must have.
            among: ids that the peer has; None for any.
            exclude: ids that have failed already.

        Raises:
            NoTransportError: none satisfies.
        """
        for each in self.transports(plane):
            allowed = (among is None or each.transport_id in among) and each.transport_id not in exclude
            if allowed and each.capabilities.satisfy(needed):
                return each
        known = ", ".join(each.transport_id for each in self.transports(plane)) or "none"
        wanted = "" if among is None else f" of {', '.join(sorted(among)) or 'none'}"
        raise NoTransportError(f"no {plane} transport{wanted} satisfies what is needed; registered: {known}")

    def client(self, transport_id: str, plane: Plane = "request") -> RequestClient:
        """The client of a transport.

        Raises:
            NoTransportError: the transport, or its client, is not available.
        """
        registered = self._registered.get((plane, transport_id))
        if registered is None or registered.client is None:
            raise NoTransportError(f"transport not available: {transport_id} has no client here")
        return registered.client

    def server(self, transport_id: str, plane: Plane = "request") -> RequestServer:
        """The server of a transport; raises NoTransportError as `client`."""
        registered = self._registered.get((plane, transport_id))
        if registered is None or registered.server is None:
            raise NoTransportError(f"transport not available: {transport_id} has no server here")
        return registered.server
