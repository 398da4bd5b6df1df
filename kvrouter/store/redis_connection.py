"""How a store reaches Redis: the URL's server, with deadlines, and with our errors."""

import contextlib
from collections.abc import Iterator
from typing import Final

from kvrouter.errors import MissingExtraError, StoreError

try:
    from redis.asyncio.connection import parse_url

    from kvrouter.redis_client import RedisClient, RedisError
except ImportError as error:
    raise MissingExtraError("a store on Redis", "redis") from error

__all__ = ["ANSWER_SECONDS", "connect", "redis_errors"]

ANSWER_SECONDS: Final = 15.0


def connect(server: str) -> RedisClient:
    """Return a client that connects with its first command."""
    options = dict(parse_url(server))
    if options.pop("connection_class", None) is not None:
        options["ssl"] = True
    return RedisClient(options, answer_seconds=ANSWER_SECONDS)


@contextlib.contextmanager
def redis_errors() -> Iterator[None]:
    """Tell what the server or the network refuses as a `StoreError`; their texts hold no passwords."""
    try:
        yield
    except (RedisError, OSError) as error:
        raise StoreError(f"Redis: {type(error).__name__}: {error}", reason="unavailable") from error
