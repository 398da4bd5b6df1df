"""One connection to a NATS server, from its making to its loss.

The client's own reconnection stays off: it would send again what it had buffered and ask again with what it knew
before. Whoever holds a connection begins anew when it is lost, from what is true then.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from nats.aio.client import Client
from nats.errors import Error, NoServersError

from kvrouter.events.nats_names import NatsEndpoint
from kvrouter_subscribers.jetstream_status import NatsAccess

__all__ = ["NatsConnection", "connection"]

_PING_SECONDS = 10
_PINGS_OUTSTANDING_MAX = 2


class NatsConnection:
    """A connection that is used until `lost` is set."""

    def __init__(self) -> None:
        self.client = Client()
        self.lost = asyncio.Event()
        self.reason: Exception | None = None
        """The client's last complaint; if it was fatal `closed` follows."""

    @property
    def error(self) -> str | None:
        """The complaint as it is shown."""
        return None if self.reason is None else f"{type(self.reason).__name__}: {self.reason}"

    async def closed(self) -> None:
        """Note the end, whoever brought it."""
        self.lost.set()

    async def failed(self, error: Exception) -> None:
        """Keep the client's complaint."""
        self.reason = error


@asynccontextmanager
async def connection(endpoint: NatsEndpoint, access: NatsAccess) -> AsyncIterator[NatsConnection]:
    """Connect, and disconnect at the end.

    Raises:
        nats.errors.Error: the server refuses us.
        OSError: nobody answers there. TimeoutError: not in time.
    """
    made = NatsConnection()
    credentials = endpoint.credentials or access.credentials
    tls = ssl.create_default_context() if access.tls is None and endpoint.secure else access.tls
    try:
        async with asyncio.timeout(access.timeout_seconds):
            await made.client.connect(
                endpoint.server,
                name=access.name,
                allow_reconnect=False,
                max_reconnect_attempts=1,  # Of the first connection; 0 would try for ever.
                reconnect_time_wait=0,
                connect_timeout=max(1, round(access.timeout_seconds)),
                ping_interval=_PING_SECONDS,
                max_outstanding_pings=_PINGS_OUTSTANDING_MAX,
                closed_cb=made.closed,
                error_cb=made.failed,
                tls=tls,
                **(credentials.connect_options() if credentials else {}),
            )
        yield made
    except NoServersError:
        raise made.reason or OSError("nobody answers") from None
    finally:
        try:
            async with asyncio.timeout(access.timeout_seconds):
                await made.client.close()
        except (Error, OSError, TimeoutError):
            pass  # It was lost already, or does not answer: there is nothing left to give back.
