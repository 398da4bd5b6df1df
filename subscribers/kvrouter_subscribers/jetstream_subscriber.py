"""Follow sources that publish into NATS JetStream; docs/transport-nats.md is the page of its wire.

However many sources a stream carries, it is read once: over one connection, by one durable consumer. The pieces:
`jetstream_reader` reads a stream, `jetstream_pull` is its consumer's protocol, `jetstream_recovery` gets back what is
missing, `jetstream_source` is what is known of one source.
"""

import asyncio
import secrets
import ssl
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Self

from kvrouter.errors import MissingExtraError, SettingsError
from kvrouter.events import Source
from kvrouter.events.load import LoadReport
from kvrouter.events.nats_names import NatsCredentials, NatsEndpoint, parse_nats_endpoint, stream_name
from kvrouter_subscribers.jetstream_limits import JetStreamLimits
from kvrouter_subscribers.jetstream_source import FollowedSource
from kvrouter_subscribers.jetstream_status import Mode, NatsAccess, StreamStatus
from kvrouter_subscribers.subscriber import EventSink, TransportStatus

if TYPE_CHECKING:
    from kvrouter_subscribers.jetstream_reader import StreamReader

__all__ = ["JetStreamEventSubscriber"]

_GROUP = "worker-group"


class JetStreamEventSubscriber:
    """An `EventSubscriber` over NATS JetStream.

    `run` it in a task, or use it as an asynchronous context manager that owns that task.

    Args:
        sink: takes what arrives, says when it needs a replay or a snapshot.
        clock: gives the `now` that the sink sees, in seconds.
        limits: the bounds on memory, time and concurrency.
        mode: `broadcast`, the default, reads every message; in a `worker-group` each message goes to one of all
            subscribers that share `name`. A member sees holes, so its sink's wishes for replays are not served.
        name: of our durable consumer; in `broadcast` another subscriber of the stream with the same one says so and
            does not read until this one has gone. By default it is drawn at random, or `worker-group`.
        positions: the last message of a stream, by endpoint, that the sink knows already (see `positions`): reading
            begins behind it. By default it begins with the oldest message that is there.
        on_load: takes load reports (`kvrouter.events.load`), which are then subscribed to as well.
        credentials: for endpoints without a user of their own.
        tls: for `tls://` endpoints that need more than the system's certificates; with it every connection is TLS.
    """

    def __init__(
        self,
        sink: EventSink,
        *,
        clock: Callable[[], float] = time.monotonic,
        limits: JetStreamLimits | None = None,
        mode: Mode = "broadcast",
        name: str | None = None,
        positions: Mapping[str, int] | None = None,
        on_load: Callable[[LoadReport], None] | None = None,
        credentials: NatsCredentials | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        if find_spec("nats") is None:
            raise MissingExtraError("following JetStream", "nats")
        if mode not in ("broadcast", "worker-group"):
            raise SettingsError(f"mode {mode!r} must be broadcast or worker-group")
        self._sink, self._clock, self._mode, self._on_load = sink, clock, mode, on_load
        self._limits = limits or JetStreamLimits()
        drawn = _GROUP if mode == "worker-group" else f"router-{secrets.token_hex(8)}"
        self._name = stream_name(name) if name is not None else drawn
        self._token = secrets.token_hex(16)
        self._access = NatsAccess(
            name=f"kvrouter {self._name}",
            credentials=credentials,
            tls=tls,
            timeout_seconds=self._limits.request_seconds,
        )
        self._positions = {str(parse_nats_endpoint(each)): at for each, at in (positions or {}).items()}
        self._readers: dict[NatsEndpoint, StreamReader] = {}
        self._homes: dict[Source, StreamReader] = {}
        self._reading: dict[NatsEndpoint, asyncio.Task[None]] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._stop = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    def add(self, source: Source, endpoint: str, *, replay_endpoint: str | None = None, topic: str = "") -> None:
        """Follow `source` on `nats://host:port/stream`; an earlier address of it is replaced.

        `replay_endpoint` and `topic` belong to other transports and must be left out.

        Raises:
            SettingsError: the endpoint is malformed. A server or stream that is not there is tried again for ever.
        """
        if replay_endpoint is not None or topic:
            raise SettingsError("a JetStream source has neither a replay endpoint nor a topic")
        address = parse_nats_endpoint(endpoint)
        reader = self._readers.get(address) or self._open(address)
        if self._homes.get(source) is not reader:
            self.remove(source)
        reader.leave(source)
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
        return reader.sources[source].status(
            connected=reader.connected, probes=reader.looks, last_error=reader.last_error
        )

    def streams(self) -> list[StreamStatus]:
        """Return the state of every stream that is read."""
        return [reader.status() for reader in self._readers.values()]

    def position(self, endpoint: str) -> int:
        """Return the last message of a stream that the sink has and the server knows of; 0 before the first."""
        address = parse_nats_endpoint(endpoint)
        found = [reader.position for reader in self._readers.values() if str(reader.endpoint) == str(address)]
        return min(found, default=0)

    def positions(self) -> dict[str, int]:
        """Return `position` by endpoint, without credentials: to be stored together with what was made of it."""
        return {str(address): self.position(str(address)) for address in self._readers}

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
        """Stop, within a second or two whatever servers do. The consumers stay until they expire."""
        self._stop.set()
        if self._running is not None:
            await self._running

    async def __aenter__(self) -> Self:
        self._running = asyncio.create_task(self.run(), name="jetstream-subscriber")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _open(self, address: NatsEndpoint) -> "StreamReader":
        from kvrouter_subscribers.jetstream_reader import StreamReader  # noqa: PLC0415 - loads the client library

        reader = self._readers[address] = StreamReader(
            address,
            self._access,
            consumer=self._name,
            token=self._token,
            mode=self._mode,
            start_after=self._positions.get(str(address), 0),
            limits=self._limits,
            on_load=self._on_load,
        )
        if self._tasks is not None:
            self._start(reader, self._tasks)
        return reader

    def _start(self, reader: "StreamReader", tasks: asyncio.TaskGroup) -> None:
        self._reading[reader.endpoint] = tasks.create_task(reader.run(tasks), name="jetstream-reader")
