"""Small values with revisions on Redis: each key a hash of value and revision, changed by scripts in one step.

Revisions count per bucket and are never given twice, as long as the server keeps its data. Keys of a bucket share a
hash tag, so that a Redis cluster keeps them together.
"""

import math
from typing import Self

from kvrouter.store.key_values import Conflict, Entry, Exists, check_value
from kvrouter.store.names import check_bucket, check_name
from kvrouter.store.redis_connection import connect, redis_errors

__all__ = ["RedisKeyValueBucket", "RedisKeyValueStore"]

# KEYS: key, counter. ARGV: value, expected revision (0: none), lifetime in milliseconds (0: for ever).
# Returns a pair: 1 and the new revision, or 0 and the present one.
_WRITE = """
local now = tonumber(redis.call('HGET', KEYS[1], 'revision') or '0')
if now ~= tonumber(ARGV[2]) then return {0, now} end
local revision = redis.call('INCR', KEYS[2])
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'value', ARGV[1], 'revision', revision)
if tonumber(ARGV[3]) > 0 then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
return {1, revision}
"""
# KEYS: key. ARGV: expected revision (0: any).
_DELETE = """
local now = tonumber(redis.call('HGET', KEYS[1], 'revision') or '0')
if now == 0 then return {1, 0} end
if tonumber(ARGV[1]) ~= 0 and now ~= tonumber(ARGV[1]) then return {0, now} end
redis.call('DEL', KEYS[1])
return {1, now}
"""


class RedisKeyValueBucket:
    """A `KeyValueBucket` on Redis."""

    def __init__(self, store: "RedisKeyValueStore", name: str) -> None:
        self._redis = store.redis
        self._tag = f"{{{store.prefix}:{check_bucket(name)}}}"

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
        with redis_errors():
            done, revision = await self._redis.command("EVAL", _DELETE, 1, self._key(key), expected or 0)
        return None if done else Conflict(revision)

    def _key(self, key: str) -> str:
        return f"{self._tag}:value:{check_name(key)}"

    async def _write(self, key: str, value: bytes, expected: int, ttl_seconds: float | None) -> tuple[bool, int]:
        check_value(value)
        lifetime = 0 if ttl_seconds is None else max(1, math.ceil(ttl_seconds * 1000))
        keys = (self._key(key), f"{self._tag}:revision")
        with redis_errors():
            done, revision = await self._redis.command("EVAL", _WRITE, 2, *keys, value, expected, lifetime)
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
