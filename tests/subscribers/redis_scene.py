"""What Redis tests stand on: a real server, publishers that keep their own books, and the real ingest."""

import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, cast

from redis.asyncio import Redis

from kvrouter.events import AllBlocksCleared, BlockRemoved, Envelope, Source, encode_envelope
from kvrouter.ingest import SourceStatus
from kvrouter_publishers import RedisEventPublisher
from kvrouter_subscribers import RedisEventSubscriber, RedisLimits, TransportStatus
from kvrouter_subscribers.redis_status import StreamStatus
from tests.subscribers.scene import WORKER, RecordingSink, payload, stored, until

STREAM = "kv-events"
QUICK = RedisLimits(
    block_seconds=0.1,
    reconnect_seconds=0.02,
    reconnect_seconds_max=0.1,
    recovery_pause_seconds=0.05,
    recovery_pause_seconds_max=0.2,
    request_seconds=20.0,
    leave_seconds=20.0,
)


class Worker:
    """A publisher, and what its cache holds by its own books."""

    def __init__(self, endpoint: str, source: Source = WORKER, **options: Any) -> None:
        self.source = source
        self.publisher = RedisEventPublisher(endpoint, worker_id=source.worker_id, rank=source.rank, **options)
        self.held: set[int] = set()

    def store(self, *numbers: int) -> None:
        """Announce that each of these blocks, which all begin a prompt, is cached."""
        self.publisher.publish([stored(number) for number in numbers if number not in self.held])
        self.held.update(numbers)

    def remove(self, *numbers: int) -> None:
        """Announce that these blocks are gone."""
        self.publisher.publish([BlockRemoved(block_hashes=tuple(number + 1 for number in numbers), medium="GPU")])
        self.held.difference_update(numbers)

    def clear(self) -> None:
        """Announce that the cache is empty."""
        self.publisher.publish([AllBlocksCleared()])
        self.held.clear()

    def work(self, steps: int, *, first: int = 0) -> None:
        """Publish steps as an engine under pressure does: each stores three blocks and gives up an old one."""
        for step in range(first, first + steps):
            self.store(*range(3 * step, 3 * step + 3))
            self.remove(min(self.held))

    def churn(self, rng: random.Random, steps: int, *, blocks: int = 200) -> None:
        """Publish steps at random, in which blocks come back that were gone."""
        for _ in range(steps):
            self.store(*rng.sample(range(blocks), 3))
            if len(self.held) > 20:
                self.remove(*rng.sample(sorted(self.held), rng.randint(1, 4)))
            if rng.random() < 0.002:
                self.clear()

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
        worker.publisher.close(timeout_seconds=0.5)


class RedisScene:
    """One subscriber with its sink, running."""

    def __init__(self, sink: RecordingSink, subscriber: RedisEventSubscriber) -> None:
        self.sink, self.subscriber = sink, subscriber

    def listen(self, endpoint: str, *sources: Source) -> None:
        """Open sources in the ingest, unless they are open, and follow them."""
        for source in sources or (WORKER,):
            known = [Source(each.worker_id, each.rank) for each in self.sink.ingest.status(now=0.0)]
            if source not in known:
                self.sink.ingest.open(source, len(known), now=0.0)
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

    def state(self, source: Source = WORKER) -> SourceStatus:
        """The ingest's view of a source."""
        return next(each for each in self.sink.ingest.status(now=0.0) if (each.worker_id, each.rank) == source)

    def wrong_claims(self, worker: Worker) -> set[int]:
        """Blocks that the index claims and the worker's own books do not."""
        copies = self.sink.ingest.copies(worker.source).get(("gpu", 0), {})
        return {engine_hash - 1 for engine_hash in copies} - worker.held

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
async def following(
    limits: RedisLimits = QUICK, *, sink: RecordingSink | None = None, **options: Any
) -> AsyncIterator[RedisScene]:
    """A running subscriber, closed at the end."""
    sink = RecordingSink() if sink is None else sink
    async with RedisEventSubscriber(sink, limits=limits, **options) as subscriber:
        yield RedisScene(sink, subscriber)


@asynccontextmanager
async def client(url: str) -> AsyncIterator[Any]:
    """A client of our own, to look at the server and to send it what no publisher of ours would."""
    connected = Redis.from_url(url, protocol=2)
    try:
        yield cast("Any", connected)
    finally:
        await connected.aclose()


def frame(sequence: int, *numbers: int, source: Source = WORKER, incarnation: int = 7, **fields: Any) -> bytes:
    """One native frame that stores blocks."""
    batch = payload([stored(number) for number in numbers])
    envelope = Envelope(
        source=source, incarnation=incarnation, sequence=sequence, timestamp=1.0, payload=batch, **fields
    )  # fmt: skip
    return encode_envelope(envelope)


async def put(connected: Any, *frames: bytes) -> None:
    """Put entries into the stream, one after the other."""
    for each in frames:
        await connected.execute_command("XADD", STREAM, "*", b"e", each)
