"""Who hears the lines of a schedule: a router's event plane in this process, of which everything can be seen.

`RouterProcess` is a whole `kvrouter serve` instead, of which only that can be seen which it answers.
"""

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import le
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol

import httpx
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
from tests.faults.real_cache import CHAINS, DEPTH, SIZE, Copies, block_of, chain_tokens
from tests.faults.real_lines import Line, Party
from tests.service.processes import Router as ServeProcess
from tests.subscribers import http_scene, jetstream_scene, redis_scene, scene

__all__ = ["Claims", "EventRouter", "InProcessRouter", "Look", "RouterProcess"]

_KEYS = {chain: chain_hashes(None, token_bytes(chain_tokens(chain)), SIZE) for chain in range(CHAINS)}
_ZMQ = replace(scene.PROBING, reconnect_seconds_max=0.2, snapshot_silence_seconds=2.0)
_JETSTREAM = replace(jetstream_scene.QUICK, heartbeat_seconds=0.5, request_seconds=1.0)
_REDIS = replace(redis_scene.QUICK, request_seconds=1.0)
_TIERS = ("gpu", "cpu", "disk")

Claims = Mapping[Any, int]
"""What a router says of a source, as far as it can be asked: counts, of which fewer are claims of less."""


class Look(NamedTuple):
    """What a router says of a source at one moment. `status` has the fields of `SourceStatus`."""

    status: Any
    claims: Claims


class EventRouter(Protocol):
    """A router, from the side of a schedule."""

    restored: bool
    """Whether it knew something when it began."""

    async def start(self, *, known: bool = False) -> None:
        """Begin, with what was saved last if something is to be `known`."""
        ...

    async def stop(self) -> None:
        """End at once; nothing is written down."""
        ...

    async def look(self, line: Line) -> Look | None:
        """What is said of a source now; None if that changes too fast to be seen."""
        ...

    def view(self, copies: Copies) -> Claims:
        """What the claims are when exactly this is believed."""
        ...

    def index_agrees(self, line: Line, claims: Claims, *, some: bool) -> bool:
        """Whether the index attributes exactly these blocks to a source, or no others if `some` wait for a parent."""
        ...

    def unheard(self, line: Line, numbers: Sequence[int]) -> list[int]:
        """Which of these numbers of the present life never came, as far as that can be known."""
        ...


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

    async def look(self, line: Line) -> Look | None:
        """What is said of a source now: the number of copies by tier and engine hash."""
        places = self.ingest.copies(line.source)
        copies = {(tier, each): count for (tier, _), hashes in places.items() for each, count in hashes.items()}
        return Look(self.status(line), copies)

    def view(self, copies: Copies) -> Claims:
        """The same copies."""
        return copies

    def index_agrees(self, line: Line, claims: Claims, *, some: bool) -> bool:
        """Whether the index attributes exactly these blocks to a source, or no others if `some` wait for a parent."""
        rank = self.status(line).dense_rank
        for tier in _TIERS:
            held = {block_of(engine_hash) for place, engine_hash in claims if place == tier}
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


class RouterProcess:
    """A `kvrouter serve` that keeps what it knows in a folder; it ends with SIGKILL, whatever it does."""

    restored = True
    _client: httpx.Client

    def __init__(self, party: Party) -> None:
        self._party = party
        self._process: ServeProcess | None = None

    async def start(self, *, known: bool = False) -> None:
        """Begin; with what was saved last if something is to be `known`."""
        folder = "known" if known else f"known-{time.monotonic_ns()}"
        options = {
            "--snapshots": str(self._party.folder / folder),
            "--events-snapshot-seconds": "1",
            "--events-idle-probe-seconds": "0.3",
            "--events-replay-seconds": "0.5",
            "--events-load-seconds": "0",
        }
        flat = [each for pair in options.items() for each in pair]
        self._process = await asyncio.to_thread(ServeProcess, self._party.folder, *flat)
        self._client = httpx.Client(timeout=60)
        for line in self._party.lines:
            fields = {"worker_id": line.source.worker_id, "endpoint": "x", "block_size": SIZE}
            events = {"kv_events_endpoint": line.endpoint, "replay_endpoint": line.replay_endpoint}
            await asyncio.to_thread(self._ask, "POST", "/workers", {**fields, **events})

    async def stop(self) -> None:
        """End it with SIGKILL."""
        if self._process is not None:
            await asyncio.to_thread(self._process.stop)
            self._client.close()
        self._process = None

    async def look(self, line: Line) -> Look | None:
        """What is answered about a source: leading blocks by chain and tier."""
        return await asyncio.to_thread(self._look, line)  # The loop carries the networks of all schedules.

    def _look(self, line: Line) -> Look | None:
        before = self._row(line)
        claims: dict[Any, int] = {}
        for chain in range(CHAINS):
            scores = self._ask("POST", "/overlap_scores", {"token_ids": chain_tokens(chain)})
            score = next(each for each in scores["workers"] if each["worker_id"] == line.source.worker_id)
            depths = (score["device_blocks"], score["host_pinned_blocks"], score["disk_blocks"])
            claims |= {(chain, tier): depth for tier, depth in zip(_TIERS, depths, strict=True)}
        status = self._row(line)
        still = all(before[name] == status[name] for name in ("applied_sequence", "applied_batches", "state"))
        return Look(SimpleNamespace(**status), claims) if still else None

    def view(self, copies: Copies) -> Claims:
        """Leading blocks by chain, in a tier or above it."""
        claims: dict[Any, int] = {}
        held: set[tuple[int, int]] = set()
        for tier in _TIERS:
            held |= {block_of(engine_hash) for place, engine_hash in copies if place == tier}
            for chain in range(CHAINS):
                missing = (depth for depth in range(DEPTH) if (chain, depth) not in held)
                claims[chain, tier] = next(missing, DEPTH)
        return claims

    def index_agrees(self, line: Line, claims: Claims, *, some: bool) -> bool:
        """What was asked for is the index."""
        return True

    def unheard(self, line: Line, numbers: Sequence[int]) -> list[int]:
        """That cannot be known."""
        return []

    def _row(self, line: Line) -> Any:
        rows = self._ask("GET", "/sources")
        return next(row for row in rows if row["worker_id"] == line.source.worker_id)

    def _ask(self, method: str, path: str, body: object = None) -> Any:
        assert self._process is not None
        answer = self._client.request(method, self._process.url + path, json=body)
        answer.raise_for_status()
        return answer.json()
