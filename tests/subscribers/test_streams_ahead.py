"""Connections that are read ahead say what they would say otherwise: byte for byte, to the end, whatever ends them."""

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from kvrouter import native_core
from kvrouter.events import Source
from kvrouter.ingest import Receipt
from kvrouter_subscribers import ZmqEventSubscriber, zmtp_frames
from tests.subscribers.scene import WORKER, run, until
from tests.subscribers.zmtp_peer import Peer, batch, message, zmtp_peer

PING = zmtp_frames.frame(b"\x04PING\0\0", command=True)
BUFFER_BYTES = 8 << 10


class _Reference:
    """The core's part in it, done by the reference."""

    cut_messages = staticmethod(zmtp_frames.cut_messages)


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that comes is a reason to read ahead, and buffers are small, so that messages lie across them."""
    if not native_core.present:
        monkeypatch.setattr("kvrouter_subscribers.live_stream.native", _Reference)
    monkeypatch.setattr("kvrouter_subscribers.live_stream._MUCH_BYTES", 1)
    monkeypatch.setattr("kvrouter_subscribers.workplace._BUFFER_BYTES", BUFFER_BYTES)


class Heard:
    """A sink that keeps what it is given, and wants nothing."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, bytes]] = []
        self.connections = self.ends = 0

    def has(self, count: int) -> Callable[[], bool]:
        """Whether so many batches came, when it is called."""
        return lambda: len(self.batches) >= count

    def connected(self, source: Source, *, now: float) -> Receipt:
        """Count it."""
        self.connections += 1
        return Receipt("resolved")

    def disconnected(self, source: Source, *, now: float) -> None:
        """Count it."""
        self.ends += 1

    def receive(self, source: Source, sequence: int, payload: bytes, **rest: Any) -> Receipt:
        """Keep a batch."""
        self.batches.append((sequence, payload))
        return Receipt("applied")

    def receive_run(
        self,
        source: Source,
        first: int,
        payloads: Sequence[bytes],
        *,
        now: float,
    ) -> tuple[int, Receipt]:
        """Keep several."""
        self.batches += enumerate(payloads, first)
        return len(payloads), Receipt("applied")

    def replay_finished(self, source: Source, *, now: float, complete: bool) -> Receipt:
        """Nobody asked."""
        return Receipt("resolved")

    def snapshot(self, source: Source, batches: Sequence[bytes], **rest: Any) -> Receipt:
        """Nobody asked."""
        return Receipt("applied")

    def snapshot_failed(self, source: Source, *, now: float) -> None:
        """Nobody asked."""


def _payload(choose: random.Random) -> bytes:
    size = choose.choice([1, 40, 300, 3000, BUFFER_BYTES, 5 * BUFFER_BYTES, 300_000])
    return b"\x93" + choose.randbytes(choose.randrange(size))


@pytest.mark.parametrize("seed", range(6))
def test_streams_come_whole_whatever_lies_across_what_is_read(seed: int) -> None:
    """Batches of any size, commands among them, in any pieces, from several at once."""

    async def scenario() -> None:
        said: list[list[bytes]] = []

        async def story(peer: Peer) -> None:
            choose = random.Random(f"{seed}-{len(said)}")
            own = [_payload(choose) for _ in range(40)]
            said.append(own)
            await peer.shake_hands()
            data = b"".join(batch(number, each) + PING * choose.randrange(2) for number, each in enumerate(own))
            while data:
                size = choose.choice([1, 100, 5000, BUFFER_BYTES, 100_000])
                peer.writer.write(data[:size])
                await peer.writer.drain()
                data = data[size:]
            await peer.until_closed()

        sinks = [Heard() for _ in range(3)]
        async with zmtp_peer(story) as endpoint:
            for sink in sinks:  # One after the other, so that each knows who said what to it.
                async with ZmqEventSubscriber(sink) as subscriber:
                    subscriber.add(WORKER, endpoint)
                    await until(sink.has(40))

        assert [sink.batches for sink in sinks] == [list(enumerate(own)) for own in said]

    run(scenario())


@pytest.mark.parametrize("bad", [b"", b"\xff\xff\xff", message(*[b"x"] * 30), batch(9, bytes(90_000))[:-1]])
def test_the_end_of_a_connection_loses_nothing_before_it(bad: bytes) -> None:
    """What came before the fault, or before the publisher went, counts; then it is connected to again."""

    async def scenario() -> None:
        own = [b"\x93" + bytes([number]) * 3000 for number in range(9)]

        async def story(peer: Peer) -> None:
            await peer.shake_hands()
            peer.writer.write(b"".join(batch(number, each) for number, each in enumerate(own)) + bad)
            await peer.writer.drain()

        sink = Heard()
        async with zmtp_peer(story) as endpoint, ZmqEventSubscriber(sink) as subscriber:
            subscriber.add(WORKER, endpoint)
            await until(lambda: sink.ends >= 3)

        assert sink.batches[:18] == list(enumerate(own)) * 2

    run(scenario())


def test_sources_may_be_removed_while_they_are_read_ahead() -> None:
    """Their sockets are closed, and nobody reads them any more."""

    async def scenario() -> None:
        async def story(peer: Peer) -> None:
            await peer.shake_hands()
            for number in range(100_000):
                peer.writer.write(batch(number, b"\x93" + bytes(900)))
                await peer.writer.drain()

        sink = Heard()
        async with zmtp_peer(story) as endpoint, ZmqEventSubscriber(sink) as subscriber:
            for turn in range(20):
                before = len(sink.batches)
                for number in range(3):
                    subscriber.add(Source(f"w{number}", 0), endpoint)
                await until(sink.has(before + 50))
                for number in range(turn % 4):
                    subscriber.remove(Source(f"w{number}", 0))
                await asyncio.sleep(0)

        assert sink.connections >= 20

    run(scenario())
