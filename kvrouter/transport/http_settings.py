"""Settings of the HTTP planes from the environment, and TLS contexts of clients. Pure but for reading certificates.

`KVROUTER_...` is preferred; `DYN_...`, the names of NVIDIA Dynamo, are accepted.
"""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from kvrouter.errors import SettingsError
from kvrouter.transport.http_formats import FORMATS, Format
from kvrouter.transport.variables import Variables

__all__ = ["HttpPlaneSettings", "HttpTls", "client_tls", "http_plane_settings", "server_tls"]

ResponsePlane: TypeAlias = Literal["tcp", "http"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpTls:
    """Files in PEM. With `client_ca_path` a server takes only clients with a certificate of it."""

    cert_path: str | None = None
    key_path: str | None = None
    ca_path: str | None = None
    client_ca_path: str | None = None
    client_cert_path: str | None = None
    client_key_path: str | None = None

    @property
    def serves(self) -> bool:
        """Whether a server has a certificate."""
        return self.cert_path is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpPlaneSettings:
    """Where requests and their answers are served over HTTP, and how long things may take, in seconds."""

    rpc_host: str = "0.0.0.0"  # noqa: S104 - the default of the protocol; kvrouter serve binds what it is told
    rpc_port: int = 8081
    rpc_root: str = "/v1/rpc"
    acknowledge_seconds: float = 5.0
    response_plane: ResponsePlane = "tcp"
    response_host: str = "0.0.0.0"  # noqa: S104 - as above
    response_port: int = 8082
    response_root: str = "/v1/rpc/response"
    answer_format: Format = "sse"
    stream_seconds: float = 3600.0
    tls: HttpTls = field(default_factory=HttpTls)


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
        response_plane="http" if found.choice("RESPONSE_PLANE", "tcp", ("tcp", "http")) == "http" else "tcp",
        response_host=found.text("HTTP_RESPONSE_HOST", default.response_host),
        response_port=found.port("HTTP_RESPONSE_PORT", default.response_port),
        response_root=found.path("HTTP_RESPONSE_ROOT_PATH", default.response_root),
        answer_format=_format(found.choice("HTTP_RESPONSE_STREAM_FORMAT", default.answer_format, FORMATS)),
        stream_seconds=found.seconds("HTTP_RESPONSE_TIMEOUT_SECS", default.stream_seconds),
        tls=_tls(found),
    )


def client_tls(tls: HttpTls) -> ssl.SSLContext:
    """The context of clients: trusts `ca_path`, or the system's authorities, and shows the client's certificate.

    Raises:
        SettingsError: a file cannot be read, or is none of its kind.
    """
    try:
        context = ssl.create_default_context(cafile=tls.ca_path)
        if tls.client_cert_path is not None:
            context.load_cert_chain(tls.client_cert_path, tls.client_key_path)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"TLS of the HTTP plane: {error}") from None
    context.set_alpn_protocols(["h2"])
    return context


def server_tls(tls: HttpTls) -> ssl.SSLContext:
    """The context of servers: HTTP/2 and HTTP/1.1, and clients with a certificate only where one is asked for.

    Raises:
        SettingsError: as `client_tls`.
    """
    assert tls.cert_path is not None, "no certificate"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(tls.cert_path, tls.key_path)
        if tls.client_ca_path is not None:
            context.load_verify_locations(tls.client_ca_path)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"TLS of the HTTP plane: {error}") from None
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


def _format(name: str) -> Format:
    return next(each for each in FORMATS if each == name)


def _tls(found: Variables) -> HttpTls:
    names = ("CERT_PATH", "KEY_PATH", "CA_CERT_PATH", "CLIENT_CA_CERT_PATH", "CLIENT_CERT_PATH", "CLIENT_KEY_PATH")
    cert, key, ca, client_ca, client_cert, client_key = (found.optional(f"HTTP_TLS_{name}") for name in names)
    if (cert is None) != (key is None):
        raise SettingsError("HTTP_TLS_CERT_PATH and HTTP_TLS_KEY_PATH go together")
    if (client_cert is None) != (client_key is None):
        raise SettingsError("HTTP_TLS_CLIENT_CERT_PATH and HTTP_TLS_CLIENT_KEY_PATH go together")
    if client_ca is not None and cert is None:
        raise SettingsError("HTTP_TLS_CLIENT_CA_CERT_PATH needs HTTP_TLS_CERT_PATH: it is for a server")
    return HttpTls(
        cert_path=cert,
        key_path=key,
        ca_path=ca,
        client_ca_path=client_ca,
        client_cert_path=client_cert,
        client_key_path=client_key,
    )
