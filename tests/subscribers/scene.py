"""What subscriber tests stand on: the real ingest behind a recorder, scripted engines, and waiting without sleeping."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import numpy as np
import zmq
import zmq.asyncio

from kvrouter.blocks import Prompt
from kvrouter.events import BlockStored, Event, EventBatch, Source, encode_batch
from kvrouter.index import PrefixIndex
from kvrouter.ingest import Ingest
from kvrouter_subscribers import CurveKeys, Receipt, TransportStatus, ZmqEventSubscriber, ZmqLimits
from kvrouter_subscribers.subscriber import DigestRows
from tests.servers import free_tcp

WAIT_SECONDS = 30.0
ANY_TCP = "tcp://127.0.0.1:*"
WORKER = Source("worker", 0)
END = b"\xff" * 8
QUICK = ZmqLimits(
    replay_silence_seconds=20.0, replay_pause_seconds=0.05, replay_pause_seconds_max=0.2, probe_seconds=0.0
)  # fmt: skip
HASTY = replace(QUICK, replay_silence_seconds=0.3)
"""Gives up soon who is silent, though it may be the machine that holds him up."""
PROBING = replace(QUICK, probe_seconds=0.2)
DIRECT: ContextVar[bool] = ContextVar("DIRECT", default=True)
"""Whether subscribers read plain TCP connections themselves; the fixture `reading` has tests run either way."""


def stored(number: int) -> BlockStored:
    """The store of one block of four tokens; its hash and its tokens follow from `number`."""
    return BlockStored(block_hashes=(number + 1,), token_ids=tokens(number), block_size=4, medium="GPU")


def tokens(number: int) -> tuple[int, ...]:
    """The tokens of block `number`."""
    return tuple(range(4 * number, 4 * number + 4))


def payload(events: Sequence[Event]) -> bytes:
    """One encoded batch."""
    return encode_batch(EventBatch(timestamp=1.0, events=tuple(events), data_parallel_rank=0))


async def until(condition: Callable[[], object]) -> None:
    """Poll until `condition` holds; a test that waits in vain fails here."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        await asyncio.sleep(0.002)


class RecordingSink:
    """The real ingest and index, with a record of every call and answer."""

    def __init__(self) -> None:
        self.index = PrefixIndex()
        self.ingest = Ingest(self.index)
        self.calls: list[tuple[str, Source]] = []
        self.receipts: list[tuple[str, int, str]] = []
        self.finished: list[bool] = []
        self.failing: dict[str, Exception] = {}

    def _fail(self, method: str) -> None:
        """Raise what a test planned for the next call of `method`."""
        if method in self.failing:
            raise self.failing.pop(method)

    def connected(self, source: Source, *, now: float) -> Receipt:
        self._fail("connected")
        self.calls.append(("connected", source))
        return self.ingest.connected(source, now=now)

    def disconnected(self, source: Source, *, now: float) -> None:
        self._fail("disconnected")
        self.calls.append(("disconnected", source))
        self.ingest.disconnected(source, now=now)

    def receive(
        self,
        source: Source,
        sequence: int,
        payload: bytes,
        *,
        now: float,
        replayed: bool = False,
        incarnation: int | None = None,
        digest: DigestRows | None = None,
    ) -> Receipt:
        self._fail("receive")
        receipt = self.ingest.receive(
            source, sequence, payload, now=now, replayed=replayed, incarnation=incarnation, digest=digest
        )
        self.receipts.append(("replayed" if replayed else "live", sequence, receipt.outcome))
        return receipt

    def receive_run(self, source: Source, first: int, payloads: list[bytes], *, now: float) -> tuple[int, Receipt]:
        self._fail("receive")
        taken, receipt = self.ingest.receive_run(source, first, payloads, now=now)
        outcomes = ["applied"] * (taken - 1) + [receipt.outcome]
        self.receipts += (("live", sequence, outcome) for sequence, outcome in enumerate(outcomes, first))
        return taken, receipt

    def replay_finished(self, source: Source, *, now: float, complete: bool) -> Receipt:
        self._fail("replay_finished")
        self.finished.append(complete)
        return self.ingest.replay_finished(source, now=now, complete=complete)

    def snapshot(
        self, source: Source, batches: Sequence[bytes], *, sequence: int, incarnation: int | None, now: float
    ) -> Receipt:
        self._fail("snapshot")
        self.calls.append(("snapshot", source))
        return self.ingest.snapshot(source, batches, sequence=sequence, incarnation=incarnation, now=now)

    def snapshot_failed(self, source: Source, *, now: float) -> None:
        self._fail("snapshot_failed")
        self.calls.append(("snapshot_failed", source))
        self.ingest.snapshot_failed(source, now=now)

    def applied(self, source: Source = WORKER) -> int:
        """The sequence number of the last applied batch, -1 before the first."""
        for status in self.ingest.status(now=0.0):
            if (status.worker_id, status.rank) == source:
                return -1 if status.applied_sequence is None else status.applied_sequence
        raise KeyError(source)

    def holds(self, *numbers: int, rank: int = 0) -> bool:
        """Whether the index holds each of these blocks, which all begin a prompt."""
        hashes = [Prompt(list(tokens(number))).hashes(4)[0] for number in numbers]
        return bool(self.index.holds(rank, np.array(hashes, dtype=np.uint64)).all())

    def live_sequences(self) -> list[int]:
        """The numbers that came live, in the order of arrival."""
        return [sequence for way, sequence, _ in self.receipts if way == "live"]


class Scene:
    """One subscriber with its sink, running."""

    def __init__(self, sink: RecordingSink, subscriber: ZmqEventSubscriber) -> None:
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

    async def connected(self, source: Source = WORKER) -> None:
        """Wait until the source is connected and its first replay is over."""
        await until(lambda: self.status(source).connected and not self.status(source).replaying)

    async def hears(self, engine: "ScriptedEngine", sequence: int) -> None:
        """Publish one batch until it is applied: a subscription needs a moment to reach the publisher."""

        def heard() -> bool:
            engine.publish(sequence)
            return self.sink.applied() == sequence

        await until(heard)


@asynccontextmanager
async def scene(
    limits: ZmqLimits = QUICK,
    *,
    curve: CurveKeys | None = None,
    context: zmq.Context[zmq.Socket[bytes]] | None = None,
) -> AsyncIterator[Scene]:
    """A running subscriber, closed at the end, with no task left behind."""
    sink, before = RecordingSink(), asyncio.all_tasks()
    async with ZmqEventSubscriber(sink, limits=limits, curve=curve, direct=DIRECT.get(), context=context) as subscriber:
        yield Scene(sink, subscriber)
    left = asyncio.all_tasks() - before
    assert not [task.get_name() for task in left if task.get_name().startswith("zmq-")]


class ScriptedEngine:
    """A PUB and a ROUTER that do exactly what a test says, right or wrong."""

    def __init__(self, *, live: str = "", replay: str = ANY_TCP) -> None:
        self._context = zmq.asyncio.Context()
        self._live = self._context.socket(zmq.PUB)
        self._router = self._context.socket(zmq.ROUTER)
        for socket, endpoint in ((self._live, live or free_tcp()), (self._router, replay)):
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.SNDHWM, 0)
            socket.bind(endpoint)
        self.endpoint = self._live.getsockopt_string(zmq.LAST_ENDPOINT)
        self.replay_endpoint = self._router.getsockopt_string(zmq.LAST_ENDPOINT)
        self.requests: list[int] = []
        self.answer: Callable[[int], list[list[bytes]]] = lambda start: [self.end()]
        self.repeat_seconds = 0.0

    def send(self, *frames: bytes) -> None:
        """Publish any frames."""
        self._live.send_multipart(list(frames))

    def publish(self, sequence: int, *events: Event) -> None:
        """Publish a batch under the given number; a store of block `sequence` unless told otherwise."""
        self.send(b"", sequence.to_bytes(8), payload(events or (stored(sequence),)))

    @staticmethod
    def batch(sequence: int) -> list[bytes]:
        """A replayed batch, in the newer form."""
        return [b"", b"", sequence.to_bytes(8), payload([stored(sequence)])]

    @staticmethod
    def end() -> list[bytes]:
        """The end of a replay, in the newer form."""
        return [b"", b"", END, b""]

    async def serve(self) -> None:
        """Note each replay request and send what `answer` says."""
        while True:
            identity, _, start = await self._router.recv_multipart()
            self.requests.append(int.from_bytes(start))
            while True:
                for frames in self.answer(self.requests[-1]):
                    await self._router.send_multipart([identity, *frames])
                if not self.repeat_seconds:
                    break
                await asyncio.sleep(self.repeat_seconds)

    async def reconnect(self) -> None:
        """Drop every live connection; subscribers come back to the same address."""
        self._live.close(linger=0)
        self._live = self._context.socket(zmq.PUB)
        self._live.setsockopt(zmq.SNDHWM, 0)
        self._live.setsockopt(zmq.LINGER, 0)

        def bound() -> bool:
            with suppress(zmq.ZMQError):  # The old socket frees the address in the background.
                self._live.bind(self.endpoint)
                return True
            return False

        await until(bound)

    def close(self) -> None:
        """Close both sockets at once."""
        self._context.destroy(linger=0)


@asynccontextmanager
async def scripted(**options: str) -> AsyncIterator[ScriptedEngine]:
    """A scripted engine that answers replay requests until the end of the test."""
    engine = ScriptedEngine(**options)
    serving = asyncio.create_task(engine.serve())
    try:
        yield engine
    finally:
        serving.cancel()
        with suppress(asyncio.CancelledError):
            await serving
        engine.close()


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


@asynccontextmanager
async def listening(serve: Serve) -> AsyncIterator[int]:
    """A TCP server, and its port; whoever is still served at the end is cut off, so that no socket is left."""
    served: set[asyncio.Task[None]] = set()

    async def supervised(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):  # A client may go at any time.
            try:
                await serve(reader, writer)
            except asyncio.CancelledError:
                writer.transport.abort()
                raise
            finally:
                writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.add(asyncio.get_running_loop().create_task(supervised(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for each in served:
            each.cancel()
        ended = await asyncio.gather(*served, return_exceptions=True)
    assert not [each for each in ended if isinstance(each, Exception)]


def run(scenario: Coroutine[Any, Any, None]) -> None:
    """Run one test's story, with a bound on its time."""

    async def bounded() -> None:
        async with asyncio.timeout(110):
            await scenario

    asyncio.run(bounded())
