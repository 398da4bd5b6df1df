"""The processes of `benchmarks.events`: `events_side.py publish SETTINGS` and `events_side.py receive SETTINGS` (JSON).

A publisher holds everything that it will say, already in bytes, so that what is measured is the other side. A receiver
is the router's own: subscriber, ingest and index in one process. Both answer to a control socket, in the end with what
they saw; times are of the system's monotonic clock, which processes share.
"""

import asyncio
import json
import random
import struct
import sys
import time
from array import array
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

import msgpack
import zmq

from benchmarks import event_loop
from kvrouter.events import Event, Source, decode_batch, peek_timestamp
from kvrouter.index import PrefixIndex
from kvrouter.ingest import Ingest, Receipt
from kvrouter_publishers import EventPublisher

BLOCK_SIZE = 16
RESIDENT_BLOCKS = 20_000
"""Per publisher; from then on every store is followed by a removal of the oldest blocks."""
MARK_EVERY = 40
_CHAIN_EVENTS = 16
_VOCABULARY = 128_000
_EMPTY_BYTES_MAX = 24
"""A batch without events: the first one of a publisher of ours, and those that only carry a digest."""
_PACK_STAMP = struct.Struct(">d").pack_into
_STAMP_AT = 2  # In `[timestamp, ...]`, as msgpack writes it.


def mark_tokens(publisher: int, number: int) -> list[int]:
    """The tokens of a block whose only use is that somebody looks for it."""
    return [_VOCABULARY + publisher, number, *[7] * (BLOCK_SIZE - 2)]


def payloads(publisher: int, *, blocks_per_event: int, events: int, seed: int = 0) -> tuple[list[bytearray], int]:
    """Return what one publisher says, on vLLM's wire with one event in each batch, and how many blocks are in it.

    Chains of blocks that grow event by event, the oldest removed tail first; every so often a mark, and one at the end.
    """
    choose = random.Random(f"{seed}-{publisher}")
    said: list[bytearray] = []
    blocks = marks = resident = 0
    chains: list[list[list[int]]] = []
    while len(said) < events:
        if len(said) % MARK_EVERY == MARK_EVERY - 1 or len(said) == events - 1:
            said.append(_stored([choose.getrandbits(64)], None, mark_tokens(publisher, marks)))
            marks, blocks = marks + 1, blocks + 1
        elif resident >= RESIDENT_BLOCKS:
            gone = chains[0].pop()
            if not chains[0]:
                chains.pop(0)
            said.append(_batch({"type": "BlockRemoved", "block_hashes": gone[::-1], "medium": "GPU", "group_idx": 0}))
            resident, blocks = resident - len(gone), blocks + len(gone)
        else:
            if not chains or len(chains[-1]) == _CHAIN_EVENTS:
                chains.append([])
            parent = chains[-1][-1][-1] if chains[-1] else None
            hashes = [choose.getrandbits(64) for _ in range(blocks_per_event)]
            chains[-1].append(hashes)
            tokens = choose.choices(range(_VOCABULARY), k=BLOCK_SIZE * blocks_per_event)
            said.append(_stored(hashes, parent, tokens))
            resident, blocks = resident + len(hashes), blocks + len(hashes)
    return said, blocks


def _stored(hashes: list[int], parent: int | None, tokens: list[int]) -> bytearray:
    return _batch(
        {
            "type": "BlockStored",
            "block_hashes": hashes,
            "parent_block_hash": parent,
            "token_ids": tokens,
            "block_size": BLOCK_SIZE,
            "medium": "GPU",
            "group_idx": 0,
            "kv_cache_spec_kind": "full_attention",
        }
    )


def _batch(event: dict[str, Any]) -> bytearray:
    return bytearray(msgpack.packb([0.0, [event], 0]))


class ZmqPublishers:
    """Publishers as engines have them, except that they forget nothing that is not yet sent."""

    def __init__(self, addresses: list[str]) -> None:
        self._context = zmq.Context()
        self._sockets = []
        for address in addresses:
            socket = self._context.socket(zmq.XPUB)
            socket.setsockopt(zmq.SNDHWM, 0)
            socket.bind(address)
            self._sockets.append(socket)

    def wait_for_subscribers(self) -> None:
        """Return when somebody listens to each."""
        for socket in self._sockets:
            socket.recv()

    def send(self, publisher: int, sequence: int, payload: bytearray) -> None:
        """Publish the next batch."""
        self._sockets[publisher].send_multipart((b"", sequence.to_bytes(8, "big"), payload))

    def prepare(self, said: list[list[bytearray]]) -> None:
        """Nothing: the bytes are what is sent."""


class OwnPublishers:
    """Our own publishers, which are given events and not bytes; they keep all that was not read yet."""

    def __init__(self, make: Callable[[str, str], EventPublisher], addresses: list[str]) -> None:
        self._publishers = [make(address, str(number + 1)) for number, address in enumerate(addresses)]
        self._events: list[list[tuple[Event, ...]]] = []

    def prepare(self, said: list[list[bytearray]]) -> None:
        """Read the events before anybody measures."""
        self._events = [[decode_batch(bytes(payload)).events for payload in own] for own in said]

    def wait_for_subscribers(self) -> None:
        """Nobody misses anything here."""

    def send(self, publisher: int, sequence: int, _payload: bytearray) -> None:
        """Publish the next batch."""
        self._publishers[publisher].publish(self._events[publisher][sequence])


_KEPT = 1_000_000


def _http_publisher(address: str, worker: str) -> EventPublisher:
    from kvrouter_publishers import HttpEventPublisher  # noqa: PLC0415 - one transport each

    return HttpEventPublisher(address.partition("//")[2], worker_id=worker, buffer_steps=_KEPT, max_queue_size=_KEPT)


def _jetstream_publisher(address: str, worker: str) -> EventPublisher:
    from kvrouter_publishers import JetStreamEventPublisher  # noqa: PLC0415 - as above

    return JetStreamEventPublisher(address, worker_id=worker, buffer_steps=_KEPT, max_queue_size=_KEPT)


def _redis_publisher(address: str, worker: str) -> EventPublisher:
    from kvrouter_publishers import RedisEventPublisher  # noqa: PLC0415 - as above

    return RedisEventPublisher(address, worker_id=worker, maxlen=_KEPT, buffer_steps=_KEPT, max_queue_size=_KEPT)


PUBLISHERS: dict[str, Callable[[list[str]], ZmqPublishers | OwnPublishers]] = {
    "zmq": ZmqPublishers,
    "http": partial(OwnPublishers, _http_publisher),
    "jetstream": partial(OwnPublishers, _jetstream_publisher),
    "redis": partial(OwnPublishers, _redis_publisher),
}


def _zmq_subscriber(sink: "_Sink", sources: list[tuple[Source, str]]) -> AbstractAsyncContextManager[object]:
    from kvrouter_subscribers import ZmqEventSubscriber  # noqa: PLC0415 - publishers do without

    subscriber = ZmqEventSubscriber(sink)
    for source, address in sources:
        subscriber.add(source, address)
    return subscriber


def _own_subscriber(name: str, sink: "_Sink", sources: list[tuple[Source, str]]) -> AbstractAsyncContextManager[object]:
    import kvrouter_subscribers  # noqa: PLC0415 - as above

    subscriber = getattr(kvrouter_subscribers, name)(sink)
    for source, address in sources:
        subscriber.add(source, address)
    opened: AbstractAsyncContextManager[object] = subscriber
    return opened


SUBSCRIBERS: dict[str, Callable[["_Sink", list[tuple[Source, str]]], AbstractAsyncContextManager[object]]] = {
    "zmq": _zmq_subscriber,
    "http": partial(_own_subscriber, "HttpEventSubscriber"),
    "jetstream": partial(_own_subscriber, "JetStreamEventSubscriber"),
    "redis": partial(_own_subscriber, "RedisEventSubscriber"),
}


class _Sink(Ingest):
    """Ingest that counts what it applied and, where asked to, how old it was then."""

    def __init__(self, index: PrefixIndex, clock: Callable[[], float], *, wanted: int) -> None:
        super().__init__(index)
        self.wanted = wanted
        self.clock = clock
        """The one that publishers stamp with."""
        self.batches = 0
        self.last = 0.0
        self.ages: array[float] | None = None

    def receive(self, source: Source, sequence: int, payload: bytes, **rest: Any) -> Receipt:
        receipt = super().receive(source, sequence, payload, **rest)
        if receipt.outcome != "duplicate":
            self._count([payload])
        return receipt

    def receive_run(self, source: Source, first: int, payloads: Sequence[bytes], *, now: float) -> tuple[int, Receipt]:
        counted = self.batches
        taken, receipt = super().receive_run(source, first, payloads, now=now)
        if self.batches == counted and receipt.outcome != "duplicate":  # What it leaves to `receive` is counted there.
            self._count(payloads if taken == len(payloads) else payloads[:taken])
        return taken, receipt

    def _count(self, payloads: Sequence[bytes]) -> None:
        """Count batches; one that says nothing comes alone, from a publisher of ours."""
        if len(payloads) == 1 and len(payloads[0]) <= _EMPTY_BYTES_MAX:
            return
        self.batches += len(payloads)
        if self.ages is not None:
            now = self.clock()
            self.ages.extend(now - (peek_timestamp(payload) or now) for payload in payloads)
        if self.batches >= self.wanted:
            self.last = time.monotonic()


async def _receive(settings: dict[str, Any]) -> None:
    control = zmq.Context().socket(zmq.REP)
    control.bind(settings["control"])
    index = PrefixIndex()
    # Our own publishers stamp with the time of day.
    sink = _Sink(index, time.monotonic if settings["transport"] == "zmq" else time.time, wanted=settings["batches"])
    if settings["paced"]:
        sink.ages = array("d")
    sources = []
    for number, address in enumerate(settings["addresses"]):
        sources.append((Source(str(number + 1), 0), address))
        sink.open(sources[-1][0], number, block_size=BLOCK_SIZE, now=time.monotonic())
    async with SUBSCRIBERS[settings["transport"]](sink, sources) as subscriber:
        while not all(_is_connected(subscriber, source) for source, _ in sources):
            await asyncio.sleep(0.01)
        await asyncio.to_thread(control.recv)
        control.send_json({"connected": True})
        while sink.batches < settings["batches"]:
            await asyncio.sleep(0.002)
        finished = sink.last or time.monotonic()
        statuses = sink.status(now=finished)
        ages = sorted(sink.ages or ())
        answer = {
            "finished": finished,
            "held": sum(index.blocks(rank) for rank in range(len(sources))),
            "ages": {share: ages[int(len(ages) * share / 100)] for share in (50, 99)} if ages else {},
            "lost": sum(each.gaps + each.quarantined + sum(each.ignored.values()) for each in statuses),
        }
        control.recv()
        control.send_json(answer)
        control.recv()  # Nobody sends: what it costs to end is none of what is measured.


def _is_connected(subscriber: Any, source: Source) -> bool:
    status = subscriber.status(source)
    return status is not None and status.connected


def _publish(settings: dict[str, Any]) -> None:
    control = zmq.Context().socket(zmq.REP)
    control.bind(settings["control"])
    publishers = PUBLISHERS[settings["transport"]](settings["addresses"])
    count = len(settings["addresses"])
    said: list[list[bytearray]] = []
    blocks: list[int] = []
    for publisher in range(count):
        own, number = payloads(
            publisher, blocks_per_event=settings["blocks_per_event"], events=settings["batches"] // count
        )
        said.append(own)
        blocks.append(number)
    publishers.prepare(said)
    control.recv()
    publishers.wait_for_subscribers()
    control.send_json({"blocks": sum(blocks), "batches": sum(map(len, said))})
    control.recv()
    # In turn, as engines that work at the same pace.
    order = [(publisher, sequence) for sequence in range(len(said[0])) for publisher in range(count)]
    per_second = settings["paced"] * len(order) / sum(blocks)
    began = time.monotonic()
    sent = []
    for number, (publisher, sequence) in enumerate(order):
        payload = said[publisher][sequence]
        if per_second:
            while (now := time.monotonic()) < began + number / per_second:
                time.sleep(0.0005)
            _PACK_STAMP(payload, _STAMP_AT, now)
            if publisher == 0 and sequence % MARK_EVERY == MARK_EVERY - 1:
                sent.append(now)
        publishers.send(publisher, sequence, payload)
    control.send_json({"began": began, "marks_sent": sent})
    control.recv()


def main() -> None:
    """Be one of the processes."""
    settings = json.loads(sys.argv[2])
    if sys.argv[1] == "publish":
        _publish(settings)
    else:
        event_loop.run(_receive(settings))


if __name__ == "__main__":
    main()
