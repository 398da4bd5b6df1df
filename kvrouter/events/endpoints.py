"""Where events are published: the address rules that engines, publishers and subscribers share.

Pure string rules, those of the vLLM wire for ZeroMQ; nothing here opens a socket or resolves a name.
"""

import re
from typing import Literal
from urllib.parse import SplitResult, urlsplit

from kvrouter.errors import SettingsError

__all__ = [
    "Transport",
    "check_endpoint",
    "check_source",
    "is_wildcard",
    "publisher_binds",
    "rank_endpoint",
    "transport_of",
    "without_password",
]

Transport = Literal["zmq", "http", "jetstream", "redis"]

_SCHEMES = ("tcp://", "ipc://", "inproc://")
_PORT_MAX = 65535
_TRANSPORTS: dict[str, Transport] = {
    "tcp": "zmq",
    "ipc": "zmq",
    "inproc": "zmq",
    "http": "http",
    "https": "http",
    "nats": "jetstream",
    "tls": "jetstream",
    "redis": "redis",
    "rediss": "redis",
}
_FORMS: dict[Transport, str] = {
    "zmq": "tcp://host:port",
    "http": "http://host:port[/prefix]",
    "jetstream": "nats://host[:port]/stream",
    "redis": "redis://host[:port]/database/stream",
}
_PATHS: dict[Transport, re.Pattern[str]] = {
    "http": re.compile(r"(/[!-.0-~]+)*/?"),
    "jetstream": re.compile(r"/[A-Za-z0-9_-]{1,255}"),
    "redis": re.compile(r"/[0-9]{1,4}/[^/\s]{1,255}"),
}


def transport_of(endpoint: str) -> Transport:
    """Tell which transport the scheme of `endpoint` asks for.

    Raises:
        SettingsError: no transport has that scheme.
    """
    scheme, mark, _ = endpoint.partition("://")
    transport = _TRANSPORTS.get(scheme)
    if transport is None or not mark:
        schemes = ", ".join(f"{each}://" for each in _TRANSPORTS)
        raise SettingsError(f"event endpoint {without_password(endpoint)!r} must start with one of {schemes}")
    return transport


def check_source(endpoint: str) -> str:
    """Return `endpoint` if it is an address from which some transport can bring events.

    Raises:
        SettingsError: the scheme is unknown, or the address has not the form that its transport needs.
    """
    transport = transport_of(endpoint)
    if transport == "zmq":
        return check_endpoint(endpoint)
    try:
        parts = urlsplit(endpoint)
        usable = _is_usable(parts, transport)
    except ValueError:
        usable = False
    if not usable:
        raise SettingsError(f"event endpoint {without_password(endpoint)!r} must look like {_FORMS[transport]}")
    return endpoint


def without_password(endpoint: str) -> str:
    """An address as logs, errors and status pages may show it."""
    return re.sub(r"//[^/@]*@", "//***@", endpoint)


def _is_usable(parts: SplitResult, transport: Transport) -> bool:
    if not parts.hostname or parts.port == 0 or parts.query or parts.fragment:
        return False
    if transport == "http" and (parts.port is None or parts.username is not None):
        return False
    return _PATHS[transport].fullmatch(parts.path) is not None


def check_endpoint(endpoint: str) -> str:
    """Return `endpoint` if it is an address that ZeroMQ can use here.

    Raises:
        SettingsError: the scheme is unknown, or a TCP address has no host or no usable port.
    """
    if not endpoint.startswith(_SCHEMES):
        raise SettingsError(f"event endpoint {endpoint!r} must start with one of {', '.join(_SCHEMES)}")
    scheme, _, rest = endpoint.partition("://")
    if not rest:
        raise SettingsError(f"event endpoint {endpoint!r} names no address")
    if scheme == "tcp":
        host, _, port = rest.rpartition(":")
        if not host or not (port == "*" or (port.isdecimal() and int(port) <= _PORT_MAX)):
            raise SettingsError(f"event endpoint {endpoint!r} must look like tcp://host:port")
    return endpoint


def is_wildcard(endpoint: str) -> bool:
    """Tell whether `endpoint` names every interface or an ephemeral port, so that only its owner can mean it."""
    return "*" in endpoint or "::" in endpoint.partition("://")[2] or "0.0.0.0" in endpoint  # noqa: S104 - compared, never bound here


def publisher_binds(endpoint: str) -> bool:
    """Tell whether a publisher owns `endpoint`; vLLM's and SGLang's rule, otherwise it connects."""
    return is_wildcard(endpoint) or endpoint.startswith(("ipc://", "inproc://"))


def rank_endpoint(endpoint: str, rank: int) -> str:
    """Return the endpoint of data-parallel rank `rank`, given the one of rank 0.

    TCP ports count up from the base port; an ephemeral port (`0` or `*`) stays as it is, because the system
    chooses one for each rank. Paths and in-process names get the suffix `_dpN`. On every other transport ranks share
    one address: what they send says whose it is.

    Raises:
        SettingsError: the port would exceed 65535.
    """
    if rank == 0 or transport_of(endpoint) != "zmq":
        return endpoint
    if not endpoint.startswith("tcp://"):
        return f"{endpoint}_dp{rank}"
    host, _, port = endpoint.rpartition(":")
    if port in ("*", "0"):
        return endpoint
    if int(port) + rank > _PORT_MAX:
        raise SettingsError(f"event endpoint {endpoint!r} has no port left for rank {rank}")
    return f"{host}:{int(port) + rank}"
