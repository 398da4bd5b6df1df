"""Settings of the request and response planes from the environment; those of HTTP are `http_settings.py`'s. Pure.

The defaults are ours: multiplexed TCP, and a pool where answers go home. `KVROUTER_COMPAT=seed` gives those of the
first Dynamo releases instead: requests over NATS, and a connection for each answer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from kvrouter.errors import SettingsError
from kvrouter.transport.pool import PoolSettings
from kvrouter.transport.security_settings import PlaneSecurity, security_settings
from kvrouter.transport.tcp_connection import Heartbeat
from kvrouter.transport.tcp_mux import MuxLimits
from kvrouter.transport.tls import PlaneTls, plane_tls
from kvrouter.transport.two_part import MESSAGE_BYTES_MAX
from kvrouter.transport.variables import Variables

__all__ = [
    "CALLING_HOME",
    "REQUEST_PLANES",
    "CallHomeSettings",
    "EventPlane",
    "PlaneSettings",
    "RequestPlane",
    "TcpPlaneSettings",
    "log_levels",
    "plane_settings",
]

RequestPlane: TypeAlias = Literal["tcp", "http", "nats", "zmq", "grpc"]
ResponsePlane: TypeAlias = Literal["tcp", "http"]
EventPlane: TypeAlias = Literal["zmq", "http", "nats", "redis"]

REQUEST_PLANES: tuple[RequestPlane, ...] = ("tcp", "http", "nats", "zmq", "grpc")
CALLING_HOME: tuple[RequestPlane, ...] = ("tcp", "http", "nats")
"""Those whose answers may call home."""
_RESPONSE_PLANES: tuple[ResponsePlane, ...] = ("tcp", "http")
_EVENT_PLANES: tuple[EventPlane, ...] = ("zmq", "http", "nats", "redis")
_LEVELS = ("debug", "info", "warning", "error", "critical")


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpPlaneSettings:
    """The server of the multiplexed TCP transport; `tls` is that of its clients and of answers that go home, too."""

    host: str = "0.0.0.0"  # noqa: S104 - the default of the protocol; kvrouter serve binds what it is told
    port: int = 9001
    connections_max: int = 1000
    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    limits: MuxLimits = field(default_factory=MuxLimits)
    tls: PlaneTls = field(default_factory=PlaneTls)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallHomeSettings:
    """Where workers dial with their answers; an empty host lets the process find one, port 0 the system choose."""

    host: str = ""
    port: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaneSettings:
    """What the environment says of the planes."""

    request_plane: RequestPlane = "tcp"
    response_plane: ResponsePlane = "tcp"
    """How answers come; `kvrouter worker` asks whether it was said, and else answers the way of requests."""
    event_plane: EventPlane = "zmq"
    """Where a program's own publisher sends cache events."""
    pool: PoolSettings = field(default_factory=PoolSettings)
    tcp: TcpPlaneSettings = field(default_factory=TcpPlaneSettings)
    call_home: CallHomeSettings = field(default_factory=CallHomeSettings)
    security: PlaneSecurity = field(default_factory=PlaneSecurity)


def plane_settings(environment: Mapping[str, str]) -> PlaneSettings:
    """Read the settings.

    Raises:
        SettingsError: a value is none; the text names the variable.
    """
    found = Variables(environment)
    like_seed = found.choice("COMPAT", "kvrouter", ("kvrouter", "seed")) == "seed"
    request = found.choice("REQUEST_PLANE", "nats" if like_seed else "tcp", (*REQUEST_PLANES, "http2"))
    request = "http" if request == "http2" else request
    response = found.choice("RESPONSE_PLANE", "tcp", _RESPONSE_PLANES)
    # The first releases sent events where requests went; here they have a plane of their own, whatever that one is.
    events = found.choice("EVENT_PLANE", "nats" if like_seed and request == "nats" else "zmq", _EVENT_PLANES)
    return PlaneSettings(
        request_plane=next(each for each in REQUEST_PLANES if each == request),
        response_plane=next(each for each in _RESPONSE_PLANES if each == response),
        event_plane=next(each for each in _EVENT_PLANES if each == events),
        pool=_pool(found, enabled=not like_seed),
        tcp=_tcp(found),
        call_home=CallHomeSettings(
            host=found.text("TCP_RESPONSE_STREAM_HOST", ""),
            port=found.port("TCP_RESPONSE_STREAM_PORT", 0),
        ),
        security=security_settings(environment),
    )


def log_levels(environment: Mapping[str, str]) -> dict[str, str]:
    """Levels by logger, from `KVROUTER_LOG=info,kvrouter.transport.pool=debug`; the empty name is every logger.

    Raises:
        SettingsError: a level is none.
    """
    levels: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in environment.get("KVROUTER_LOG", "").split(","))):
        name, _, level = part.rpartition("=")
        if level.strip().lower() not in _LEVELS:
            raise SettingsError(f"KVROUTER_LOG: {part!r} must end with one of {', '.join(_LEVELS)}")
        levels[name.strip()] = level.strip().lower()
    return levels


def _pool(found: Variables, *, enabled: bool) -> PoolSettings:
    default = PoolSettings()
    pool = PoolSettings(
        enabled=found.flag("TCP_POOL_ENABLED", default=enabled),
        connections_max=found.whole("TCP_POOL_MAX_PER_TARGET", default.connections_max, least=1),
        idle_min=found.whole("TCP_POOL_MIN_IDLE", default.idle_min),
        idle_seconds=found.seconds("TCP_POOL_IDLE_TIMEOUT_SECS", default.idle_seconds),
        lifetime_seconds=found.seconds("TCP_POOL_MAX_LIFETIME_SECS", default.lifetime_seconds),
        keepalive_seconds=found.seconds("TCP_POOL_KEEPALIVE_SECS", default.keepalive_seconds),
    )
    if pool.idle_min > pool.connections_max:
        raise SettingsError(
            f"TCP_POOL_MIN_IDLE={pool.idle_min} must not exceed TCP_POOL_MAX_PER_TARGET={pool.connections_max}"
        )
    return pool


def _tcp(found: Variables) -> TcpPlaneSettings:
    default = TcpPlaneSettings()
    heartbeat = Heartbeat(
        interval_seconds=found.seconds("TCP_REQUEST_HEARTBEAT_INTERVAL_SECS", default.heartbeat.interval_seconds),
        timeout_seconds=found.seconds("TCP_REQUEST_CONNECTION_TIMEOUT_SECS", default.heartbeat.timeout_seconds),
    )
    if heartbeat.interval_seconds >= heartbeat.timeout_seconds:
        raise SettingsError(
            f"TCP_REQUEST_HEARTBEAT_INTERVAL_SECS={heartbeat.interval_seconds:g} must be below "
            f"TCP_REQUEST_CONNECTION_TIMEOUT_SECS={heartbeat.timeout_seconds:g}: nothing would be heard in between"
        )
    message_bytes = found.whole("TCP_MAX_MESSAGE_SIZE", MESSAGE_BYTES_MAX, least=1 << 10)
    return TcpPlaneSettings(
        host=found.text("TCP_REQUEST_HOST", default.host),
        port=found.port("TCP_REQUEST_PORT", default.port),
        connections_max=found.whole("TCP_REQUEST_MAX_CONNECTIONS", default.connections_max, least=1),
        heartbeat=heartbeat,
        limits=MuxLimits(message_bytes_max=message_bytes, assembling_bytes_max=4 * message_bytes),
        tls=plane_tls(found, "TCP_TLS"),
    )
