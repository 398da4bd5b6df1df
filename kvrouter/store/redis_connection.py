"""One connection pool to a Redis server for a store: opened late, with deadlines, and with our errors."""

import contextlib
from collections.abc import Iterator

from kvrouter.errors import MissingExtraError, StoreError

try:
    from redis.asyncio import Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
    from redis.exceptions import RedisError
except ImportError as error:
    raise MissingExtraError("a store on Redis", "redis") from error

__all__ = ["connect", "redis_errors"]

_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 15.0


def connect(server: str) -> "Redis":
    """Return a client that connects with its first command. It never repeats one: a change might be made twice."""
    return Redis.from_url(
        server,
        socket_connect_timeout=_CONNECT_SECONDS,
        socket_timeout=_ANSWER_SECONDS,
        retry=Retry(NoBackoff(), 0),
        decode_responses=False,
    )


@contextlib.contextmanager
def redis_errors() -> Iterator[None]:
    """Tell what the server or the network refuses as a `StoreError`; their texts hold no passwords."""
    try:
        yield
    except (RedisError, OSError) as error:
        raise StoreError(f"Redis: {type(error).__name__}: {error}", reason="unavailable") from error
