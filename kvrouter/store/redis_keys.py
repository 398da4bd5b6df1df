"""Small values with revisions on Redis: each key a hash of value and revision, changed by scripts in one step.

Revisions count per bucket and are never given twice, as long as the server keeps its data. Keys of a bucket share a
hash tag, so that a Redis cluster keeps them together.
"""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from typing import Final, Self

from kvrouter.store.key_values import Change, Conflict, Entry, Exists, Synced, check_value
from kvrouter.store.names import check_bucket, check_name
from kvrouter.store.redis_connection import connect, redis_errors
from kvrouter.store.watching import Followed, watched

__all__ = ["RedisKeyValueBucket", "RedisKeyValueStore"]

# KEYS: key, counter, names of all keys. ARGV: value, expected revision (0: none, -1: any), lifetime in milliseconds
# (0: for ever), name, channel that is told. Returns a pair: 1 and the new revision, or 0 and the present one.
_WRITE = """
local now = tonumber(redis.call('HGET', KEYS[1], 'revision') or '0')
local expected = tonumber(ARGV[2])
if expected >= 0 and now ~= expected then return {0, now} end
local revision = redis.call('INCR', KEYS[2])
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'value', ARGV[1], 'revision', revision)
if tonumber(ARGV[3]) > 0 then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
redis.call('SADD', KEYS[3], ARGV[4])
redis.call('PUBLISH', ARGV[5], ARGV[4])
return {1, revision}
"""
# KEYS: key, names of all keys. ARGV: expected revision (0: any), name, channel that is told.
_DELETE = """
local now = tonumber(redis.call('HGET', KEYS[1], 'revision') or '0')
if now == 0 then return {1, 0} end
if tonumber(ARGV[1]) ~= 0 and now ~= tonumber(ARGV[1]) then return {0, now} end
redis.call('DEL', KEYS[1])
redis.call('SREM', KEYS[2], ARGV[2])
redis.call('PUBLISH', ARGV[3], ARGV[2])
return {1, now}
"""
# KEYS: names of all keys. ARGV: what keys begin with, before the name; prefix of names. Names whose values have expired
# leave the list. Returns name, value, revision of each.
_LIST = """
local found = {}
for _, name in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  if string.sub(name, 1, #ARGV[2]) == ARGV[2] then
    local pair = redis.call('HMGET', ARGV[1] .. name, 'value', 'revision')
    if pair[2] then
      found[#found + 1] = {name, pair[1], pair[2]}
    else
      redis.call('SREM', KEYS[1], name)
    end
  end
end
return found
"""
_EXPIRY_SECONDS: Final = 0.5
"""How often a follower looks for values that have expired, of which the server tells nobody."""


class RedisKeyValueBucket:
    """A `KeyValueBucket` on Redis."""

    def __init__(self, store: "RedisKeyValueStore", name: str) -> None:
        self._redis = store.redis
        self._tag = f"{{{store.prefix}:{check_bucket(name)}}}"
        self._names = f"{self._tag}:names"
        self._channel = f"{self._tag}:changes"

    async def get(self, key: str) -> Entry | None:
        """Return the value now; see `KeyValueBucket`."""
        with redis_errors():
            value, revision = await self._redis.command("HMGET", self._key(key), "value", "revision")
        return None if value is None or revision is None else Entry(value, int(revision))

    async def create(self, key: str, value: bytes, *, ttl_seconds: float | None = None) -> int | Exists:
        """Write a value where there is none; see `KeyValueBucket`."""
        done, revision = await self._write(key, value, 0, ttl_seconds)
        return revision if done else Exists(revision)

    async def update(
        self, key: str, value: bytes, *, expected: int, ttl_seconds: float | None = None
    ) -> int | Conflict:
        """Replace the value of revision `expected`; see `KeyValueBucket`."""
        done, revision = await self._write(key, value, expected, ttl_seconds)
        return revision if done else Conflict(revision or None)

    async def delete(self, key: str, *, expected: int | None = None) -> Conflict | None:
        """Remove a value; see `KeyValueBucket`."""
        keys = (self._key(key), self._names)
        with redis_errors():
            done, revision = await self._redis.command("EVAL", _DELETE, 2, *keys, expected or 0, key, self._channel)
        return None if done else Conflict(revision)

    async def put(self, key: str, value: bytes, *, ttl_seconds: float | None = None) -> int:
        """Write a value whatever is there; see `KeyValueBucket`."""
        _, revision = await self._write(key, value, -1, ttl_seconds)
        return revision

    async def entries(self, prefix: str = "") -> dict[str, Entry]:
        """Return every key with its value; see `KeyValueBucket`."""
        with redis_errors():
            found = await self._redis.command("EVAL", _LIST, 1, self._names, f"{self._tag}:value:", prefix)
        return {name.decode(): Entry(value, int(revision)) for name, value, revision in found}

    def watch(self, prefix: str = "") -> AsyncIterator[Change | Synced]:
        """Follow keys; see `KeyValueBucket`."""
        return watched(lambda: self._following(prefix))

    @contextlib.asynccontextmanager
    async def _following(self, prefix: str) -> AsyncIterator[Followed]:
        with redis_errors():
            async with self._redis.listening(self._channel) as messages:
                yield Followed(await self.entries(prefix), self._changes(prefix, messages))

    async def _changes(self, prefix: str, messages: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Entry]]:
        """Every key again whenever something was told, and now and then for what has expired."""
        told = asyncio.ensure_future(anext(messages))
        try:
            while True:
                done, _ = await asyncio.wait({told}, timeout=_EXPIRY_SECONDS)
                if done:
                    told.result()
                    told = asyncio.ensure_future(anext(messages))
                yield await self.entries(prefix)
        finally:
            told.cancel()
            await asyncio.gather(told, return_exceptions=True)

    def _key(self, key: str) -> str:
        return f"{self._tag}:value:{check_name(key)}"

    async def _write(self, key: str, value: bytes, expected: int, ttl_seconds: float | None) -> tuple[bool, int]:
        check_value(value)
        lifetime = 0 if ttl_seconds is None else max(1, math.ceil(ttl_seconds * 1000))
        keys = (self._key(key), f"{self._tag}:revision", self._names)
        arguments = (value, expected, lifetime, key, self._channel)
        with redis_errors():
            done, revision = await self._redis.command("EVAL", _WRITE, len(keys), *keys, *arguments)
        return bool(done), revision


class RedisKeyValueStore:
    """A `KeyValueStore` on the server of the URL `server`, under keys that begin with `prefix`."""

    def __init__(self, server: str, *, prefix: str) -> None:
        self.redis, self.prefix = connect(server), prefix

    def bucket(self, name: str) -> RedisKeyValueBucket:
        """Return a bucket; see `KeyValueStore`."""
        return RedisKeyValueBucket(self, name)

    async def close(self) -> None:
        """Close the connections. May be called again."""
        await self.redis.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
