"""A bound TCP socket, or one line that says why not."""

import os
import socket

from kvrouter.errors import SettingsError

__all__ = ["listen"]

LISTEN_BACKLOG = 4096


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
