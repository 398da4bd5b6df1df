"""One connection to a NATS server for a store: made with the first call, kept up by the client, with our errors."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from kvrouter.errors import MissingExtraError, StoreError
from kvrouter.store.addresses import NO_OPTIONS

try:
    import nats
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription
    from nats.errors import Error as NatsError
    from nats.errors import MaxPayloadError
    from nats.errors import TimeoutError as NatsTimeoutError
    from nats.js import JetStreamContext, api, errors
    from nats.nuid import NUID

    PushSubscription = JetStreamContext.PushSubscription
except ImportError as error:
    raise MissingExtraError("a store on NATS", "nats") from error

__all__ = [
    "ANSWER_SECONDS",
    "Client",
    "JetStreamContext",
    "MaxPayloadError",
    "Msg",
    "NatsConnection",
    "NatsError",
    "NatsTimeoutError",
    "PushSubscription",
    "Subscription",
    "api",
    "errors",
]

_CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 5.0
_CLOSE_SECONDS = 2.0


class NatsConnection:
    """A JetStream context when one is needed; lives on the event loop of its first use."""

    def __init__(self, server: str, options: Mapping[str, Any] = NO_OPTIONS) -> None:
        self._server = server
        names_user = urlsplit(server).username is not None
        self._options = {name: value for name, value in options.items() if name == "tls" or not names_user}
        """Certificates; and who we are, where the address does not say."""
        self._client: Client | None = None
        self._opening = asyncio.Lock()
        self._numbers = NUID()

    def unique(self) -> str:
        """Return a name that nobody else has, as NATS clients make them."""
        return self._numbers.next().decode()

    @contextlib.asynccontextmanager
    async def jetstream(self) -> AsyncIterator[JetStreamContext]:
        """Give a JetStream context; what fails inside is a `StoreError`, unless it was handled."""
        async with self.connected() as client:
            yield client.jetstream(timeout=ANSWER_SECONDS)

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[Client]:
        """Give the connection itself; errors as of `jetstream`."""
        try:
            async with self._opening:
                if self._client is None or self._client.is_closed:
                    self._client = await self._connect()
            yield self._client
        except (NatsError, OSError, TimeoutError) as error:
            raise StoreError(f"NATS: {type(error).__name__}: {error}", reason="unavailable") from error

    async def close(self) -> None:
        """Close the connection, if there is one. May be called again."""
        client, self._client = self._client, None
        if client is not None and not client.is_closed:
            with contextlib.suppress(TimeoutError, NatsError, OSError):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await client.close()

    async def _connect(self) -> Client:
        reasons: list[Exception] = []

        async def failed(error: Exception) -> None:
            """Keep the last one: the client goes on trying, and would log what it hears here otherwise."""
            reasons[:] = [error]

        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                return await nats.connect(
                    self._server,
                    name="kvrouter-store",
                    connect_timeout=_CONNECT_SECONDS,
                    reconnect_time_wait=0.2,
                    max_reconnect_attempts=-1,
                    error_cb=failed,
                    **self._options,
                )
        except TimeoutError:
            if reasons and isinstance(reasons[0], (NatsError, OSError)):
                raise reasons[0] from None
            raise TimeoutError("no answer") from None
        except OSError:  # A certificate that is not trusted is a `ValueError` as well.
            raise
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise ConnectionError(f"the server does not speak NATS ({type(error).__name__})") from error
