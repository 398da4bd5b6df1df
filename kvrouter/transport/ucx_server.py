"""Takes requests over UCX. Experimental."""

import asyncio
from contextlib import suppress
from typing import Any

from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.ucx_channel import UcxChannel, UcxUse, ucxx

__all__ = ["UcxRequestServer"]

_FLUSH_SECONDS = 1.0
_CLOSE_SECONDS = 10.0
_TURN_SECONDS = 0.001


class UcxRequestServer:
    """The server of the request plane over UCX. With `port` 0 the system chooses one.

    UCX listens on every address; `host` is what clients are told.
    """

    def __init__(
        self, endpoints: Endpoints, *, host: str = "127.0.0.1", port: int = 0, heartbeat_seconds: float = 5.0
    ) -> None:
        self.endpoints = endpoints
        self._host, self._port, self._heartbeat_seconds = host, port, heartbeat_seconds
        self._channels: set[UcxChannel] = set()
        self._use = UcxUse()
        self._listener: Any = None

    @property
    def address(self) -> str:
        """Where clients reach it."""
        if self._listener is None:
            raise RuntimeError("the server has not started")
        return f"{self._host}:{self._listener.port}"

    async def start(self) -> None:
        """Begin to listen. Raises OSError if the address is taken."""
        self._use.begin()
        self._listener = ucxx.create_listener(self._serve, self._port)

    async def stop(self, *, drain_seconds: float = 0.0) -> None:
        """Take nothing more, let what runs finish, and close. Idempotent."""
        listener, self._listener = self._listener, None
        if listener is None:
            return
        await self.endpoints.drain(drain_seconds)
        for channel in tuple(self._channels):
            await channel.flush(_FLUSH_SECONDS)
            channel.close("the worker has stopped")
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                while listener.active_clients:  # noqa: ASYNC110 - UCX tells nobody when it is done with them
                    await asyncio.sleep(_TURN_SECONDS)
        listener.close()
        del listener
        self._use.end()

    async def _serve(self, endpoint: Any) -> None:
        """One client, for as long as it is there."""
        channel = UcxChannel(endpoint, heartbeat_seconds=self._heartbeat_seconds, endpoints=self.endpoints)
        del endpoint
        self._channels.add(channel)
        await channel.run(lambda: self._channels.discard(channel))
