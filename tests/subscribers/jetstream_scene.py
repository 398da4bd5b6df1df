"""What JetStream tests stand on: a real server, publishers that keep their own books, and the real ingest."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import nats
from nats.aio.client import Client

from kvrouter.events import BlockRemoved, Envelope, Source, encode_envelope
from kvrouter.events.nats_names import events_subject
from kvrouter_publishers import JetStreamEventPublisher
from kvrouter_subscribers import JetStreamEventSubscriber, JetStreamLimits, TransportStatus
from kvrouter_subscribers.jetstream_status import StreamStatus
from tests.subscribers.scene import WORKER, RecordingSink, payload, stored, until

STREAM = "kv-events"
OTHER = Source("other", 0)
QUICK = JetStreamLimits(
    look_seconds=0.2,
    reconnect_seconds=0.02,
    reconnect_seconds_max=0.1,
    recovery_pause_seconds=0.05,
    recovery_pause_seconds_max=0.2,
    request_seconds=20.0,
    heartbeat_seconds=10.0,
)


class Worker:
    """A publisher, and what its cache holds by its own books."""

    def __init__(self, endpoint: str, source: Source = WORKER, **options: Any) -> None:
        self.source = source
        self.publisher = JetStreamEventPublisher(endpoint, worker_id=source.worker_id, rank=source.rank, **options)
        self.held: set[int] = set()

    def store(self, *numbers: int) -> None:
        """Announce that each of these blocks, which all begin a prompt, is cached."""
        self.publisher.publish([stored(number) for number in numbers])
        self.held.update(numbers)

    def remove(self, *numbers: int) -> None:
        """Announce that these blocks are gone."""
        self.publisher.publish([BlockRemoved(block_hashes=tuple(number + 1 for number in numbers), medium="GPU")])
        self.held.difference_update(numbers)

    def work(self, steps: int, *, first: int = 0) -> None:
        """Publish steps as an engine under pressure does: each stores three blocks and gives up an old one."""
        for step in range(first, first + steps):
            self.store(*range(3 * step, 3 * step + 3))
            self.remove(min(self.held))

    def count(self, name: str) -> int:
        """One of the publisher's statistics."""
        return self.publisher.statistics()[name]

    def delivered(self) -> bool:
        """Whether the server has everything that was published."""
        statistics = self.publisher.statistics()
        return statistics["outbox_batches"] == statistics["unacknowledged_frames"] == 0 and statistics["connected"] == 1


@contextmanager
def working(endpoint: str, source: Source = WORKER, **options: Any) -> Iterator[Worker]:
    """A worker, closed at the end."""
    worker = Worker(endpoint, source, **options)
    try:
        yield worker
    finally:
        worker.publisher.close()


class JetStreamScene:
    """One subscriber with its sink, running."""

    def __init__(self, sink: RecordingSink, subscriber: JetStreamEventSubscriber) -> None:
        self.sink, self.subscriber = sink, subscriber

    def listen(self, endpoint: str, *sources: Source) -> None:
        """Open sources in the ingest and follow them."""
        for source in sources or (WORKER,):
            rank = sum(1 for _ in self.sink.ingest.status(now=0.0))
            self.sink.ingest.open(source, rank, now=0.0)
            self.subscriber.add(source, endpoint)

    def status(self, source: Source = WORKER) -> TransportStatus:
        """The transport's view of a source that must exist."""
        status = self.subscriber.status(source)
        assert status is not None
        return status

    def stream(self) -> StreamStatus:
        """The one stream that is read."""
        (stream,) = self.subscriber.streams()
        return stream

    def state(self, source: Source = WORKER) -> Any:
        """The ingest's view of a source."""
        return next(each for each in self.sink.ingest.status(now=0.0) if (each.worker_id, each.rank) == source)

    def agrees(self, worker: Worker) -> bool:
        """Whether the index holds exactly what the worker's own books say, and trusts it."""
        state = self.state(worker.source)
        copies = {number + 1: 1 for number in worker.held}
        exact = self.sink.ingest.copies(worker.source).get(("gpu", 0), {}) == copies
        indexed = state.blocks == len(worker.held) and self.sink.holds(*worker.held, rank=state.dense_rank)
        return exact and indexed and state.state == "live"

    async def heals(self, worker: Worker) -> None:
        """Wait until the server has everything and the index is the truth."""
        await until(lambda: worker.delivered() and self.agrees(worker))


@asynccontextmanager
async def following(limits: JetStreamLimits = QUICK, **options: Any) -> AsyncIterator[JetStreamScene]:
    """A running subscriber, closed at the end."""
    sink = RecordingSink()
    async with JetStreamEventSubscriber(sink, limits=limits, **options) as subscriber:
        yield JetStreamScene(sink, subscriber)


@asynccontextmanager
async def client(url: str, **options: Any) -> AsyncIterator[Client]:
    """A client of our own, to look at the server and to send it what no publisher of ours would."""
    connected = await nats.connect(url, **options)
    connected.jetstream = partial(connected.jetstream, timeout=30.0)  # type: ignore[method-assign]
    try:
        yield connected
    finally:
        await connected.close()


async def api(connected: Client, subject: str) -> dict[str, Any]:
    """Ask JetStream itself, without the client's own reading of the answer."""
    answer = await connected.request(f"$JS.API.{subject}", b"", timeout=30)
    return dict(json.loads(answer.data))


def frame(sequence: int, *numbers: int, source: Source = WORKER, incarnation: int = 7, **fields: Any) -> bytes:
    """One native frame that stores blocks."""
    batch = payload([stored(number) for number in numbers])
    envelope = Envelope(
        source=source, incarnation=incarnation, sequence=sequence, timestamp=1.0, payload=batch, **fields
    )  # fmt: skip
    return encode_envelope(envelope)


async def put(connected: Client, *frames: bytes) -> None:
    """Put messages into the stream, one after the other."""
    for each in frames:
        await connected.jetstream().publish(events_subject(STREAM), each)
