"""The server of a transport by its id, for who serves handlers (`serve.py`). Only what is asked for is loaded."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvrouter.errors import TransportError
from kvrouter.transport.callhome_worker import CallHomeWorker
from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.http_settings import HttpPlaneSettings
from kvrouter.transport.plane_settings import CALLING_HOME, TcpPlaneSettings
from kvrouter.transport.planes import RequestServer
from kvrouter.transport.pool import PoolSettings
from kvrouter.transport.security_settings import PlaneSecurity

if TYPE_CHECKING:
    from kvrouter.transport.http_app import Application

__all__ = ["ServerSettings", "make_call_home_server", "make_server"]

TRANSPORTS = ("tcp", "http", "zmq", "nats", "grpc", "ucx")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """How servers are made besides where: as the planes' variables say, or on free ports."""

    tcp: TcpPlaneSettings = field(default_factory=lambda: TcpPlaneSettings(port=0))
    http: HttpPlaneSettings = field(default_factory=lambda: HttpPlaneSettings(rpc_port=0))
    response_port: int | None = None
    """A port of their own for answers over HTTP that are fetched."""
    response_host: str | None = None
    """Where that port is bound; None: where requests are."""
    pool: PoolSettings = field(default_factory=PoolSettings)
    """Connections of answers that call home."""
    http_wrap: "Callable[[Application], Application] | None" = None
    """Puts another application around that of requests over HTTP, such as one with pages of its own."""
    security: PlaneSecurity = field(default_factory=PlaneSecurity)


def make_server(
    transport_id: str,
    endpoints: Endpoints,
    *,
    host: str,
    advertise: str | None = None,
    nats_server: str | None = None,
    subject: str = "",
    settings: ServerSettings | None = None,
) -> RequestServer:
    """The server of a transport whose answers come the way of their requests.

    Raises:
        TransportError: the transport is not known, or lacks something; `INVALID_ARGUMENT`.
    """
    settings = settings if settings is not None else ServerSettings()
    match transport_id:
        case "tcp":
            from kvrouter.transport.tcp_server import TcpRequestServer  # noqa: PLC0415 - only what is asked for

            tcp = settings.tcp
            return TcpRequestServer(
                endpoints, host=host, port=tcp.port, advertise=advertise,
                connections_max=tcp.connections_max, limits=tcp.limits, heartbeat=tcp.heartbeat, tls=tcp.tls,
            )  # fmt: skip
        case "http":
            return _http_server(endpoints, host, advertise, settings, None)
        case "zmq":
            from kvrouter.transport.zmq_server import ZmqRequestServer  # noqa: PLC0415 - as above

            return ZmqRequestServer(endpoints, endpoint=f"tcp://{host}:*", curve=settings.security.curve)
        case "nats":
            from kvrouter.transport.nats_server import NatsRequestServer  # noqa: PLC0415 - as above

            return NatsRequestServer(
                endpoints,
                server=_needed(nats_server),
                subject=subject.replace("/", "."),
                access=settings.security.nats,
            )
        case "grpc":
            from kvrouter.transport.grpc_server import GrpcRequestServer  # noqa: PLC0415 - as above

            return GrpcRequestServer(endpoints, host=host, advertise=advertise, tls=settings.security.grpc_tls)
        case "ucx":
            from kvrouter.transport.ucx_server import UcxRequestServer  # noqa: PLC0415 - as above

            return UcxRequestServer(endpoints, host=advertise or host)
    message = f"transport {transport_id!r} is unknown; known: {', '.join(TRANSPORTS)}"
    raise TransportError(message, code="INVALID_ARGUMENT")


def make_call_home_server(
    transport_id: str,
    endpoints: Endpoints,
    *,
    host: str,
    advertise: str | None = None,
    nats_server: str | None = None,
    subject: str = "",
    settings: ServerSettings | None = None,
) -> tuple[RequestServer, CallHomeWorker]:
    """The server of a transport whose answers call home over TCP, and what calls.

    Raises:
        TransportError: answers to what comes over that transport do not call home; `INVALID_ARGUMENT`.
    """
    settings = settings if settings is not None else ServerSettings()
    tls = settings.tcp.tls
    home = CallHomeWorker(endpoints, pool=settings.pool, tls=tls if tls.dials else None)
    match transport_id:
        case "nats":
            from kvrouter.transport.nats_acks import NatsAckServer  # noqa: PLC0415 - only what is asked for

            server: RequestServer = NatsAckServer(
                home,
                server=_needed(nats_server),
                subject=subject.replace("/", "."),
                access=settings.security.nats,
            )
        case "http":
            server = _ClosingToo(_http_server(endpoints, host, advertise, settings, home), home)
        case "tcp":
            from kvrouter.transport.tcp_v0_acks import TcpV0Server  # noqa: PLC0415 - as above

            server = TcpV0Server(home, host=host, port=settings.tcp.port, tls=tls)
        case _:
            message = f"answers call home with {', '.join(CALLING_HOME)} only, not with {transport_id}"
            raise TransportError(message, code="INVALID_ARGUMENT")
    return server, home


class _ClosingToo:
    """A server that takes requests for a worker that calls home, and ends it with itself."""

    def __init__(self, server: RequestServer, home: CallHomeWorker) -> None:
        self._server, self._home = server, home

    @property
    def address(self) -> str:
        """Where clients reach it."""
        return self._server.address

    async def start(self) -> None:
        """Begin to listen; see `RequestServer`."""
        await self._server.start()
        self._home.start()

    async def stop(self, *, drain_seconds: float = 0.0) -> None:
        """End both. Idempotent."""
        await self._server.stop(drain_seconds=drain_seconds)
        await self._home.close()


def _http_server(
    endpoints: Endpoints, host: str, advertise: str | None, settings: ServerSettings, home: CallHomeWorker | None
) -> RequestServer:
    from kvrouter.transport.http_app import HttpAppOptions  # noqa: PLC0415 - only what is asked for
    from kvrouter.transport.http_server import HttpRequestServer  # noqa: PLC0415 - as above

    http = settings.http
    options = HttpAppOptions(
        root=http.rpc_root,
        response_root=http.response_root,
        answer_format=http.answer_format,
        stream_seconds=http.stream_seconds,
    )
    return HttpRequestServer(
        endpoints, host=host, port=http.rpc_port, advertise=advertise,
        response_host=settings.response_host, response_port=settings.response_port,
        options=options, accept=None if home is None else home.accept, tls=http.tls, wrap=settings.http_wrap,
    )  # fmt: skip


def _needed(nats_server: str | None) -> str:
    if nats_server is None:
        raise TransportError("nats needs nats_server, the URL of a NATS server", code="INVALID_ARGUMENT")
    return nats_server
