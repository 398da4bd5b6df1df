"""Makes connections to NATS servers, and says why one was not made; what was shown to the server is never repeated."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from kvrouter.errors import MissingExtraError, TransportError, UnauthenticatedError, UnreachableError
from kvrouter.events.endpoints import without_password
from kvrouter.transport.nats_access import NatsAccess

try:
    from nats.aio.client import Client
    from nats.errors import AuthorizationError
    from nats.errors import Error as NatsError

    from kvrouter.nats_client import LastingClient
except ImportError as error:
    raise MissingExtraError("the request plane over NATS", "nats") from error

__all__ = ["connect_nats"]

_CLOSE_SECONDS = 0.5
_PING_SECONDS, _PINGS_UNANSWERED_MAX = 20.0, 2


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
    told: dict[str, Any] = {
        "reconnect_time_wait": 0.2, "max_reconnect_attempts": -1,
        "ping_interval": _PING_SECONDS, "max_outstanding_pings": _PINGS_UNANSWERED_MAX,
    }  # fmt: skip
    access = access or NatsAccess()
    told |= access.connect_options(server) | options
    reasons: list[Exception] = []
    client, made = LastingClient(), False

    async def failed(error: Exception) -> None:
        """Keep what was said: the library goes on trying, and would log what it hears here otherwise.

        Only the first connection may end by it: one that is lost is made again for ever, also by a server that does
        not know us now.
        """
        if not made and not client.is_connected:
            reasons.append(error)
            if _is_final(error):
                raise error

    try:
        async with asyncio.timeout(access.connect_seconds):
            await client.connect(name="kvrouter", disconnected_cb=disconnected, error_cb=failed, **told)
            made = True
    except (NatsError, OSError, TimeoutError) as error:
        told_last = reasons[-1] if reasons else error
        reason = next((each for each in reasons if _is_final(each)), told_last)
        await _close(client)
        raise _failure(server, reason) from None
    except BaseException:
        await asyncio.shield(_close(client))  # Cancelled in the middle, it would leave a socket open.
        raise
    return client


async def _close(client: Client) -> None:
    with suppress(NatsError, OSError, TimeoutError):
        async with asyncio.timeout(_CLOSE_SECONDS):
            await client.close()
    transport = client._transport  # noqa: SLF001 - where the server refused us it would stay open
    if transport is not None:
        transport.close()  # type: ignore[no-untyped-call]


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
