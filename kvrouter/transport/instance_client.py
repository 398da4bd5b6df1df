"""Requests to one instance: over the first transport that both sides have, or the next one where it has no connection.

Which instance is somebody else's decision: `plane_client.py` chooses by itself, a router by its knowledge of caches.
"""

from collections.abc import Mapping

from kvrouter.discovery import Instance
from kvrouter.errors import TransportError
from kvrouter.transport.client_stream import ClientStream
from kvrouter.transport.context import Context
from kvrouter.transport.messages import Request
from kvrouter.transport.registry import Capabilities, NoTransportError, TransportRegistry

__all__ = ["CALL_HOME", "InstanceClient", "ways"]

CALL_HOME = "+tcp"
"""Ends the id of a way whose answers call home over TCP: `nats+tcp`, `http+tcp`, `tcp+tcp`."""


class InstanceClient:
    """Asks instances over the transports of a registry. Lives on one event loop."""

    def __init__(self, registry: TransportRegistry) -> None:
        self.fallbacks = 0
        self._registry = registry

    async def request(self, instance: Instance, request: Request, context: Context) -> ClientStream:
        """Send a request and return its answer as soon as the instance has taken it.

        Raises:
            NoTransportError: the two sides have no transport in common that can carry it.
            TransportError: that of the last transport tried.
        """
        there = ways(instance)
        needed = Capabilities(streaming=True, bidirectional=request.many_in, max_message_size=len(request.body))
        failed: list[str] = []
        last: TransportError | None = None
        while True:
            try:
                chosen = self._registry.select("request", needed, among=there.keys(), exclude=failed)
            except NoTransportError:
                raise last or NoTransportError(
                    f"instance {instance.instance_id:x} is reached by {', '.join(there)}, of which none is here"
                ) from None
            transport_id = chosen.transport_id
            try:
                client = self._registry.client(transport_id)
                return await client.request(there[transport_id], request, context)
            except TransportError as error:
                if not _may_fall_back(error):
                    raise
                self.fallbacks += 1
                failed.append(transport_id)
                last = error


def ways(instance: Instance) -> Mapping[str, str]:
    """Where an instance is reached, by the id of the way; of several of one id the first one."""
    response = instance.response_transport
    ending = CALL_HOME if response is not None and response.metadata.get("mode") == "call_home" else ""
    return {each.transport_id + ending: each.address for each in reversed(instance.transports)}


def _may_fall_back(error: TransportError) -> bool:
    """Whether another transport may succeed where this one had no connection at all."""
    return isinstance(error, NoTransportError) or (error.retryable and error.code == "UNAVAILABLE")
