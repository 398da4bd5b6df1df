"""Removes what dead routers left on the server: groups that nobody reads with any more, members that have gone.

A group holds back nothing here (streams are trimmed by length), but each costs memory for what it was given and did not
acknowledge. A router says that it lives by a key that expires; the others remove the groups of those whose key is
gone. One that merely slept finds its group missing and makes it anew where it had stopped.
"""

import asyncio
import contextlib
import random
from typing import Any

from kvrouter.events.redis_names import GROUP_PREFIX, alive_key
from kvrouter.redis_client import RedisClient, RedisError
from kvrouter_subscribers.redis_limits import RedisLimits

__all__ = ["Sweeper"]

# KEYS: stream, key of life. ARGV: group. In one step, so that nobody comes to life between.
_REMOVE_GROUP = """
if redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
return redis.call('XGROUP', 'DESTROY', KEYS[1], ARGV[1])
"""
# KEYS: stream. ARGV: group, consumer. What it was given must have been taken over before.
_REMOVE_CONSUMER = """
if #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2]) > 0 then return 0 end
redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
return 1
"""


class Sweeper:
    """Keeps one group alive, and removes those of a stream that are dead."""

    def __init__(self, client: RedisClient, stream: str, *, group: str, shared: bool, limits: RedisLimits) -> None:
        self._client, self._stream, self._group, self._shared = client, stream, group, shared
        self._limits = limits
        self.removed = 0

    async def live(self) -> None:
        """Say that somebody reads with our group."""
        seconds = max(1, round(self._limits.inactive_seconds))
        await self._client.command("SET", alive_key(self._stream, self._group), 1, "EX", seconds)

    async def leave(self) -> None:
        """Remove our own group: nobody will ever read with it again. A server that does not answer is left alone."""
        with contextlib.suppress(RedisError, OSError):
            async with asyncio.timeout(self._limits.leave_seconds):
                await self._client.command("XGROUP", "DESTROY", self._stream, self._group)
                await self._client.command("DEL", alive_key(self._stream, self._group))

    async def run(self) -> None:
        """Do both until cancelled; a server that cannot be asked is the reader's to notice."""
        while True:
            period = min(self._limits.sweep_seconds, self._limits.inactive_seconds / 5)
            await asyncio.sleep(period * random.uniform(0.5, 1.0))  # Spreads them over the period.
            with contextlib.suppress(RedisError, OSError, TimeoutError):
                await self.live()
                await self._sweep_groups()
                if self._shared:
                    await self._sweep_consumers()

    async def _sweep_groups(self) -> None:
        for group in await self._listing("GROUPS", self._stream):
            name = group[b"name"].decode()
            if name.startswith(GROUP_PREFIX) and name != self._group:
                self.removed += await self._client.command(
                    "EVAL", _REMOVE_GROUP, 2, self._stream, alive_key(self._stream, name), name
                )

    async def _sweep_consumers(self) -> None:
        for consumer in await self._listing("CONSUMERS", self._stream, self._group):
            if consumer[b"idle"] > self._limits.inactive_seconds * 1000 and not consumer[b"pending"]:
                await self._client.command("EVAL", _REMOVE_CONSUMER, 1, self._stream, self._group, consumer[b"name"])

    async def _listing(self, *what: str) -> list[dict[bytes, Any]]:
        rows = await self._client.command("XINFO", *what)
        return [dict(zip(row[::2], row[1::2], strict=True)) for row in rows]
