"""Connections to NATS servers: how one is made, whom we are to it, and how that is said when it does not work out.

Credentials stand in the server's URL, or beside it; an error never repeats them.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from kvrouter.errors import MissingExtraError, TransportError, UnauthenticatedError, UnreachableError
from kvrouter.events.endpoints import without_password
from kvrouter.events.nats_names import NatsCredentials
from kvrouter.transport.tls import ClientTls, PlaneTls

try:
    from nats.aio.client import Client
    from nats.errors import AuthorizationError
    from nats.errors import Error as NatsError
except ImportError as error:
    raise MissingExtraError("the request plane over NATS", "nats") from error

__all__ = ["NatsAccess", "connect_nats"]

_CONNECT_SECONDS = 5.0
_CLOSE_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class NatsAccess:
    """Beyond a server's URL: who we are, if that does not say it, and the files of TLS, which `tls` turns on."""

    credentials: NatsCredentials | None = None
    tls: PlaneTls | None = None

    def connect_options(self, server: str) -> dict[str, Any]:
        """What the client library is to be called with for a server; raises SettingsError that names a file."""
        address, credentials = _split(server)
        credentials = credentials or self.credentials
        options: dict[str, Any] = {"servers": address}
        if credentials is not None:
            options |= credentials.connect_options()
        if self.tls is not None:
            told = ClientTls(self.tls).options(urlsplit(address).hostname or "")
            options |= {"tls": told["ssl"], "tls_hostname": told["server_hostname"]}
        return options


async def connect_nats(
    server: str,
    access: NatsAccess | None,
    *,
    disconnected: Callable[[], Awaitable[None]] | None = None,
    **options: Any,
) -> Client:
    """Connect; the client library keeps the connection up from then on.

    Raises:
        UnauthenticatedError: the server does not know us.
        UnreachableError: it cannot be reached, or is not trusted.
        SettingsError: a file cannot be read.
    """
    told: dict[str, Any] = {"reconnect_time_wait": 0.2, "max_reconnect_attempts": -1}
    told |= (access or NatsAccess()).connect_options(server) | options
    reasons: list[Exception] = []
    client = Client()

    async def failed(error: Exception) -> None:
        """Keep what was said: the library goes on trying, and would log what it hears here otherwise."""
        if not client.is_connected:
            reasons.append(error)
            if _is_final(error):
                raise error

    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            await client.connect(name="kvrouter", disconnected_cb=disconnected, error_cb=failed, **told)
    except (NatsError, OSError, TimeoutError) as error:
        told_last = reasons[-1] if reasons else error
        reason = next((each for each in reasons if _is_final(each)), told_last)
        await _close(client)
        raise _failure(server, reason) from None
    return client


async def _close(client: Client) -> None:
    with suppress(NatsError, OSError, TimeoutError):
        async with asyncio.timeout(_CLOSE_SECONDS):
            await client.close()


def _split(server: str) -> tuple[str, NatsCredentials | None]:
    """A server's address, and what its URL says of us; one name alone is a token, as everywhere with NATS."""
    parts = urlsplit(server)
    if parts.username is None:
        return server, None
    address = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    if parts.password is None:
        return address, NatsCredentials(token=unquote(parts.username))
    return address, NatsCredentials(username=unquote(parts.username), password=unquote(parts.password))


def _is_final(error: Exception) -> bool:
    """Whether the next attempt would end in the same way."""
    return _is_unknown(error) or isinstance(error, ssl.SSLCertVerificationError)


def _is_unknown(error: Exception) -> bool:
    """Whether the server does not know us; the library has a class for that, and does not always use it."""
    return isinstance(error, AuthorizationError) or "authorization violation" in str(error).lower()


def _failure(server: str, error: Exception) -> TransportError:
    shown = without_password(server)
    text = f"{type(error).__name__}: {error}".rstrip(": ")
    if _is_unknown(error):
        return UnauthenticatedError(f"NATS server {shown} does not know us")
    return UnreachableError(f"NATS server {shown}: {text}")
