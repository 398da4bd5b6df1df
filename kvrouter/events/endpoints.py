"""Where events are published: the address rules that engines, publishers and subscribers share.

Pure string rules of the vLLM wire; nothing here opens a socket or resolves a name.
"""

from kvrouter.errors import SettingsError

__all__ = ["check_endpoint", "is_wildcard", "publisher_binds", "rank_endpoint"]

_SCHEMES = ("tcp://", "ipc://", "inproc://")
_PORT_MAX = 65535


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
    chooses one for each rank. Paths and in-process names get the suffix `_dpN`.

    Raises:
        SettingsError: the port would exceed 65535.
    """
    if rank == 0:
        return endpoint
    if not endpoint.startswith("tcp://"):
        return f"{endpoint}_dp{rank}"
    host, _, port = endpoint.rpartition(":")
    if port in ("*", "0"):
        return endpoint
    if int(port) + rank > _PORT_MAX:
        raise SettingsError(f"event endpoint {endpoint!r} has no port left for rank {rank}")
    return f"{host}:{int(port) + rank}"
