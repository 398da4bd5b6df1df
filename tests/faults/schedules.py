"""One engine, one router and a bad channel in one thread: a schedule of faults is what a seed makes of them.

Publisher core, envelopes, ingest and index are the real ones. The simulated parts are the channel, the clock, and the
subscriber's part of the contract: it counts what it cannot read, and answers what receipts ask for. Beside them is the
truth: what the engine's cache held after every batch.
"""

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from kvrouter.blocks import chain_hashes, token_bytes
from kvrouter.errors import WireError
from kvrouter.events import AllBlocksCleared, BlockRemoved, BlockStored, Event, Source, decode_batch, decode_envelope
from kvrouter.index import PrefixIndex
from kvrouter.ingest import Ingest, IngestLimits, Receipt
from kvrouter_publishers.core import PublisherCore

__all__ = ["Clock", "Schedule"]

SOURCE: Final = Source("w", 0)
RANK: Final = 3
SIZE: Final = 4
DEPTH: Final = 5
CHAINS: Final = 3
STEPS: Final = 28
HEALING_ROUNDS_MAX: Final = 12

TOKENS: Final = [tuple(range(1000 * chain + 4, 1000 * chain + 4 + DEPTH * SIZE)) for chain in range(CHAINS)]
BLOCKS: Final = [(chain, depth) for chain in range(CHAINS) for depth in range(DEPTH)]
KEYS: Final = [key for tokens in TOKENS for key in chain_hashes(None, token_bytes(list(tokens)), SIZE)]

Block = tuple[int, int]
Frame = tuple[int, bytes]


class Clock:
    """Stands in for the `time` module of the publishers: seconds go by as the schedule says."""

    def __init__(self) -> None:
        self.now = 1000.0

    def time(self) -> float:
        """Seconds since the epoch."""
        return self.now

    def monotonic(self) -> float:
        """The same."""
        return self.now


@dataclass(slots=True)
class Engine:
    """One life: its cache, its publisher, and what its batches told, which may lag behind the cache."""

    life: int
    core: PublisherCore
    copies: Counter[Block] = field(default_factory=Counter)
    told: Counter[int] = field(default_factory=Counter)
    held_after: dict[int, frozenset[int]] = field(default_factory=dict)

    def follow(self, sequence: int, payload: bytes) -> None:
        """Note what is held after a batch, as engine hashes."""
        for event in decode_batch(payload).events:
            if isinstance(event, BlockStored):
                self.told.update(event.block_hashes)
            elif isinstance(event, BlockRemoved):
                self.told.subtract(event.block_hashes)
            else:
                self.told.clear()
        self.held_after[sequence] = frozenset(+self.told)


class Schedule:
    """Run it with `run`: any broken promise is an `AssertionError`."""

    ingest: Ingest
    index: PrefixIndex
    wanted: int | None
    snapshot_wanted: bool
    touched: bool
    """Whether ingest was told anything by the last action."""

    def __init__(self, seed: int, clock: Clock) -> None:
        self.random = random.Random(seed)
        self.clock = clock
        self.named = self.random.random() < 0.75
        self.ring = self.random.choice((1, 3, 8, 1000))
        self.queue = self.random.choice((1, 2, 1000))
        self.digests = self.random.choice((None, 1e-6, 5.0))
        self.lives: list[Engine] = []
        self.outcomes: Counter[str] = Counter()
        self.engine = self._new_engine()
        self.flying: list[Frame] = []
        self.past: list[Frame] = []
        self.snapshots: list[list[bytes]] = []
        self._new_router()
        self.saved = self.ingest.save()

    def run(self) -> None:
        """Let faults happen, then heal the channel, and compare."""
        actions = (
            (self.step, 6),
            (self.step_and_deliver, 8),
            (self.publish, 4),
            (self.deliver, 6),
            (self.lose, 2),
            (self.overtake, 2),
            (self.repeat, 2),
            (self.damage, 1),
            (self.repeat_the_past, 1),
            (self.answer_replay, 3),
            (self.answer_replay_in_part, 1),
            (self.make_snapshot, 2),
            (self.deliver_snapshot, 3),
            (self.tear_snapshot, 1),
            (self.refuse_snapshot, 1),
            (self.reconnect, 1),
            (self.restart_engine, 1),
            (self.restart_engine_unseen, 1),
            (self.save, 1),
            (self.restart_router, 1),
            (self.doubt, 1),
        )
        self.reconnect()
        for action in self.random.choices([each for each, _ in actions], [often for _, often in actions], k=STEPS):
            self.clock.now += 0.01
            self.touched = False
            action()
            if self.touched:
                self.check()
        self.heal()

    # What the engine does.

    def step(self) -> None:
        """Change the cache, and hand the events to the publisher."""
        events: list[Event] = []
        for _ in range(self.random.randint(1, 3)):
            event = self._change()
            if event is not None:
                events.append(event)
        self.engine.core.put(events)

    def step_and_deliver(self) -> None:
        """All goes well for once."""
        self.step()
        self.publish()
        while self.flying:
            self._arrive(self.flying.pop(0))

    def publish(self) -> None:
        """Send what is there; the longer this waits, the more of it the outbox has to compact."""
        engine = self.engine
        while (frame := engine.core.take(self.clock.now)) is not None or engine.core.has_batches():
            if frame is not None:  # Steps may sum up to nothing.
                self.flying.append((frame.sequence, frame.payload))
                engine.follow(frame.sequence, decode_envelope(frame.payload).payload if self.named else frame.payload)
        assert set(+engine.told) == set(map(self._hash, +engine.copies)), "the publisher's frames are not the truth"

    def restart_engine(self) -> None:
        """A new life, over a new connection."""
        self._new_life()
        self.reconnect()

    def restart_engine_unseen(self) -> None:
        """A new life behind a broker: nobody is told, but its first batch arrives where nothing else would show it."""
        self._new_life()
        self.flying.clear()
        if not self.named:
            self.engine.core.put([AllBlocksCleared()])
            self.publish()
            self.deliver()

    # What the channel does.

    def deliver(self) -> None:
        """The next frames arrive."""
        for _ in range(self.random.randint(1, 4)):
            if self.flying:
                self._arrive(self.flying.pop(0))

    def lose(self) -> None:
        """The next frame does not."""
        if self.flying:
            self.flying.pop(0)

    def overtake(self) -> None:
        """A later one comes first."""
        if self.flying:
            self._arrive(self.flying.pop(self.random.randrange(len(self.flying))))

    def repeat(self) -> None:
        """A frame comes, and will come again."""
        if self.flying:
            self._arrive(self.flying[0])

    def repeat_the_past(self) -> None:
        """A broker delivers again what it did not see acknowledged, maybe of a life that is over."""
        if self.past and self.named:
            self._arrive(self.random.choice(self.past))

    def damage(self) -> None:
        """A frame is cut, or its batch is garbage: one is not read at all, the other only by its header."""
        if self.flying and self.named:
            sequence, frame = self.flying.pop(0)
            batch = len(decode_envelope(frame).payload)
            cut = frame[: self.random.randrange(len(frame))]
            garbage = frame[: len(frame) - batch] + b"\xc1" * batch
            self._arrive((sequence, self.random.choice((cut, garbage))))

    def reconnect(self) -> None:
        """What flew is lost with the old connection."""
        self.flying.clear()
        self.ingest.disconnected(SOURCE, now=self.clock.now)
        self._note(self.ingest.connected(SOURCE, now=self.clock.now))

    # What the subscriber does.

    def answer_replay(self, *, share: float = 1.0) -> None:
        """Hand over what was asked for."""
        if self.wanted is None:
            return
        wanted, self.wanted = self.wanted, None
        kept = self.engine.core.since(wanted)
        for frame in kept[: round(len(kept) * share)]:
            if self._arrive(frame, replayed=True) == "restarted":
                return
        self._note(self.ingest.replay_finished(SOURCE, now=self.clock.now, complete=share == 1.0))

    def answer_replay_in_part(self) -> None:
        """The answer breaks off."""
        self.answer_replay(share=self.random.random() * 0.99)

    def make_snapshot(self) -> None:
        """The publisher answers; its answer may be long on the way."""
        frames = self.engine.core.snapshot(part_bytes_max=self.random.choice((200, 1 << 20)))
        if frames:
            self.snapshots.append(frames)

    def deliver_snapshot(self) -> None:
        """One of the answers arrives, maybe again, maybe of a life that is over."""
        if self.snapshots:
            self._take_snapshot(self.random.choice(self.snapshots[-3:]))

    def tear_snapshot(self) -> None:
        """A part of it is damaged behind its header, so that only ingest can see it."""
        if self.snapshots:
            frames = list(self.random.choice(self.snapshots))
            position = self.random.randrange(len(frames))
            frames[position] = frames[position][:-1] + b"\xc1"
            self._take_snapshot(frames)

    def refuse_snapshot(self) -> None:
        """It cannot be had now."""
        self.snapshot_wanted, self.touched = False, True
        self.ingest.snapshot_failed(SOURCE, now=self.clock.now)

    # What the router does.

    def save(self) -> None:
        """Write down what is known."""
        self.saved = self.ingest.save()

    def restart_router(self) -> None:
        """Begin anew, with what was written down, or with nothing."""
        self._new_router()
        if self.random.random() < 0.7:
            self.ingest.restore(self.saved, now=self.clock.now)
        self.reconnect()

    def doubt(self) -> None:
        """Requests found less than was promised."""
        self.ingest.doubt(SOURCE, reason="promised too much", now=self.clock.now)

    # What must be true.

    def check(self) -> None:
        """A source that is trusted claims only what was held after the batch that it applied last."""
        (status,) = self.ingest.status(now=self.clock.now)
        assert status.state != "live" or not status.lag, "a loss that nobody is told of"
        if status.doubt or (status.state == "suspect" and not self.named):
            return
        claims = self.claims()
        assert not claims or any(self._held(life, status.applied_sequence, claims) for life in self.lives), (
            "wrong claim"
        )

    def heal(self) -> None:
        """Everything that is asked for is answered: the claims are the truth, and every loss was counted."""
        self.publish()
        self.reconnect()
        for _ in range(HEALING_ROUNDS_MAX):
            if self.wanted is not None:
                self.answer_replay()
            elif self.snapshot_wanted and self.named:
                self.snapshot_wanted = False
                self._take_snapshot(self.engine.core.snapshot())
            else:
                break
        (status,) = self.ingest.status(now=self.clock.now)
        truth, claims = set(+self.engine.copies), self.claims()
        assert status.state == "live" or (status.doubt and not self.named), f"{status.state} after healing"
        if self.named or (self.ring > 100 and not status.incomplete):
            assert claims == truth, "after healing, index and truth differ"
        elif not status.doubt:
            assert claims <= truth, "after healing, wrong claims"
        self.check_counts()

    def check_counts(self) -> None:
        """What receipts said is what the status shows."""
        (status,) = self.ingest.status(now=self.clock.now)
        said = self.outcomes
        assert status.duplicates == said["duplicate"]
        assert status.quarantined >= said["quarantined"]
        assert status.gaps >= said["gap"]
        assert status.restarts >= said["restarted"]
        assert status.snapshots_applied == said["snapshot"]
        assert status.snapshots_refused == said["torn"]

    def claims(self) -> set[Block]:
        """What the index attributes to the rank."""
        held = self.index.holds(RANK, KEYS, "gpu").tolist()
        return {block for block, here in zip(BLOCKS, held, strict=True) if here}

    # The parts.

    def _new_engine(self) -> Engine:
        core = PublisherCore(
            worker_id=SOURCE.worker_id,
            rank=SOURCE.rank,
            native=self.named,
            buffer_steps=self.ring,
            max_queue_size=self.queue,
            digest_seconds=self.digests,
        )
        core.incarnation = self.random.getrandbits(64)
        engine = Engine(len(self.lives), core)
        self.lives.append(engine)
        return engine

    def _new_life(self) -> None:
        self.past += self.engine.core.since(0)
        self.clock.now += 100.0
        self.engine = self._new_engine()

    def _new_router(self) -> None:
        self.index = PrefixIndex()
        self.ingest = Ingest(self.index, limits=IngestLimits(buffered_batches_max=40))
        self.ingest.open(SOURCE, RANK, block_size=SIZE, now=self.clock.now)
        self.wanted = None
        self.snapshot_wanted = False
        self.outcomes.clear()

    def _hash(self, block: Block) -> int:
        return _hash(self.engine.life, block)

    def _held(self, engine: Engine, sequence: int | None, claims: set[Block]) -> bool:
        held = engine.held_after.get(-1 if sequence is None else sequence)
        return held is not None and all(_hash(engine.life, block) in held for block in claims)

    def _change(self) -> Event | None:
        copies, choose = self.engine.copies, self.random.random()
        held = sorted(+copies)
        if choose < 0.6 or not held:
            chain, end = self.random.randrange(CHAINS), self.random.randint(1, DEPTH)
            start = next((depth for depth in range(end) if copies[chain, depth] <= 0), self.random.randrange(end))
            blocks = [(chain, depth) for depth in range(start, end)]
            copies.update(blocks)
            return BlockStored(
                block_hashes=tuple(map(self._hash, blocks)),
                parent_block_hash=self._hash((chain, start - 1)) if start else None,
                token_ids=TOKENS[chain][start * SIZE : end * SIZE],
                block_size=SIZE,
                medium="GPU",
            )
        if choose < 0.97:
            block = self.random.choice(held)
            copies[block] -= 1
            return BlockRemoved(block_hashes=(self._hash(block),), medium="GPU")
        copies.clear()
        return AllBlocksCleared()

    def _arrive(self, frame: Frame, *, replayed: bool = False) -> str:
        sequence, payload = frame
        incarnation = digest = None
        if self.named:
            try:
                envelope = decode_envelope(payload)
            except WireError:
                return "malformed"
            payload, incarnation, digest = envelope.payload, envelope.incarnation, envelope.digest
        receipt = self.ingest.receive(
            SOURCE, sequence, payload, now=self.clock.now, replayed=replayed, incarnation=incarnation, digest=digest
        )
        self._note(receipt)
        self.outcomes[receipt.outcome] += 1
        return receipt.outcome

    def _take_snapshot(self, frames: list[bytes]) -> None:
        envelopes = [decode_envelope(frame) for frame in frames]
        receipt = self.ingest.snapshot(
            SOURCE,
            [envelope.payload for envelope in envelopes],
            sequence=envelopes[0].sequence,
            incarnation=envelopes[0].incarnation,
            now=self.clock.now,
        )
        self._note(receipt)
        names = {"applied": "snapshot", "restarted": "snapshot", "quarantined": "torn"}
        self.outcomes[names.get(receipt.outcome, receipt.outcome)] += 1

    def _note(self, receipt: Receipt) -> None:
        self.touched = True
        if receipt.replay_from is not None:
            self.wanted = receipt.replay_from
        self.snapshot_wanted |= receipt.snapshot_wanted


def _hash(life: int, block: Block) -> int:
    """Every life has its own seed."""
    chain, depth = block
    return (life * 977 + chain * 31 + depth + 1) * 0x9E3779B97F4A7C15 % 2**64
