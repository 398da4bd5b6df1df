"""What tests of the HTTP subscriber stand on: a publisher that does what a test says, and the real ingest behind it."""

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from kvrouter.events import Envelope, Event, Source, encode_envelope
from kvrouter_publishers.http_desk import EventDesk, EventStream
from kvrouter_publishers.http_server import HttpServer, ServerLimits
from kvrouter_subscribers import HttpEventSubscriber, HttpLimits, Receipt, TransportStatus
from tests.servers import free_port
from tests.subscribers.scene import WORKER, RecordingSink, payload, stored, until

QUICK = HttpLimits(
    poll_seconds=0.5,
    grace_seconds=20.0,
    connect_seconds=20.0,
    snapshot_seconds=20.0,
    retry_pause_seconds=0.02,
    retry_pause_seconds_max=0.1,
    reconnect_seconds=0.01,
    reconnect_seconds_max=0.05,
)
PATIENT = replace(QUICK, poll_seconds=30.0)
HASTY = replace(QUICK, grace_seconds=0.5, connect_seconds=1.0, snapshot_seconds=1.0)
"""Gives up soon who is silent, though it may be the machine that holds him up."""


class ScriptedCore:
    """A publisher's core whose frames, ring and snapshots are what a test says."""

    def __init__(self, source: Source = WORKER, *, incarnation: int = 1, kept_max: int = 1000) -> None:
        self.source, self.incarnation, self.kept_max = source, incarnation, kept_max
        self.next_sequence = 0
        self.frames: list[tuple[int, bytes]] = []
        self.resident: list[Event] = []
        self.snapshots = True
        self.snapshots_made = 0

    def put(self, *events: Event) -> int:
        """Number and keep a batch; what it stores is resident from now on."""
        sequence = self.next_sequence
        self.frames.append((sequence, self.frame(sequence, events)))
        self.frames = self.frames[-self.kept_max :]
        self.resident += events
        self.next_sequence += 1
        return sequence

    def frame(self, sequence: int, events: Sequence[Event], **fields: Any) -> bytes:
        """One envelope frame."""
        envelope = Envelope(
            source=self.source,
            incarnation=self.incarnation,
            sequence=sequence,
            timestamp=1.0,
            payload=payload(events),
        )
        return encode_envelope(replace(envelope, **fields))

    def since(self, sequence: int) -> list[tuple[int, bytes]]:
        return [frame for frame in self.frames if frame[0] >= sequence]

    def oldest_sequence(self) -> int | None:
        return self.frames[0][0] if self.frames else None

    def snapshot(self) -> list[bytes]:
        """The frames of a snapshot, which tests replace by wrong ones."""
        if not self.snapshots or not self.next_sequence:
            return []
        self.snapshots_made += 1
        halves = [self.resident[: len(self.resident) // 2], self.resident[len(self.resident) // 2 :]]
        return [
            self.frame(self.next_sequence - 1, half, snapshot=(part, len(halves))) for part, half in enumerate(halves)
        ]

    def prepare_snapshot(self, *, part_bytes_max: int) -> Iterator[list[bytes]]:
        assert part_bytes_max > 0
        frames = self.snapshot()
        return iter(([], frames) if frames else ())


class ScriptedPublisher:
    """The publisher's own desk and server, in the test's event loop, over scripted cores."""

    def __init__(self, port: int = 0, *, key: str | None = None, limits: ServerLimits | None = None) -> None:
        self._socket = socket.create_server(("127.0.0.1", port or free_port()))
        self.port = self._socket.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.desk = EventDesk(clock=asyncio.get_running_loop().time, snapshot_keep_seconds=0.0)
        self.server = HttpServer(self.desk.answer, api_key=key, limits=limits or ServerLimits())
        self.streams: dict[Source, EventStream] = {}

    def open(self, core: ScriptedCore) -> EventStream:
        """Serve a core as well."""
        stream = self.streams[core.source] = EventStream(core.source, core, dict)
        self.desk.open(stream)
        return stream

    def publish(self, core: ScriptedCore, number: int) -> int:
        """Publish the store of one block, and tell who waits."""
        sequence = core.put(stored(number))
        self.streams[core.source].wake()
        return sequence

    async def start(self) -> None:
        await self.server.start(self._socket, None)

    async def close(self) -> None:
        await self.server.close()


@asynccontextmanager
async def publisher(
    *cores: ScriptedCore, port: int = 0, key: str | None = None, limits: ServerLimits | None = None
) -> AsyncIterator[ScriptedPublisher]:
    """A publisher on a free port of loopback until the end of the block."""
    served = ScriptedPublisher(port, key=key, limits=limits)
    for core in cores:
        served.open(core)
    await served.start()
    try:
        yield served
    finally:
        await served.close()


class HttpSink(RecordingSink):
    """The real ingest behind the recorder, which also notes what became of snapshots."""

    def __init__(self) -> None:
        super().__init__()
        self.snapshots: list[tuple[int, str]] = []

    def snapshot(self, source: Source, batches: Sequence[bytes], *, sequence: int, **options: Any) -> Receipt:
        receipt = super().snapshot(source, batches, sequence=sequence, **options)
        self.snapshots.append((sequence, receipt.outcome))
        return receipt

    def state(self, source: Source = WORKER) -> str:
        """The word for how far the source can be trusted."""
        return next(s.state for s in self.ingest.status(now=0.0) if (s.worker_id, s.rank) == source)


class HttpScene:
    """One subscriber with its sink, running."""

    def __init__(self, sink: HttpSink, subscriber: HttpEventSubscriber) -> None:
        self.sink, self.subscriber = sink, subscriber

    def listen(self, endpoint: str, source: Source = WORKER, **options: Any) -> None:
        """Open `source` in the ingest and listen to it."""
        rank = sum(1 for _ in self.sink.ingest.status(now=0.0))
        self.sink.ingest.open(source, rank, now=0.0)
        self.subscriber.add(source, endpoint, **options)

    def status(self, source: Source = WORKER) -> TransportStatus:
        """The transport's view of a source that must exist."""
        status = self.subscriber.status(source)
        assert status is not None
        return status

    async def holds(self, *numbers: int, rank: int = 0) -> None:
        """Wait until the index holds these blocks."""
        await until(lambda: self.sink.holds(*numbers, rank=rank))

    async def follows(self, source: Source = WORKER) -> None:
        """Wait until the source is connected and its first replay is over."""
        await until(lambda: self.status(source).connected and not self.status(source).replaying)


@asynccontextmanager
async def http_scene(
    limits: HttpLimits = QUICK, *, on_load: Callable[[Any], None] | None = None
) -> AsyncIterator[HttpScene]:
    """A running subscriber, closed at the end, with no task left behind."""
    sink, before = HttpSink(), asyncio.all_tasks()
    async with HttpEventSubscriber(sink, limits=limits, on_load=on_load, jitter=random.Random(1)) as subscriber:
        yield HttpScene(sink, subscriber)
    left = asyncio.all_tasks() - before
    assert not [task.get_name() for task in left if task.get_name().startswith("http-")]
