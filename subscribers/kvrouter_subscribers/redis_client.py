"""One client of a Redis server for what a stream's reader does at the same time, with deadlines."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple, cast

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from kvrouter.errors import WireError
from kvrouter.events import Envelope, decode_envelope
from kvrouter.events.redis_names import ENTRY_FIELD, RedisEndpoint, RedisTls

__all__ = [
    "Entry",
    "Redis",
    "RedisError",
    "ResponseError",
    "command",
    "connection",
    "decode_entry",
    "transaction",
]


class Entry(NamedTuple):
    """One entry of a stream: its id and its fields, None if it was trimmed after it had been handed out."""

    id: bytes
    fields: dict[bytes, bytes] | None


@contextlib.asynccontextmanager
async def connection(endpoint: RedisEndpoint, tls: RedisTls | None, *, answer_seconds: float) -> AsyncIterator["Redis"]:
    """Give a client that connects with its first command, and never repeats one by itself."""
    client = Redis(
        **endpoint.client_options(tls),
        socket_timeout=answer_seconds,
        socket_connect_timeout=answer_seconds,
        retry=Retry(NoBackoff(), 0),
    )
    try:
        yield client
    finally:
        with contextlib.suppress(RedisError, OSError):  # It was lost already.
            await client.aclose()


async def command(client: "Redis", *arguments: object) -> Any:
    """Send a command as it is written; the library's own methods for streams differ between its versions."""
    return await cast("Any", client).execute_command(*arguments)


async def transaction(client: "Redis", *commands: Sequence[object]) -> list[Any]:
    """Send commands that the server executes together; returns their answers."""
    async with client.pipeline(transaction=True) as pipeline:
        for each in commands:
            cast("Any", pipeline).execute_command(*each)
        return await pipeline.execute()


def decode_entry(entry: Entry) -> Envelope:
    """Decode the envelope in an entry.

    Raises:
        WireError: there is none, or it is damaged.
    """
    frame = (entry.fields or {}).get(ENTRY_FIELD)
    if frame is None:
        raise WireError("an entry without an envelope", reason="not_an_envelope")
    return decode_envelope(frame)
