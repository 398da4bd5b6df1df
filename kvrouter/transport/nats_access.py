"""Whom we are to a NATS server, and how that is proved: credentials in its URL or beside it, and the files of TLS."""

from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from kvrouter.events.nats_names import NatsCredentials
from kvrouter.transport.tls import ClientTls, PlaneTls

__all__ = ["NatsAccess"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NatsAccess:
    """Beyond a server's URL: who we are, if that does not say it, and the files of TLS, which `tls` turns on."""

    credentials: NatsCredentials | None = None
    tls: PlaneTls | None = None
    connect_seconds: float = 5.0

    def connect_options(self, server: str) -> dict[str, Any]:
        """What the client library is to be called with for a server; raises SettingsError that names a file."""
        address, credentials = _split(server)
        credentials = credentials or self.credentials
        options: dict[str, Any] = {"servers": address, "connect_timeout": self.connect_seconds}
        if credentials is not None:
            options |= credentials.connect_options()
        if self.tls is not None:
            told = ClientTls(self.tls).options(urlsplit(address).hostname or "")
            options |= {"tls": told["ssl"], "tls_hostname": told["server_hostname"]}
        return options


def _split(server: str) -> tuple[str, NatsCredentials | None]:
    """A server's address, and what its URL says of us; one name alone is a token, as everywhere with NATS."""
    parts = urlsplit(server)
    if parts.username is None:
        return server, None
    address = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    if parts.password is None:
        return address, NatsCredentials(token=unquote(parts.username))
    return address, NatsCredentials(username=unquote(parts.username), password=unquote(parts.password))
