"""Follow sources that publish into Redis Streams; docs/transport-redis.md is the page of its wire.

However many sources a stream carries, it is read once: over one connection, by one consumer group. The pieces:
`redis_reader` reads a stream, `redis_group` is how its server is told, `redis_recovery` gets back what is missing,
`redis_source` is what is known of one source.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Self

from kvrouter.errors import MissingExtraError, SettingsError
from kvrouter.events import Source
from kvrouter.events.load import LoadReport
from kvrouter.events.redis_names import RedisEndpoint, RedisTls, parse_entry_id, parse_redis_endpoint
from kvrouter_subscribers.redis_limits import RedisLimits
from kvrouter_subscribers.redis_source import FollowedSource
from kvrouter_subscribers.redis_status import Mode, StreamStatus
from kvrouter_subscribers.subscriber import EventSink, TransportStatus

if TYPE_CHECKING:
    from kvrouter_subscribers.redis_reader import StreamReader

__all__ = ["RedisEventSubscriber"]

_NAME_CHARACTERS_MAX = 128


class RedisEventSubscriber:
    """An `EventSubscriber` over Redis Streams.

    `run` it in a task, or use it as an asynchronous context manager that owns that task.

    Args:
        sink: takes what arrives, says when it needs a replay or a snapshot.
        clock: gives the `now` that the sink sees, in seconds.
        limits: the bounds on memory, time and concurrency.
        mode: `broadcast`, the default, reads every entry with a group of its own; in a `worker-group` each entry goes
            to one of all such subscribers of the stream. A member sees holes, so its sink's wishes for replays are
            not served.
        name: of this router; another subscriber of the stream with the same one says so and does not read until this
            one has gone. By default it is drawn at random. A router that keeps its name finds its group, and a member
            of a worker group what it had not acknowledged.
        positions: the last entry of a stream, by endpoint, that the sink knows already (see `positions`): reading
            begins behind it. By default it begins with the oldest entry that is there.
        on_load: takes load reports (`kvrouter.events.load`), which are then listened to as well, over a connection of
            their own.
        tls: for `rediss://` endpoints that need more than the system's certificates.

    Raises:
        SettingsError: a setting is malformed.
        MissingExtraError: the client library is not installed.
    """

    def __init__(
        self,
        sink: EventSink,
        *,
        clock: Callable[[], float] = time.monotonic,
        limits: RedisLimits | None = None,
        mode: Mode = "broadcast",
        name: str | None = None,
        positions: Mapping[str, str] | None = None,
        on_load: Callable[[LoadReport], None] | None = None,
        tls: RedisTls | None = None,
    ) -> None:
        if find_spec("redis") is None:
            raise MissingExtraError("following Redis Streams", "redis")
        if mode not in ("broadcast", "worker-group"):
            raise SettingsError(f"mode {mode!r} must be broadcast or worker-group")
        if name is not None and not 0 < len(name) <= _NAME_CHARACTERS_MAX:
            raise SettingsError(f"a name has 1 to {_NAME_CHARACTERS_MAX} characters")
        self._sink, self._clock, self._mode, self._tls, self._on_load = sink, clock, mode, tls, on_load
        self._limits = limits or RedisLimits()
        self._passing = name is None
        self._token = secrets.token_hex(16)
        self._name = name or f"router-{secrets.token_hex(8)}"
        self._positions = {
            str(parse_redis_endpoint(each)): parse_entry_id(at) for each, at in (positions or {}).items()
        }
        self._readers: dict[RedisEndpoint, StreamReader] = {}
        self._homes: dict[Source, StreamReader] = {}
        self._reading: dict[RedisEndpoint, asyncio.Task[None]] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._stop = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    def add(self, source: Source, endpoint: str, *, replay_endpoint: str | None = None, topic: str = "") -> None:
        """Follow `source` on `redis://host:port/database/stream`; an earlier address of it is replaced.

        `replay_endpoint` and `topic` belong to other transports and must be left out.

        Raises:
            SettingsError: the endpoint is malformed. A server or stream that is not there is tried again for ever.
        """
        if replay_endpoint is not None or topic:
            raise SettingsError("a Redis source has neither a replay endpoint nor a topic")
        address = parse_redis_endpoint(endpoint)
        self.remove(source)
        reader = self._readers.get(address) or self._open(address)
        self._homes[source] = reader
        reader.follow(FollowedSource(source, str(address), sink=self._sink, clock=self._clock))

    def remove(self, source: Source) -> None:
        """Stop following `source` at once; unknown sources are ignored."""
        reader = self._homes.pop(source, None)
        if reader is None:
            return
        reader.leave(source)
        if not reader.sources:
            del self._readers[reader.endpoint]
            task = self._reading.pop(reader.endpoint, None)
            if task is not None:
                task.cancel()

    def status(self, source: Source) -> TransportStatus | None:
        """Return the state of one source, or None if it is unknown."""
        reader = self._homes.get(source)
        if reader is None:
            return None
        return reader.sources[source].status(connected=reader.connected, last_error=reader.last_error)

    def streams(self) -> list[StreamStatus]:
        """Return the state of every stream that is read."""
        return [reader.status() for reader in self._readers.values()]

    def positions(self) -> dict[str, str]:
        """Return the last entry that the sink has, by endpoint without credentials.

        To be stored together with what was made of it, and given to the next router's `positions`.
        """
        return {str(address): str(reader.position) for address, reader in self._readers.items() if reader.position}

    def resync(self, source: Source) -> bool:
        """Get the publisher's whole state anew; False if the source is unknown or not connected."""
        reader = self._homes.get(source)
        return reader is not None and reader.resync(source)

    async def run(self) -> None:
        """Follow all sources until `close` is called or the task is cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                for reader in self._readers.values():
                    self._start(reader, tasks)
                await self._stop.wait()
                for task in self._reading.values():
                    task.cancel()
        finally:
            self._tasks = None
            self._reading.clear()

    async def close(self) -> None:
        """Stop at once. The group of a router with a name stays until it expires; one that was drawn is removed."""
        self._stop.set()
        if self._running is not None:
            await self._running

    async def __aenter__(self) -> Self:
        self._running = asyncio.create_task(self.run(), name="redis-subscriber")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _open(self, address: RedisEndpoint) -> "StreamReader":
        from kvrouter_subscribers.redis_reader import StreamReader  # noqa: PLC0415 - loads the client library

        reader = self._readers[address] = StreamReader(
            address,
            self._tls,
            name=self._name,
            token=self._token,
            mode=self._mode,
            passing=self._passing,
            start_after=self._positions.get(str(address)),
            limits=self._limits,
            on_load=self._on_load,
        )
        if self._tasks is not None:
            self._start(reader, self._tasks)
        return reader

    def _start(self, reader: "StreamReader", tasks: asyncio.TaskGroup) -> None:
        self._reading[reader.endpoint] = tasks.create_task(reader.run(tasks), name="redis-reader")
