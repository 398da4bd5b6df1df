"""What the pretended engines say about their caches: real events over real ZeroMQ, one publisher per worker.

The conversations of a workload are dealt out to the workers in turn, and every worker also holds blocks that no
request asks for, so that the routers' indexes have a realistic size. Engine hashes are made up: real ones are opaque.
"""

import contextlib
import itertools
import random
from collections.abc import Sequence
from types import TracebackType

from benchmarks.processes import free_ports
from kvrouter.events import BlockStored
from kvrouter_publishers import ZmqEventPublisher

__all__ = ["BLOCK_SIZE", "CacheEvents"]

BLOCK_SIZE = 16
_CHAIN_BLOCKS = 64
_FILL_CHAINS = 256


class CacheEvents:
    """The publishers of a fleet; `endpoints` and `replay_endpoints` are in the order of its workers."""

    def __init__(self, workers: int) -> None:
        ports = free_ports(2 * workers)
        self.endpoints = [f"tcp://127.0.0.1:{port}" for port in ports[:workers]]
        self.replay_endpoints = [f"tcp://127.0.0.1:{port}" for port in ports[workers:]]
        self._open = contextlib.ExitStack()
        self._publishers: list[ZmqEventPublisher] = []
        for endpoint, replay in zip(self.endpoints, self.replay_endpoints, strict=True):
            publisher = ZmqEventPublisher(endpoint, replay_endpoint=replay, bind=True, encoding="array")
            self._open.callback(publisher.close)
            self._publishers.append(publisher)
        self._hashes = itertools.count(random.Random(0).getrandbits(60))

    def __enter__(self) -> "CacheEvents":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def publish_prompts(self, prompts: Sequence[Sequence[int]]) -> None:
        """Say that prompt number n is cached by worker n modulo the number of workers."""
        for publisher, prompt in zip(itertools.cycle(self._publishers), prompts):
            publisher.publish([self._stored(prompt)])

    def publish_fill(self) -> int:
        """Say that every worker holds other blocks too; return how many in all."""
        choice = random.Random(1)
        for publisher in self._publishers:
            for _ in range(_FILL_CHAINS):
                publisher.publish([self._stored(choice.choices(range(10_000, 99_999), k=_CHAIN_BLOCKS * BLOCK_SIZE))])
        return len(self._publishers) * _FILL_CHAINS * _CHAIN_BLOCKS

    def _stored(self, tokens: Sequence[int]) -> BlockStored:
        blocks = len(tokens) // BLOCK_SIZE
        return BlockStored(
            block_hashes=tuple(itertools.islice(self._hashes, blocks)),
            token_ids=tuple(tokens[: blocks * BLOCK_SIZE]),
            block_size=BLOCK_SIZE,
            medium="GPU",
        )
