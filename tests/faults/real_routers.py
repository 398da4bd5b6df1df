"""Who hears the lines of a schedule: a router's event plane in this process, of which everything can be seen."""

import random
import time
from collections.abc import Sequence
from dataclasses import replace
from operator import le
from typing import Any

import numpy as np

from kvrouter.blocks import chain_hashes, token_bytes
from kvrouter.events import Source
from kvrouter.index import PrefixIndex
from kvrouter.ingest import Ingest, IngestLimits, Receipt, SourceStatus
from kvrouter_subscribers import (
    HttpEventSubscriber,
    JetStreamEventSubscriber,
    RedisEventSubscriber,
    ZmqEventSubscriber,
)
from tests.faults.real_cache import CHAINS, SIZE, Copies, block_of, chain_tokens
from tests.faults.real_lines import Line, Party
from tests.subscribers import http_scene, jetstream_scene, redis_scene, scene

__all__ = ["InProcessRouter"]

_KEYS = {chain: chain_hashes(None, token_bytes(chain_tokens(chain)), SIZE) for chain in range(CHAINS)}
_ZMQ = replace(scene.PROBING, reconnect_seconds_max=0.2, snapshot_silence_seconds=2.0)
_JETSTREAM = replace(jetstream_scene.QUICK, heartbeat_seconds=0.5, request_seconds=1.0)
_REDIS = replace(redis_scene.QUICK, request_seconds=1.0)


class Witness(Ingest):
    """The ingest, and which numbers of which lives it was given."""

    def __init__(self, index: PrefixIndex) -> None:
        super().__init__(index, limits=IngestLimits(snapshot_seconds_max=3.0))
        self.heard: set[tuple[Source, int | None, int]] = set()

    def receive(
        self, source: Source, sequence: int, payload: bytes, *, incarnation: int | None = None, **options: Any
    ) -> Receipt:
        self.heard.add((source, incarnation, sequence))
        return super().receive(source, sequence, payload, incarnation=incarnation, **options)


class InProcessRouter:
    """A subscriber of the party's transport, with the real ingest and index behind it."""

    ingest: Witness
    index: PrefixIndex
    subscriber: Any

    def __init__(self, party: Party) -> None:
        self._party = party
        self._saved: tuple[bytes, Any] | None = None
        self.restored = False

    async def start(self, *, known: bool = False) -> None:
        """Begin, with what was saved last if something is to be `known`."""
        now = time.monotonic()
        saved = self._saved if known else None
        self.index = PrefixIndex()
        self.ingest = Witness(self.index)
        for rank, line in enumerate(self._party.lines):
            self.ingest.open(line.source, rank, block_size=SIZE, now=now)
        self.restored = saved is not None
        if saved is not None:
            self.ingest.restore(saved[0], now=now)
        self.subscriber = self._make(None if saved is None else saved[1])
        for line in self._party.lines:
            options = {} if line.replay_endpoint is None else {"replay_endpoint": line.replay_endpoint}
            self.subscriber.add(line.source, line.endpoint, **options)
        await self.subscriber.__aenter__()

    async def stop(self) -> None:
        """End; nothing is written down."""
        await self.subscriber.close()

    def save(self) -> None:
        """Write down what is known, and how far it was read."""
        positions = self.subscriber.positions() if self._party.broker is not None else None
        self._saved = self.ingest.save(), positions

    def doubt(self, line: Line) -> None:
        """Say that a source may be believed wrongly."""
        self.ingest.doubt(line.source, reason="a request found less than was promised", now=time.monotonic())

    def resync(self, line: Line) -> None:
        """Get the whole state of a source anew."""
        self.subscriber.resync(line.source)

    def status(self, line: Line) -> SourceStatus:
        """The ingest's view of a source."""
        statuses = self.ingest.status(now=time.monotonic())
        return next(each for each in statuses if (each.worker_id, each.rank) == line.source)

    def copies(self, line: Line) -> Copies:
        """What is claimed of a source."""
        places = self.ingest.copies(line.source)
        return {(tier, each): count for (tier, _), hashes in places.items() for each, count in hashes.items()}

    def index_agrees(self, line: Line, copies: Copies, *, some: bool) -> bool:
        """Whether the index attributes exactly these blocks to a source, or no others if `some` wait for a parent."""
        rank = self.status(line).dense_rank
        for tier in ("gpu", "cpu", "disk"):
            held = {block_of(engine_hash) for place, engine_hash in copies if place == tier}
            for chain, keys in _KEYS.items():
                found = self.index.holds(rank, np.array(keys, dtype=np.uint64), tier).tolist()
                wanted = [(chain, depth) in held for depth in range(len(keys))]
                if found != wanted and not (some and all(map(le, found, wanted))):
                    return False
        return True

    def unheard(self, line: Line, numbers: Sequence[int]) -> list[int]:
        """Which of these numbers of the present life never came."""
        life = line.lives[-1].incarnation if self._party.named else None
        return [number for number in numbers if (line.source, life, number) not in self.ingest.heard]

    def _make(self, positions: Any) -> Any:
        known = {} if positions is None else {"positions": positions}
        match self._party.transport:
            case "http":
                return HttpEventSubscriber(self.ingest, limits=http_scene.QUICK, jitter=random.Random(1))
            case "nats":
                return JetStreamEventSubscriber(self.ingest, limits=_JETSTREAM, **known)
            case "redis":
                return RedisEventSubscriber(self.ingest, limits=_REDIS, **known)
            case _:
                return ZmqEventSubscriber(self.ingest, limits=_ZMQ)
