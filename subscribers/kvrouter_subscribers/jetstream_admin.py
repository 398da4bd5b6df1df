"""Look after a stream of events: who reads it, and what may be removed from it without loss.

Nothing here is needed to follow a stream. The client library is loaded when a stream is opened.
"""

import ssl
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from kvrouter.errors import MissingExtraError
from kvrouter.events.nats_names import NatsCredentials, parse_nats_endpoint
from kvrouter_subscribers.jetstream_status import NatsAccess

if TYPE_CHECKING:
    from nats.js import JetStreamContext

__all__ = ["ConsumerStatus", "StreamAdministration", "StreamContents"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerStatus:
    """One consumer of a stream. Everything up to message `acknowledged` is done with, `delivered` was sent to it.

    `pending` messages were not sent yet, `unacknowledged` were and wait for their acknowledgement.
    """

    name: str
    delivered: int
    acknowledged: int
    pending: int
    unacknowledged: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamContents:
    """What a stream holds: `messages` from number `first` to `last`."""

    messages: int
    bytes: int
    first: int
    last: int


class StreamAdministration:
    """One stream, while a connection to its server is open.

        async with StreamAdministration("nats://10.0.0.7:4222/kv-events") as stream:
            await stream.purge(applied=position_that_was_stored)

    Every method may raise `nats.errors.Error` and `TimeoutError`.

    Raises:
        SettingsError: the endpoint is malformed.
        MissingExtraError: the client library is not installed.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        credentials: NatsCredentials | None = None,
        tls: ssl.SSLContext | None = None,
        timeout_seconds: float = 5.0,
    ) -> None:
        self._endpoint = parse_nats_endpoint(endpoint)
        self._access = NatsAccess(
            name="kvrouter administration", credentials=credentials, tls=tls, timeout_seconds=timeout_seconds
        )
        self._open = AsyncExitStack()
        self._jetstream: JetStreamContext | None = None

    async def __aenter__(self) -> Self:
        try:
            from kvrouter_subscribers.jetstream_connection import connection  # noqa: PLC0415 - loads the client library
        except ModuleNotFoundError as error:
            raise MissingExtraError("looking after JetStream", "nats") from error
        client = await self._open.enter_async_context(connection(self._endpoint, self._access))
        self._jetstream = client.jetstream(timeout=self._access.timeout_seconds)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._jetstream = None
        await self._open.aclose()

    async def contents(self) -> StreamContents:
        """Return what the stream holds."""
        state = (await self._server.stream_info(self._endpoint.stream)).state
        return StreamContents(messages=state.messages, bytes=state.bytes, first=state.first_seq, last=state.last_seq)

    async def consumers(self) -> list[ConsumerStatus]:
        """Return every consumer that the server knows, also those whose reader is away and has not expired yet."""
        found: dict[str, ConsumerStatus] = {}
        while True:
            page = await self._server.consumers_info(self._endpoint.stream, offset=len(found))
            before = len(found)
            for info in page:
                found[info.name] = ConsumerStatus(
                    name=info.name,
                    delivered=info.delivered.stream_seq if info.delivered else 0,
                    acknowledged=info.ack_floor.stream_seq if info.ack_floor else 0,
                    pending=info.num_pending or 0,
                    unacknowledged=info.num_ack_pending or 0,
                )
            if len(found) == before:
                return list(found.values())

    async def consumer_count(self) -> int:
        """Return how many consumers there are."""
        return int((await self._server.stream_info(self._endpoint.stream)).state.consumer_count)

    async def delete_consumer(self, name: str) -> bool:
        """Delete a consumer; returns whether it was there. A reader that still uses it makes it anew at once."""
        from nats.js.errors import NotFoundError  # noqa: PLC0415 - loads the client library

        try:
            return await self._server.delete_consumer(self._endpoint.stream, name)
        except NotFoundError:
            return False

    async def purge_floor(self, applied: int) -> int:
        """Return the last message that nobody needs any more, 0 if there is none.

        `applied` is the last message whose effect is stored safely, as a router's snapshot. No consumer may still
        have to read the message; one that has acknowledged nothing needs everything.
        """
        return min([applied, *(consumer.acknowledged for consumer in await self.consumers())])

    async def purge(self, applied: int) -> int:
        """Remove what nobody needs any more, as `purge_floor` finds it; returns the last message removed or 0."""
        floor = await self.purge_floor(applied)
        if floor <= 0:
            return 0
        await self._server.purge_stream(self._endpoint.stream, seq=floor + 1)
        return floor

    @property
    def _server(self) -> "JetStreamContext":
        assert self._jetstream is not None, "the stream is not open"
        return self._jetstream
