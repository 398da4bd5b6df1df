"""A Redis client whose every command has a deadline, and obeys a cancellation. What the commands mean is not here.

The client library's own timeouts stay off: in Python 3.11 `asyncio.wait_for`, on which they stand, loses a
cancellation that comes at the moment of sending, and the task that was to end goes on. Its own repetition of commands
stays off as well: a change might be made twice.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, Self, cast

from kvrouter.errors import MissingExtraError

try:
    from redis.asyncio import Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
    from redis.exceptions import InvalidResponse, RedisError, ResponseError
except ImportError as error:
    raise MissingExtraError("Redis", "redis") from error

__all__ = ["RedisClient", "RedisError", "ResponseError"]

_CLOSE_SECONDS = 0.5


class RedisClient:
    """Connects with the first command; has as many connections as commands are under way at once.

    Every method raises `RedisError` for what the server refuses and for a connection that is lost, and `OSError`, of
    which `TimeoutError` is one, for a server that does not answer within `answer_seconds`.
    """

    def __init__(self, options: Mapping[str, Any], *, answer_seconds: float) -> None:
        self._seconds = answer_seconds
        self._redis: Any = Redis(
            **cast("Any", options),
            protocol=2,  # Newer versions of the library speak 3 by default, which gives answers other shapes.
            socket_timeout=None,
            socket_connect_timeout=answer_seconds,
            retry=Retry(NoBackoff(), 0),
        )

    async def command(self, *arguments: object, wait_seconds: float = 0.0) -> Any:
        """Send one command as it is written; one that waits on the server for something says how long."""
        with _speaking_redis(), _naming(str(arguments[0]), self._seconds):
            async with asyncio.timeout(self._seconds + wait_seconds):
                return await self._redis.execute_command(*arguments)

    async def transaction(self, *commands: Sequence[object]) -> list[Any]:
        """Send commands of which the server executes all or none, together; returns their answers."""
        return await self._send(commands, transaction=True, wait_seconds=0.0)

    async def together(self, *commands: Sequence[object], wait_seconds: float = 0.0) -> list[Any]:
        """Send commands at once, which the server executes one after the other; returns their answers."""
        return await self._send(commands, transaction=False, wait_seconds=wait_seconds)

    @contextlib.asynccontextmanager
    async def listening(self, channel: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """Listen to a channel over a connection of its own; yields its messages, which come from then on.

        A server that is silent is asked whether it lives.
        """
        async with self._redis.pubsub() as listener:
            with _speaking_redis(), _naming("SUBSCRIBE", self._seconds):
                async with asyncio.timeout(self._seconds):
                    await listener.subscribe(channel)
            yield self._messages(listener)

    async def close(self) -> None:
        """Close all connections. May be called again.

        Who is cancelled meanwhile waits a moment: the library would leave those open that it has not come to.
        """
        closing = asyncio.ensure_future(self._close())
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            await asyncio.wait({closing}, timeout=_CLOSE_SECONDS)
            raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _close(self) -> None:
        with contextlib.suppress(RedisError, OSError):  # They were lost already.
            await self._redis.aclose()

    async def _messages(self, listener: Any) -> AsyncIterator[bytes]:
        asked = False
        while True:
            with _speaking_redis():
                message = await listener.get_message(timeout=self._seconds)
            if message is not None:
                asked = False
                if message["type"] == "message":
                    yield bytes(message["data"])
                continue
            if asked:
                raise TimeoutError(f"the server is silent for {self._seconds:g} s")
            with _naming("PING", self._seconds):
                async with asyncio.timeout(self._seconds):
                    await listener.ping()
            asked = True

    async def _send(self, commands: Sequence[Sequence[object]], *, transaction: bool, wait_seconds: float) -> list[Any]:
        with _speaking_redis(), _naming(", ".join(str(each[0]) for each in commands), self._seconds):
            async with (
                asyncio.timeout(self._seconds + wait_seconds),
                self._redis.pipeline(transaction=transaction) as pipeline,
            ):
                for each in commands:
                    pipeline.execute_command(*each)
                return cast("list[Any]", await pipeline.execute())


@contextlib.contextmanager
def _speaking_redis() -> Iterator[None]:
    """Tell of a peer that is no Redis as of one that refuses: the library lets its parser's own errors through."""
    try:
        yield
    except OSError:  # A certificate that is not trusted is a `ValueError` as well.
        raise
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise InvalidResponse(f"the server does not speak Redis ({type(error).__name__})") from error


@contextlib.contextmanager
def _naming(what: str, seconds: float) -> Iterator[None]:
    """Say what was not answered: the bare error names nothing."""
    try:
        yield
    except TimeoutError as error:
        if str(error):
            raise
        raise TimeoutError(f"no answer to {what} within {seconds:g} s") from error
