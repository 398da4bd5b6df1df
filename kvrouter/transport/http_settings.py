"""Settings of the HTTP planes from the environment. Pure.

`KVROUTER_...` is preferred; `DYN_...`, the names of NVIDIA Dynamo, are accepted.
Whether answers come over HTTP at all, `RESPONSE_PLANE`, is read by `plane_settings.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from kvrouter.transport.http_formats import FORMATS, Format
from kvrouter.transport.tls import PlaneTls, plane_tls
from kvrouter.transport.variables import Variables

__all__ = ["HttpPlaneSettings", "http_plane_settings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpPlaneSettings:
    """Where requests and their answers are served over HTTP, and how long things may take, in seconds."""

    rpc_host: str = "0.0.0.0"  # noqa: S104 - the default of the protocol; kvrouter serve binds what it is told
    rpc_port: int = 8081
    rpc_root: str = "/v1/rpc"
    acknowledge_seconds: float = 5.0
    response_host: str = "0.0.0.0"  # noqa: S104 - as above
    response_port: int = 8082
    response_root: str = "/v1/rpc/response"
    answer_format: Format = "sse"
    stream_seconds: float = 3600.0
    tls: PlaneTls = field(default_factory=PlaneTls)


def http_plane_settings(environment: Mapping[str, str]) -> HttpPlaneSettings:
    """Read the settings.

    Raises:
        SettingsError: a value is none; the text names the variable.
    """
    found = Variables(environment)
    default = HttpPlaneSettings()
    return HttpPlaneSettings(
        rpc_host=found.text("HTTP_RPC_HOST", default.rpc_host),
        rpc_port=found.port("HTTP_RPC_PORT", default.rpc_port),
        rpc_root=found.path("HTTP_RPC_ROOT_PATH", default.rpc_root),
        acknowledge_seconds=found.seconds("HTTP_REQUEST_TIMEOUT", default.acknowledge_seconds),
        response_host=found.text("HTTP_RESPONSE_HOST", default.response_host),
        response_port=found.port("HTTP_RESPONSE_PORT", default.response_port),
        response_root=found.path("HTTP_RESPONSE_ROOT_PATH", default.response_root),
        answer_format=_format(found.choice("HTTP_RESPONSE_STREAM_FORMAT", default.answer_format, FORMATS)),
        stream_seconds=found.seconds("HTTP_RESPONSE_TIMEOUT_SECS", default.stream_seconds),
        tls=plane_tls(found, "HTTP_TLS"),
    )


def _format(name: str) -> Format:
    return next(each for each in FORMATS if each == name)
