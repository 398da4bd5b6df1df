"""Listens to the load reports of a stream's publishers, beside the reading of the stream.

They come over a channel that keeps nothing: a report is a state, and the next one replaces it. A channel needs a
connection of its own, and its troubles are not the stream's: the events go on without it.
"""

import asyncio
from collections.abc import Callable

from kvrouter.events.redis_names import load_channel
from kvrouter.redis_client import RedisClient, RedisError
from kvrouter_subscribers.redis_limits import RedisLimits

__all__ = ["LoadListener"]


class LoadListener:
    """Hands every message of the channel to `take`, and what goes wrong to `fail`."""

    def __init__(
        self,
        client: RedisClient,
        stream: str,
        *,
        take: Callable[[bytes], None],
        fail: Callable[[Exception], None],
        limits: RedisLimits,
    ) -> None:
        self._client, self._channel, self._limits = client, load_channel(stream), limits
        self._take, self._fail = take, fail

    async def run(self) -> None:
        """Listen until cancelled, over one connection after the other."""
        while True:
            try:
                async with self._client.listening(self._channel) as messages:
                    async for message in messages:
                        self._take(message)
            except (RedisError, OSError, TimeoutError) as error:
                self._fail(error)
            await asyncio.sleep(self._limits.reconnect_seconds_max)
