"""One connection to a NATS server, from its making to its loss.

The client's own reconnection stays off: it would send again what it had buffered and ask again with what it knew
before. Whoever holds a connection begins anew when it is lost, from what is true then.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from nats.aio.client import Client
from nats.errors import Error, NoServersError

from kvrouter.events.nats_names import NatsEndpoint
from kvrouter_subscribers.jetstream_status import NatsAccess

__all__ = ["connection"]

_PING_SECONDS = 10
_PINGS_OUTSTANDING_MAX = 2
_CLOSE_SECONDS = 0.5


@asynccontextmanager
async def connection(endpoint: NatsEndpoint, access: NatsAccess) -> AsyncIterator[Client]:
    """Connect, and disconnect at the end. When the connection is lost, whatever waits within is ended.

    Raises:
        nats.errors.Error: the server refuses us.
        OSError: nobody answers there, or the connection was lost. TimeoutError: not in time.
    """
    client, seconds = Client(), access.timeout_seconds
    credentials = endpoint.credentials or access.credentials
    tls = ssl.create_default_context() if access.tls is None and endpoint.secure else access.tls
    reasons: list[Exception] = []
    connected = False
    life = asyncio.timeout(seconds)

    async def closed() -> None:
        with suppress(RuntimeError):  # We closed it ourselves.
            life.reschedule(asyncio.get_running_loop().time())

    async def failed(error: Exception) -> None:
        reasons[:] = [error]

    try:
        async with life:
            await _connect(
                client,
                servers=endpoint.server,
                name=access.name,
                allow_reconnect=False,
                max_reconnect_attempts=1,  # Of the first connection; 0 would try for ever.
                reconnect_time_wait=0,
                connect_timeout=max(1, round(seconds)),
                ping_interval=_PING_SECONDS,
                max_outstanding_pings=_PINGS_OUTSTANDING_MAX,
                closed_cb=closed,
                error_cb=failed,
                tls=tls,
                **(credentials.connect_options() if credentials else {}),
            )
            life.reschedule(None)
            connected = True
            reasons.clear()
            yield client
    except (NoServersError, TimeoutError) as error:
        if not connected and isinstance(reasons[0] if reasons else error, TimeoutError):
            raise TimeoutError(f"no connection within {seconds:g} s") from None
        if reasons:
            raise reasons[0] from None
        if client.is_closed:
            raise ConnectionError("the connection was lost") from None
        raise
    finally:
        await _close(client)


async def _connect(client: Client, **options: Any) -> None:
    """Connect. Who is cancelled meanwhile waits a moment: the client would leak the socket that it is just opening."""
    connecting = asyncio.ensure_future(client.connect(**options))
    try:
        await asyncio.shield(connecting)
    except asyncio.CancelledError:
        await asyncio.wait({connecting}, timeout=_CLOSE_SECONDS)
        if not connecting.cancel() and not connecting.cancelled():
            connecting.exception()
        raise
    except OSError:  # A certificate that is not trusted is a `ValueError` as well.
        raise
    except (ValueError, TypeError, LookupError, AttributeError) as error:  # of the client's parser
        raise ConnectionError(f"the server does not speak NATS ({type(error).__name__})") from error


async def _close(client: Client) -> None:
    """Close it, in a moment, and whatever happens meanwhile."""
    try:
        with suppress(Error, OSError, TimeoutError):  # It was lost already, or does not answer.
            async with asyncio.timeout(_CLOSE_SECONDS):
                await client.close()
    finally:  # `close` leaves it open if it is cancelled, or if what it still wants to write fails.
        transport = client._transport  # noqa: SLF001
        if transport is not None:
            transport.close()  # type: ignore[no-untyped-call]
