"""One reader at a time for a router's consumer group: two routers of one name would get half of the entries each.

A key beside the stream names who reads. It lives shortly and is renewed by its holder; whoever else has the same name
finds it there and stays away until it expires, or is given up at the end.
"""

import asyncio
import contextlib
import time

from kvrouter.events.redis_names import reader_key
from kvrouter.redis_client import RedisClient, RedisError
from kvrouter_subscribers.redis_limits import RedisLimits

__all__ = ["GroupLease", "GroupLostError", "GroupTakenError"]

_ANOTHER, _WE = 0, 2
_RENEWALS = 4
"""So often it is renewed in its life: one that is late does not lose it."""

# KEYS: who reads. ARGV: we, milliseconds. Answers who read until now: 0 another, 1 nobody, 2 we.
_HOLD = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return holder and 2 or 1
"""
# KEYS: who reads. ARGV: we.
_LEAVE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class GroupLostError(Exception):
    """We were not heard of for too long: another one may have read as `group`, and has gone again."""

    def __init__(self, group: str) -> None:
        super().__init__(f"{group!r} was nobody's for a while: it is read anew from where we stopped")


class GroupTakenError(Exception):
    """Another router reads as `group`."""

    def __init__(self, group: str) -> None:
        super().__init__(f"another router reads as {group!r}: give each its own name (events.router_id)")


class GroupLease:
    """The right to read as `group`, for the process that `token` names. Methods raise what the client raises."""

    def __init__(self, client: RedisClient, stream: str, *, group: str, token: str, limits: RedisLimits) -> None:
        self._client, self._group, self._token = client, group, token
        self._seconds, self._leave_seconds = limits.lease_seconds, limits.leave_seconds
        self._key = reader_key(stream, group)
        self._renewed_at = 0.0
        self._lost: GroupLostError | GroupTakenError | None = None

    async def take(self) -> None:
        """Take it. A former session of this process may still hold it.

        Raises:
            GroupTakenError: another one has it.
        """
        if not await self._hold():
            raise GroupTakenError(self._group)

    async def check(self) -> None:
        """Make sure, before a read, that it is still ours: who slept for long has to ask.

        Raises:
            GroupTakenError: another one has it.
            GroupLostError: another one may have had it.
        """
        if time.monotonic() - self._renewed_at > self._seconds / 2:
            await self._renew()
        if self._lost is not None:
            raise self._lost

    async def run(self) -> None:
        """Keep it until it is lost or we are cancelled; a server that cannot be asked is the reader's to notice."""
        while self._lost is None:
            await asyncio.sleep(self._seconds / _RENEWALS)
            with contextlib.suppress(RedisError, OSError, TimeoutError):
                await self._renew()

    async def leave(self) -> None:
        """Give it up, so that the next life of this router need not wait. A server that is silent is left alone."""
        with contextlib.suppress(RedisError, OSError):
            async with asyncio.timeout(self._leave_seconds):
                await self._client.command("EVAL", _LEAVE, 1, self._key, self._token)

    async def _renew(self) -> None:
        before = await self._hold()
        if before != _WE:
            self._lost = GroupTakenError(self._group) if before == _ANOTHER else GroupLostError(self._group)

    async def _hold(self) -> int:
        asked_at = time.monotonic()
        milliseconds = max(1, round(self._seconds * 1000))
        before = int(await self._client.command("EVAL", _HOLD, 1, self._key, self._token, milliseconds))
        if before != _ANOTHER:
            self._renewed_at = asked_at
        return before
