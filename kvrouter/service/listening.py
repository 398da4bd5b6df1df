"""A bound TCP socket, or one line that says why not; and descriptors for all the connections to it."""

import os
import resource
import socket
from contextlib import suppress

from kvrouter.errors import SettingsError

__all__ = ["listen", "raise_descriptor_limit"]

LISTEN_BACKLOG = 4096
_DESCRIPTORS = 1_048_576


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Bind before anything is started, so that a taken port is one line and not a crash.

    Sockets that are `shared` may be several on one port; the system gives each some of the connections.
    """
    name = host.strip("[]")
    try:
        family, *_ = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server((name, port), family=family, backlog=LISTEN_BACKLOG, reuse_port=shared)
    except OSError as error:
        # A name that does not resolve has a number of its own; a taken port comes with the address once more.
        reason = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        raise SettingsError(f"cannot listen on {host}:{port}: {reason}") from None


def raise_descriptor_limit() -> None:
    """Take the descriptors that the system lets us have: each connection is one, and soft limits are often 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # some systems set the limit lower than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
