"""Raw ZeroMQ ends for the publisher's tests: what a foreign consumer would use, and ways to wait without sleeping."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import zmq

from kvrouter.events import BlockRemoved, BlockStored, EventBatch, decode_batch, parse_live
from kvrouter_publishers import ZmqEventPublisher

WAIT_SECONDS = 30.0
ANY_TCP = "tcp://127.0.0.1:*"


def stored(first: int, blocks: int = 1) -> BlockStored:
    """A store of `blocks` blocks of four tokens with hashes counting from `first`."""
    return BlockStored(
        block_hashes=tuple(range(first, first + blocks)), token_ids=tuple(range(4 * blocks)), block_size=4, medium="GPU"
    )


def removed(block_hash: int) -> BlockRemoved:
    """A removal of one block."""
    return BlockRemoved(block_hashes=(block_hash,), medium="GPU")


def wait_for(condition: Callable[[], object]) -> None:
    """Poll until `condition` holds; a test that waits in vain fails here."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.002)


class Consumer:
    """A plain SUB socket that has proved, by a batch that came through, that its subscription is in force."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], topic: bytes = b"") -> None:
        self.socket = context.socket(zmq.SUB)
        self.socket.setsockopt(zmq.RCVTIMEO, round(WAIT_SECONDS * 1000))
        self.socket.setsockopt(zmq.RCVHWM, 0)
        self.socket.setsockopt(zmq.SUBSCRIBE, topic)

    def attach(self, publisher: ZmqEventPublisher) -> int:
        """Connect and publish until a batch arrives; returns the number of the next batch."""
        self.socket.connect(publisher.endpoint)
        return self.prove(publisher)

    def prove(self, publisher: ZmqEventPublisher) -> int:
        """Publish until a batch arrives, consume what was published, return the number of the next batch."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not self.socket.poll(5):
            assert time.monotonic() < deadline, "no batch arrived"
            publisher.publish([stored(0)])
        wait_for(lambda: publisher.statistics()["outbox_batches"] == 0)
        publisher.publish([removed(0)])
        while True:
            sequence, batch = self.batch()
            if isinstance(batch.events[0], BlockRemoved):
                return sequence + 1

    def frames(self) -> list[bytes]:
        """The next message."""
        return self.socket.recv_multipart()

    def batch(self) -> tuple[int, EventBatch]:
        """The next message's sequence number and batch."""
        _, sequence, payload = parse_live(self.frames())
        return sequence, decode_batch(payload)


class _KeepingContext(zmq.Context[zmq.Socket[bytes]]):
    """Keeps its sockets alive until it is destroyed, whoever else forgets them."""

    kept: list[object]

    def socket(self, *args: Any, **kwargs: Any) -> Any:
        """Make a socket and keep it."""
        made = super().socket(*args, **kwargs)
        self.kept.append(made)
        return made


@contextmanager
def consumers() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    """A context for raw sockets, all closed at the end."""
    context = _KeepingContext()
    context.kept = []
    try:
        yield context
    finally:
        context.destroy(linger=0)


def ask_replay(
    context: zmq.Context[zmq.Socket[bytes]], publisher: ZmqEventPublisher, start: int, *, receive_bound: int = 0
) -> zmq.Socket[bytes]:
    """Send a replay request in the documented form; returns the DEALER that will receive the answer."""
    dealer = context.socket(zmq.DEALER)
    dealer.setsockopt(zmq.RCVHWM, receive_bound)
    dealer.setsockopt(zmq.RCVTIMEO, round(WAIT_SECONDS * 1000))
    assert publisher.replay_endpoint is not None
    dealer.connect(publisher.replay_endpoint)
    dealer.send_multipart([b"", start.to_bytes(8)])
    return dealer


def read_replay(dealer: zmq.Socket[bytes]) -> list[list[bytes]]:
    """Every message up to and with the end marker."""
    messages = [dealer.recv_multipart()]
    while messages[-1][-1]:
        messages.append(dealer.recv_multipart())
    return messages
