"""Takes requests over core NATS: on a subject of this worker's own, and on one that a group of workers shares."""

from typing import Any

from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.nats_access import NatsAccess
from kvrouter.transport.nats_channel import NatsChannel

__all__ = ["NatsRequestServer"]


class NatsRequestServer:
    """The server of the request plane over NATS.

    `subject` is this worker's own. Requests to `group_subject`, if there is one, go to one of the workers that listen
    there; NATS chooses. `access` says who we are to the server; `options` are further ones of the client library.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        *,
        server: str,
        subject: str,
        group_subject: str | None = None,
        heartbeat_seconds: float = 5.0,
        access: NatsAccess | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.endpoints = endpoints
        self._subject, self._group_subject = subject, group_subject
        self._channel = NatsChannel(
            server, heartbeat_seconds=heartbeat_seconds, endpoints=endpoints, access=access, options=options
        )

    @property
    def address(self) -> str:
        """The subject that reaches this worker."""
        return self._subject

    @property
    def channel(self) -> NatsChannel:
        """What counts losses."""
        return self._channel

    async def start(self) -> None:
        """Begin to listen. Raises as `connect_nats`."""
        await self._channel.connect()
        await self._channel.listen(self._subject)
        if self._group_subject is not None:
            await self._channel.listen(self._group_subject, group="workers")

    async def stop(self, *, drain_seconds: float = 0.0) -> None:
        """Take nothing more, let what runs finish, and close. Idempotent."""
        if self._channel.is_connected:
            await self.endpoints.drain(drain_seconds)
        await self._channel.close("the worker has stopped")
