"""An engine as it is on the wire: it numbers batches, keeps some for replays, and does what a case says, also wrong.

It has no thread: whoever waits for something lets it answer replay requests meanwhile (`serve`).
"""

from types import TracebackType
from typing import Any, Final, Self

import msgpack
import zmq

from kvrouter.events import AllBlocksCleared, BlockRemoved, BlockStored, Event, EventBatch, encode_batch

__all__ = ["BLOCK", "CLEARED", "Chain", "WireEngine", "removed"]

BLOCK: Final = 16
CLEARED: Final = AllBlocksCleared()
_END: Final = b"\xff" * 8


class Chain:
    """A prompt of so many blocks that no other chain has in common with it; hashes depend on the engine's `seed`."""

    def __init__(self, number: int, blocks: int, *, seed: int = 0, hash_bytes: int = 0) -> None:
        first = 1 + number * 10_000
        self.tokens = list(range(first, first + blocks * BLOCK))
        self.hashes: list[Any] = [
            (seed * 1_000_003 + first + block) * 0x9E3779B97F4A7C15 % 2**64 for block in range(blocks)
        ]
        if hash_bytes:
            self.hashes = [value.to_bytes(8).rjust(hash_bytes, b"\x5a") for value in self.hashes]

    def stored(self, start: int = 0, end: int | None = None, **fields: Any) -> BlockStored:
        """The store of some of its blocks."""
        end = len(self.hashes) if end is None else end
        return BlockStored(
            block_hashes=tuple(self.hashes[start:end]),
            parent_block_hash=self.hashes[start - 1] if start else None,
            token_ids=tuple(self.tokens[start * BLOCK : end * BLOCK]),
            block_size=BLOCK,
            **{"medium": "GPU", **fields},
        )

    def removed(self, *blocks: int, **fields: Any) -> BlockRemoved:
        """The removal of some."""
        return removed(*(self.hashes[block] for block in blocks), **fields)


def removed(*hashes: Any, **fields: Any) -> BlockRemoved:
    """The removal of blocks by their hashes."""
    return BlockRemoved(block_hashes=hashes, **{"medium": "GPU", **fields})


class WireEngine:
    """PUB and replay sockets with vLLM's messages. `ring` is how many batches it can repeat."""

    def __init__(self, *, replays: bool = True, ring: int = 10_000, encoding: str = "map") -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.setsockopt(zmq.LINGER, 0)
        self._encoding: Any = encoding
        self._ring_batches = ring
        self._ring: dict[int, bytes] = {}
        self.sequence = 0
        self._live = self._bind(zmq.XPUB, "tcp://127.0.0.1:*")
        self._replay = self._bind(zmq.ROUTER, "tcp://127.0.0.1:*") if replays else None
        self.endpoint = self._live.getsockopt_string(zmq.LAST_ENDPOINT)
        self.replay_endpoint = self._replay.getsockopt_string(zmq.LAST_ENDPOINT) if self._replay is not None else None
        self.subscribers = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._context.destroy(linger=0)

    def publish(self, *events: Event, lost: bool = False, times: int = 1) -> int:
        """Send a batch, or lose it on the way, or send it several times; returns its number."""
        batch = EventBatch(timestamp=1000.0 + self.sequence, events=events, data_parallel_rank=0)
        return self.publish_payload(encode_batch(batch, encoding=self._encoding), lost=lost, times=times)

    def publish_raw(self, *events: object, lost: bool = False) -> int:
        """Send a batch of events as they are, which need not be any that somebody knows."""
        return self.publish_payload(msgpack.packb([1000.0 + self.sequence, list(events), 0]), lost=lost)

    def publish_payload(self, payload: bytes, *, lost: bool = False, times: int = 1) -> int:
        """Send anything as a batch."""
        sequence, self.sequence = self.sequence, self.sequence + 1
        self._ring[sequence] = payload
        self._ring.pop(sequence - self._ring_batches, None)
        for _ in range(0 if lost else times):
            self.send(b"", sequence.to_bytes(8), payload)
        return sequence

    def send(self, *frames: bytes) -> None:
        """Send any message."""
        self._live.send_multipart(list(frames))

    def forget(self) -> None:
        """Keep nothing for replays."""
        self._ring.clear()

    def begin_new_life(self) -> None:
        """Count from 0 again, without a word and over the same connection."""
        self._ring.clear()
        self.sequence = 0

    def restart(self) -> None:
        """Be another process at the same addresses."""
        self.begin_new_life()
        self.subscribers = 0
        self._live = self._again(self._live, zmq.XPUB, self.endpoint)
        if self._replay is not None and self.replay_endpoint is not None:
            self._replay = self._again(self._replay, zmq.ROUTER, self.replay_endpoint)

    def serve(self) -> None:
        """Answer what was asked, and note who subscribed."""
        while self._live.poll(0):
            self.subscribers += 1 if self._live.recv()[:1] == b"\x01" else -1
        while self._replay is not None and self._replay.poll(0):
            identity, *request = self._replay.recv_multipart()
            if len(request) == 2:
                self._answer(self._replay, identity, int.from_bytes(request[1]))

    def _answer(self, replay: "zmq.Socket[bytes]", identity: bytes, start: int) -> None:
        for sequence, payload in sorted(self._ring.items()):
            if sequence >= start:
                replay.send_multipart([identity, b"", b"", sequence.to_bytes(8), payload])
        replay.send_multipart([identity, b"", b"", _END, b""])

    def _again(self, old: "zmq.Socket[bytes]", kind: int, endpoint: str) -> "zmq.Socket[bytes]":
        old.close(linger=0)
        for _ in range(1000):
            try:
                return self._bind(kind, endpoint)
            except zmq.ZMQError:  # The old socket frees its address in the background.
                zmq.Poller().poll(10)
        raise AssertionError(f"{endpoint} is not free again")

    def _bind(self, kind: int, endpoint: str) -> "zmq.Socket[bytes]":
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.SNDHWM, 0)
        if kind == zmq.XPUB:
            socket.setsockopt(zmq.XPUB_VERBOSE, 1)
        try:
            socket.bind(endpoint)
        except zmq.ZMQError:
            socket.close(linger=0)
            raise
        return socket
