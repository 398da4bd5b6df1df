"""The transports of this process, each made with its first request: nothing connects to what nobody uses.

A way is a transport, or with `+tcp` one whose answers call home. The preferred plane goes first wherever a worker has
it; the others are taken in the order of `REQUEST_PLANES`.
"""

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Final

from kvrouter.discovery import Instance
from kvrouter.errors import MissingExtraError, SettingsError
from kvrouter.transport.callhome_client import CallHomeClient, RequestSender
from kvrouter.transport.callhome_listener import CallHomeListener
from kvrouter.transport.client_stream import ClientStream
from kvrouter.transport.context import Context
from kvrouter.transport.http_settings import HttpPlaneSettings
from kvrouter.transport.instance_client import CALL_HOME, InstanceClient, ways
from kvrouter.transport.messages import Request
from kvrouter.transport.metrics import PlaneMetrics
from kvrouter.transport.plane_settings import CALLING_HOME, REQUEST_PLANES, PlaneSettings, RequestPlane
from kvrouter.transport.planes import RequestClient
from kvrouter.transport.registry import NoTransportError, Registered, TransportRegistry

__all__ = ["PlaneChoices", "Ways", "home_listener"]

_PREFERRED, _OTHER = 10, 100
_NOWHERE: Final = ("192.0.2.1", 9)
"""An address of no machine (RFC 5737): nothing is sent, only asked which of our addresses would be the sender's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaneChoices:
    """What the settings and the environment say of the planes."""

    preferred: RequestPlane
    nats_server: str
    """Empty: workers that are reached over NATS only are not reached at all."""
    host: str
    """What this process listens on; answers that call home are expected there unless the environment says where."""
    connect_seconds: float
    planes: PlaneSettings
    http: HttpPlaneSettings


class Ways:
    """Sends requests to instances over whichever way both have. Lives on one event loop."""

    def __init__(self, choices: PlaneChoices, metrics: PlaneMetrics) -> None:
        self.registry = TransportRegistry()
        self.instances = InstanceClient(self.registry)
        self.preferred = choices.preferred
        self._choices = choices
        self._home = _AnswersHome(choices)
        self._clients: dict[str, _Later] = {}
        for plane in REQUEST_PLANES:
            self._add(metrics, plane, plane)
        for plane in CALLING_HOME:
            self._add(metrics, plane + CALL_HOME, plane)

    def ready(self) -> None:
        """Make the preferred plane's client now; raises MissingExtraError, SettingsError or NoTransportError."""
        self._clients[self.preferred].made()

    def prefer(self, plane: RequestPlane) -> None:
        """Take this plane for what begins from now on; what is under way ends where it is."""
        self.preferred = plane
        for each in self.registry.transports():
            self.registry.unregister(each.transport_id)
            self.registry.register(replace(each, priority=self._priority(each.transport_id)))

    def lose(self, instance: Instance) -> None:
        """An instance is gone for good: answers of its that call home will not end by themselves."""
        for way, address in ways(instance).items():
            if way.endswith(CALL_HOME):
                self._home.lose(way.removesuffix(CALL_HOME), address)

    async def close(self) -> None:
        """Close every client; streams that have not ended fail."""
        await asyncio.gather(*(client.aclose() for client in self._clients.values()))
        await self._home.close()

    def _add(self, metrics: PlaneMetrics, way: str, plane: RequestPlane) -> None:
        home = way.endswith(CALL_HOME)
        made = _Later((lambda: self._home.way(plane)) if home else (lambda: _client(plane, self._choices)))
        self._clients[way] = made
        client = metrics.client(made, plane, response="tcp" if home else plane)
        self.registry.register(Registered(transport_id=way, client=client, priority=self._priority(way)))

    def _priority(self, way: str) -> int:
        plane = way.removesuffix(CALL_HOME)
        return _PREFERRED if plane == self.preferred else _OTHER + [*REQUEST_PLANES].index(plane)  # type: ignore[arg-type]


class _Later:
    """A `RequestClient` that is made with its first request."""

    def __init__(self, make: Callable[[], RequestClient]) -> None:
        self._make = make
        self._client: RequestClient | None = None

    def made(self) -> RequestClient:
        """The client itself."""
        if self._client is None:
            self._client = self._make()
        return self._client

    async def request(self, address: str, request: Request, context: Context) -> ClientStream:
        """Send a request; see `RequestClient`. What is not installed, or lacks one of its files, is no way."""
        try:
            return await self.made().request(address, request, context)
        except (MissingExtraError, SettingsError) as error:
            raise NoTransportError(str(error)) from None

    async def aclose(self) -> None:
        """Close what was made. Idempotent."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()


class _AnswersHome:
    """One listener for all answers that call home, whatever their requests travel over."""

    def __init__(self, choices: PlaneChoices) -> None:
        self._choices = choices
        self._senders: dict[str, RequestSender] = {}
        self._client: CallHomeClient | None = None

    def way(self, plane: RequestPlane) -> RequestClient:
        """The client whose requests travel over a plane."""
        if self._client is None:
            self._client = CallHomeClient(self, home_listener(self._choices), token=self._choices.planes.security.token)
        if plane not in self._senders:
            self._senders[plane] = _sender(plane, self._choices)
        return _HomeWay(self._client, plane)

    def lose(self, plane: str, address: str) -> None:
        """What that worker has taken and not answered fails."""
        if self._client is not None:
            self._client.lose(f"{plane} {address}")

    async def send(self, address: str, message: bytes, context: Context) -> None:
        """See `RequestSender`; the address begins with the plane."""
        plane, _, there = address.partition(" ")
        await self._senders[plane].send(there, message, context)

    async def aclose(self) -> None:
        """Close every sender; called by the client. Idempotent."""
        await asyncio.gather(*(sender.aclose() for sender in self._senders.values()))

    async def close(self) -> None:
        """Close client and senders."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()


class _HomeWay:
    """The shared client, for the addresses of one plane; whoever shares it closes it."""

    def __init__(self, client: CallHomeClient, plane: RequestPlane) -> None:
        self._client, self._plane = client, plane

    async def request(self, address: str, request: Request, context: Context) -> ClientStream:
        """Send a request; see `RequestClient`."""
        return await self._client.request(f"{self._plane} {address}", request, context)

    async def aclose(self) -> None:
        """Leave the client to the others."""


def _client(plane: RequestPlane, choices: PlaneChoices) -> RequestClient:
    """A client whose answers come the way of their requests; raises MissingExtraError or NoTransportError."""
    seconds, http, security = choices.connect_seconds, choices.http, choices.planes.security
    match plane:
        case "tcp":
            from kvrouter.transport.tcp_client import TcpRequestClient  # noqa: PLC0415 - only what is used is loaded

            tcp = choices.planes.tcp
            return TcpRequestClient(
                limits=tcp.limits, heartbeat=tcp.heartbeat, connect_seconds=seconds,
                token=security.token, tls=tcp.tls if tcp.tls.dials else None,
            )  # fmt: skip
        case "http":
            from kvrouter.transport.http_client import HttpRequestClient  # noqa: PLC0415 - as above

            return HttpRequestClient(
                acknowledge_seconds=http.acknowledge_seconds, connect_seconds=seconds,
                token=security.token, tls=http.tls,
            )  # fmt: skip
        case "nats":
            from kvrouter.transport.nats_client import NatsRequestClient  # noqa: PLC0415 - as above

            return NatsRequestClient(_nats_server(choices), token=security.token, access=security.nats)
        case "zmq":
            from kvrouter.transport.zmq_client import ZmqRequestClient  # noqa: PLC0415 - as above

            return ZmqRequestClient(connect_seconds=seconds, token=security.token, curve=security.curve)
        case "grpc":
            from kvrouter.transport.grpc_client import GrpcRequestClient  # noqa: PLC0415 - as above

            tls = security.grpc_tls
            return GrpcRequestClient(token=security.token, tls=tls if tls.dials else None)


def _sender(plane: RequestPlane, choices: PlaneChoices) -> RequestSender:
    """What carries requests whose answers call home."""
    security = choices.planes.security
    match plane:
        case "nats":
            from kvrouter.transport.nats_acks import NatsAckSender  # noqa: PLC0415 - only what is used is loaded

            return NatsAckSender(_nats_server(choices), access=security.nats)
        case "http":
            from kvrouter.transport.http_client import HttpAckClient  # noqa: PLC0415 - as above

            http = choices.http
            return HttpAckClient(acknowledge_seconds=http.acknowledge_seconds, token=security.token, tls=http.tls)
        case _:
            from kvrouter.transport.tcp_v0_acks import TcpV0Sender  # noqa: PLC0415 - as above

            tls = choices.planes.tcp.tls
            return TcpV0Sender(tls=tls if tls.dials else None)


def _nats_server(choices: PlaneChoices) -> str:
    if not choices.nats_server:
        raise NoTransportError("no NATS server is set (--nats-server), so nothing goes over NATS")
    return choices.nats_server


def home_listener(choices: PlaneChoices) -> CallHomeListener:
    """Where workers dial; where this process listens on every address, they are told one of its own."""
    home = choices.planes.call_home
    host = home.host or choices.host
    try:
        anywhere = ip_address(host).is_unspecified
    except ValueError:
        anywhere = False
    return CallHomeListener(
        host=host, port=home.port, advertise=_own_address() if anywhere else None,
        reuse=choices.planes.pool.enabled, tls=choices.planes.tcp.tls,
    )  # fmt: skip


def _own_address() -> str:
    """The address that this machine has towards others."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect(_NOWHERE)
        except OSError:
            return "127.0.0.1"
        return str(asking.getsockname()[0])
