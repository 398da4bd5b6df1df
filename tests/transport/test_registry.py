"""The registry of transports (A-224 to A-228)."""

import pytest

from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.registry import Capabilities, NoTransportError, Registered, TransportRegistry
from kvrouter.transport.tcp_server import TcpRequestServer

STREAMING = Capabilities(streaming=True)


def ids(registry: TransportRegistry) -> list[str]:
    """The transports in their order."""
    return [each.transport_id for each in registry.transports()]


def test_a_smaller_number_goes_first_and_equals_in_their_order() -> None:
    """A-224, A-226: priorities from 0 to 255."""
    registry = TransportRegistry()
    for name, priority in (("http", 10), ("nats", 20), ("tcp", 0), ("zmq", 10)):
        registry.register(Registered(transport_id=name, priority=priority))

    assert ids(registry) == ["tcp", "http", "zmq", "nats"]
    assert registry.select().transport_id == "tcp"
    assert registry.select(among=["nats", "zmq"]).transport_id == "zmq"
    assert registry.select(exclude=["tcp"]).transport_id == "http"


def test_what_is_needed_decides_before_priority() -> None:
    """A-226: the first that satisfies."""
    registry = TransportRegistry()
    registry.register(Registered(transport_id="small", priority=0, capabilities=Capabilities(max_message_size=100)))
    registry.register(Registered(transport_id="streams", priority=1, capabilities=STREAMING))

    assert registry.select(needed=STREAMING).transport_id == "streams"
    assert registry.select(needed=Capabilities(max_message_size=100)).transport_id == "small"
    with pytest.raises(NoTransportError, match="small, streams"):
        registry.select(needed=Capabilities(bidirectional=True))


def test_planes_are_apart() -> None:
    """A-225: response transports are registered likewise."""
    registry = TransportRegistry()
    registry.register(Registered(transport_id="tcp"))
    registry.register(Registered(transport_id="tcp", plane="response"))

    assert len(registry.transports()) == 2
    assert [each.plane for each in registry.transports("response")] == ["response"]
    with pytest.raises(ValueError, match="tcp"):
        registry.register(Registered(transport_id="tcp"))
    with pytest.raises(ValueError, match="256"):
        registry.register(Registered(transport_id="x", priority=256))


def test_clients_and_servers_are_had_by_id() -> None:
    """A-227, A-228: a missing one is an error that says so."""
    registry, server = TransportRegistry(), TcpRequestServer(Endpoints())
    registry.register(Registered(transport_id="tcp", server=server))

    assert registry.server("tcp") is server
    with pytest.raises(NoTransportError, match="transport not available: tcp has no client"):
        registry.client("tcp")
    with pytest.raises(NoTransportError, match="transport not available: grpc"):
        registry.server("grpc")
    assert registry.unregister("tcp") is not None
    assert registry.unregister("tcp") is None
    assert ids(registry) == []
