"""Events share the event loop with requests: whatever arrives, others get their turns in between."""

import asyncio
import time
from typing import Any

import pytest
import zmq

from kvrouter.events import Source
from kvrouter_subscribers import Receipt, ZmqEventSubscriber
from tests.subscribers.scene import ANY_TCP, DIRECT, WORKER, RecordingSink, payload, stored, until

pytestmark = pytest.mark.usefixtures("reading")

MESSAGES = 60
BATCH_SECONDS = 0.003


class SlowSink(RecordingSink):
    """Takes longer over each batch than a turn may last."""

    taken = 0

    def receive(self, source: Source, sequence: int, payload: bytes, *, now: float, **options: Any) -> Receipt:
        """Work on the batch, as one with thousands of blocks would be."""
        self.taken += 1
        end = time.perf_counter() + BATCH_SECONDS
        while time.perf_counter() < end:
            pass
        return super().receive(source, sequence, payload, now=now, **options)


def test_large_batches_are_read_one_to_a_turn() -> None:
    """A burst of them would hold up every request for the whole burst."""

    async def most_taken_in_a_turn() -> int:
        sink, most = SlowSink(), 0
        with zmq.Context() as context, context.socket(zmq.PUB) as publisher:
            publisher.bind(ANY_TCP)
            async with ZmqEventSubscriber(sink, direct=DIRECT.get()) as subscriber:
                subscriber.add(WORKER, publisher.getsockopt_string(zmq.LAST_ENDPOINT))

                def send(sequence: int) -> bool:
                    publisher.send_multipart([b"", sequence.to_bytes(8, "big"), payload([stored(sequence)])])
                    return sink.taken > 0

                await until(lambda: send(0))  # a subscription needs a moment to reach the publisher
                for sequence in range(MESSAGES):
                    send(sequence)
                end = sink.taken + MESSAGES
                while sink.taken < end:
                    before = sink.taken
                    await asyncio.sleep(0)
                    most = max(most, sink.taken - before)
        return most

    assert asyncio.run(asyncio.wait_for(most_taken_in_a_turn(), 90)) == 1
