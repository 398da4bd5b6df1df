"""A publisher, a channel that loses, repeats and reorders, restarts; beside them a model that cannot be wrong.

At every moment a trusted source claims only blocks that the publisher held after the batch that ingest applied last.
When the channel heals, and the publisher still remembers everything, ingest claims exactly what is held.
All of it holds for publishers that name their lives, where batches of past lives may come late as well. Those have
snapshots and digests: after healing the claims are exact whatever was forgotten, and damaged batches heal too.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kvrouter.blocks import sequence_hashes
from kvrouter.events import Event
from kvrouter.index import PrefixIndex
from kvrouter.ingest import Ingest, IngestLimits, Receipt
from kvrouter.ingest.waiting import DigestRows
from kvrouter_publishers.resident_set import ResidentSet
from tests.ingest.engines import CLEARED, RANK, SOURCE, payload, removed, stored

SIZE = 4
PATHS = ((0, 1, 2, 3), (0, 1, 4, 5), (6, 7, 8, 9))
"""Prompts as block numbers; the first two share their beginning. A block number stands for its whole prefix."""

TOKENS = {block: tuple(range(100 * block, 100 * block + SIZE)) for path in PATHS for block in path}
KEYS = {
    block: int(key)
    for path in PATHS
    for block, key in zip(path, sequence_hashes([t for b in path for t in TOKENS[b]], SIZE), strict=True)
}
REPLAY_ROUNDS_MAX = 20
GOLDEN_RATIO = 0x9E3779B97F4A7C15
"""Makes 64-bit incarnations of small numbers, in no order of theirs."""

Message = tuple[int, bytes, DigestRows | None]
Snapshot = tuple[Sequence[bytes], int, int | None]


@dataclass
class Publisher:
    """An engine's cache and its event stream; `ring` is what it can replay of this life."""

    ring_batches: int
    named: bool = False
    life: int = 0
    copies: Counter[int] = field(default_factory=Counter)
    announced: set[int] = field(default_factory=set)
    resident: ResidentSet = field(default_factory=ResidentSet)
    ring: dict[int, Message] = field(default_factory=dict)
    sequence: int = 0
    held_after: dict[tuple[int, int], frozenset[int]] = field(default_factory=dict)

    def hash_of(self, block: int) -> int:
        """Every life has its own seed."""
        return self.life * 1_000_003 + block + 17

    def may_continue(self, block: int) -> bool:
        """Whether stores may begin after `block`: snapshots do not describe what is gone and continued by nothing."""
        return self.copies[block] > 0 if self.named else block in self.announced

    @property
    def incarnation(self) -> int | None:
        """What this life is called, where lives have names."""
        return self.life * GOLDEN_RATIO % 2**64 if self.named else None

    @property
    def stamp(self) -> float:
        """The engine's clock."""
        return self.life * 1000.0 + self.sequence

    def publish(self, *events: Event) -> Message:
        """Number and remember one batch; every second one has a digest, where lives have names."""
        self.resident.apply(events)
        digest = self.resident.digest() if self.named and self.sequence % 2 else None
        message = self.sequence, payload(*events, stamp=self.stamp), digest
        self.held_after[self.life, self.sequence] = frozenset(+self.copies)
        self.ring[self.sequence] = message
        while len(self.ring) > self.ring_batches:
            del self.ring[min(self.ring)]
        self.sequence += 1
        return message

    def snapshot(self) -> Snapshot | None:
        """The whole state after the last batch, in parts of one event; None before the first batch."""
        if not self.sequence:
            return None
        events = list(self.resident.snapshot())
        parts = [payload(event, stamp=self.stamp) for event in events] or [payload(stamp=self.stamp)]
        return parts, self.sequence - 1, self.incarnation

    def restart(self) -> None:
        """Everything is gone but the memory of the test."""
        self.life += 1
        self.sequence = 0
        self.copies.clear()
        self.announced.clear()
        self.ring.clear()
        self.resident.forget()


class Channel(RuleBasedStateMachine):
    """The publisher forgets nothing that it may have to repeat."""

    ring_batches = 10_000
    named = False
    now = 0.0
    wanted: int | None
    snapshot_wanted: bool

    @initialize()
    def open(self) -> None:
        """One source, not connected yet."""
        self._begin_router()
        self.saved = self.ingest.save()
        self.publisher = Publisher(self.ring_batches, self.named)
        self.flying: list[Message] = []
        self.past: list[tuple[Message, int | None]] = []
        self.damaged = False

    @rule(path=st.sampled_from(PATHS), start=st.integers(0, 3), length=st.integers(1, 4))
    def store(self, path: tuple[int, ...], start: int, length: int) -> None:
        """Cache a stretch of a prompt whose beginning is known."""
        publisher = self.publisher
        while start and not publisher.may_continue(path[start - 1]):
            start -= 1
        blocks = path[start : start + length]
        publisher.copies.update(blocks)
        publisher.announced.update(blocks)
        event = stored(
            [publisher.hash_of(block) for block in blocks],
            [token for block in blocks for token in TOKENS[block]],
            parent=publisher.hash_of(path[start - 1]) if start else None,
        )
        self.flying.append(publisher.publish(event))

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        """Evict one copy of something."""
        publisher = self.publisher
        held = sorted(+publisher.copies)
        if held:
            block = data.draw(st.sampled_from(held))
            publisher.copies[block] -= 1
            self.flying.append(publisher.publish(removed(publisher.hash_of(block))))

    @rule()
    def clear(self) -> None:
        """Reset the engine's cache."""
        self.publisher.copies.clear()
        self.flying.append(self.publisher.publish(CLEARED))

    @rule()
    def restart(self) -> None:
        """A new life, over a new connection; what flew is lost with the old one."""
        self._end_life()
        self.reconnect()

    @rule()
    def restart_unseen(self) -> None:
        """A new life that the transport does not tell of, as behind a broker; its first batch arrives."""
        self._end_life()
        self.flying.clear()
        self._arrive(self.publisher.publish(CLEARED))

        if self.named:
            assert self.claims() == set()

    @rule()
    def reconnect(self) -> None:
        """The transport tells of a new connection; what flew is lost with the old one."""
        self.flying.clear()
        self.ingest.disconnected(SOURCE, now=self.now)
        self._note(self.ingest.connected(SOURCE, now=self.now))

    @rule()
    def save(self) -> None:
        """The router writes down what it knows."""
        self.saved = self.ingest.save()

    @rule(remembers=st.booleans())
    def restart_router(self, remembers: bool) -> None:
        """Another router begins, with what was written down last, or with nothing; and connects."""
        self._begin_router()
        if remembers:
            self.ingest.restore(self.saved, now=self.now)
            assert self.ingest.is_trusted(RANK) in {"suspect", "predicted"}
        self.reconnect()

    @rule(count=st.integers(1, 5))
    def deliver(self, count: int) -> None:
        """Batches arrive in order."""
        for message in self.flying[:count]:
            self._arrive(message)
        del self.flying[:count]

    @rule()
    def lose(self) -> None:
        """The channel drops the oldest batch."""
        del self.flying[:1]

    @rule(position=st.integers(0, 5))
    def deliver_out_of_order(self, position: int) -> None:
        """A later batch overtakes."""
        if position < len(self.flying):
            self._arrive(self.flying.pop(position))

    @rule()
    def repeat(self) -> None:
        """A batch arrives and will arrive once more."""
        if self.flying:
            self._arrive(self.flying[0])

    @rule(complete=st.booleans(), share=st.integers(0, 4))
    def replay(self, complete: bool, share: int) -> None:
        """What was asked for comes, wholly or in part."""
        if self.wanted is None:
            return
        wanted, self.wanted = self.wanted, None
        batches = [self.publisher.ring[number] for number in sorted(self.publisher.ring) if number >= wanted]
        for message in batches if complete else batches[: len(batches) * share // 4]:
            if self._arrive(message, replayed=True).outcome == "restarted":
                return  # The subscriber hands over no more of a replay that was asked of another life.
        self._note(self.ingest.replay_finished(SOURCE, now=self.now, complete=complete))

    @rule()
    def heal(self) -> None:
        """Reconnect, answer every wish, and the claims are the truth."""
        self.reconnect()
        for _ in range(REPLAY_ROUNDS_MAX):
            if not self.answer():
                break

        assert self.wanted is None
        assert self.ingest.is_trusted(RANK) == "live"
        self.check_healed()

    def answer(self) -> bool:
        """Give what is wanted; returns whether anything was."""
        wanted = self.wanted is not None
        self.replay(complete=True, share=4)
        return wanted

    def check_healed(self) -> None:
        """Exactly what is held, copy by copy."""
        publisher = self.publisher
        assert self.claims() == set(+publisher.copies)
        copies = {publisher.hash_of(block): count for block, count in (+publisher.copies).items()}
        assert self.ingest.copies(SOURCE).get(("gpu", 0), {}) == copies

    @invariant()
    def claims_only_what_was_held(self) -> None:
        """In the life that it follows, after the batch that it applied last."""
        (status,) = self.ingest.status(now=self.now)
        assert self.damaged or not status.digest_mismatches
        if status.doubt or (status.state == "suspect" and not self.named):
            return  # A replay ended before it showed whose life it is; the state says not to trust it.
        if status.applied_sequence is None:
            assert self.claims() == set()
            return
        lives = range(self.publisher.life + 1)
        possible = [self.publisher.held_after.get((life, status.applied_sequence)) for life in lives]
        assert any(held is not None and self.claims() <= held for held in possible)

    def claims(self) -> set[int]:
        """Blocks that the index attributes to the rank."""
        held = self.index.holds(RANK, list(KEYS.values()), "gpu")
        return {block for block, here in zip(KEYS, held.tolist(), strict=True) if here}

    def make_index(self) -> Any:
        """The index of a new router."""
        return PrefixIndex()

    def _begin_router(self) -> None:
        self.index = self.make_index()
        self.ingest = Ingest(self.index, limits=IngestLimits(buffered_batches_max=50))
        self.ingest.open(SOURCE, RANK, block_size=SIZE, now=self.now)
        self.wanted = None
        self.snapshot_wanted = False

    def _end_life(self) -> None:
        publisher = self.publisher
        self.past += [(message, publisher.incarnation) for message in publisher.ring.values()]
        publisher.restart()

    def _arrive(self, message: Message, *, replayed: bool = False) -> Receipt:
        return self._hand_over(message, self.publisher.incarnation, replayed=replayed)

    def _hand_over(self, message: Message, incarnation: int | None, *, replayed: bool = False) -> Receipt:
        sequence, batch, digest = message
        receipt = self.ingest.receive(
            SOURCE, sequence, batch, now=self.now, replayed=replayed, incarnation=incarnation, digest=digest
        )
        self._note(receipt)
        return receipt

    def _note(self, receipt: Receipt) -> None:
        if receipt.replay_from is not None:
            self.wanted = receipt.replay_from
        self.snapshot_wanted |= receipt.snapshot_wanted


class ForgetfulChannel(Channel):
    """The publisher can repeat its last few batches only: what is lost for good is never claimed."""

    ring_batches = 3

    def check_healed(self) -> None:
        """Nothing beyond what is held; how much less depends on what was lost."""
        assert self.claims() <= set(+self.publisher.copies)


class NamedChannel(Channel):
    """The publisher names its lives. Whatever comes late of past ones, no life is taken for another."""

    named = True

    @initialize()
    def open(self) -> None:
        """Snapshots fly on their own."""
        super().open()
        self.snapshots: list[Snapshot] = []

    @rule(data=st.data())
    def deliver_of_a_past_life(self, data: st.DataObject) -> None:
        """A broker repeats what it has not seen acknowledged."""
        if self.past:
            self._hand_over(*data.draw(st.sampled_from(self.past)))

    @rule()
    def damage(self) -> None:
        """The oldest batch arrives, and nobody can read it."""
        if self.flying:
            sequence, batch, digest = self.flying.pop(0)
            self.damaged = True
            self._arrive((sequence, b"\xc1" + batch, digest))

    @rule()
    def make_snapshot(self) -> None:
        """The publisher answers, wanted or not; the answer takes its time."""
        made = self.publisher.snapshot()
        if made is not None:
            self.snapshots.append(made)

    @rule(data=st.data())
    def deliver_snapshot(self, data: st.DataObject) -> None:
        """An answer arrives, maybe not for the first time, maybe of a past life."""
        if self.snapshots:
            self._hand_over_snapshot(data.draw(st.sampled_from(self.snapshots)))

    @rule(data=st.data())
    def deliver_torn_snapshot(self, data: st.DataObject) -> None:
        """A part is damaged; the others must change nothing."""
        if self.snapshots:
            parts, sequence, incarnation = data.draw(st.sampled_from(self.snapshots))
            before = self.claims()
            torn = data.draw(st.integers(0, len(parts) - 1))
            self._hand_over_snapshot(([*parts[:torn], parts[torn][:-1], *parts[torn + 1 :]], sequence, incarnation))
            assert self.claims() <= before

    @rule()
    def fail_snapshot(self) -> None:
        """It cannot be had now."""
        self.snapshot_wanted = False
        self.ingest.snapshot_failed(SOURCE, now=self.now)

    @rule()
    def doubt(self) -> None:
        """Somebody has a reason."""
        self.ingest.doubt(SOURCE, reason="a test says so", now=self.now)

    @rule()
    def trust(self) -> None:
        """It has none any more."""
        self.ingest.trust(SOURCE, now=self.now)

    def answer(self) -> bool:
        """Replays, then a snapshot."""
        wanted = super().answer()
        made = self.publisher.snapshot()
        if self.snapshot_wanted and made is not None:
            self.snapshot_wanted = False
            self._hand_over_snapshot(made)
            return True
        return wanted

    def _hand_over_snapshot(self, snapshot: Snapshot) -> None:
        parts, sequence, incarnation = snapshot
        self._note(self.ingest.snapshot(SOURCE, parts, sequence=sequence, incarnation=incarnation, now=self.now))


class ForgetfulNamedChannel(NamedChannel):
    """As above: what a short memory cannot repeat, a snapshot brings."""

    ring_batches = 3


_SETTINGS = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestChannel = Channel.TestCase
TestChannel.settings = _SETTINGS
TestForgetfulChannel = ForgetfulChannel.TestCase
TestForgetfulChannel.settings = _SETTINGS
TestNamedChannel = NamedChannel.TestCase
TestNamedChannel.settings = _SETTINGS
TestForgetfulNamedChannel = ForgetfulNamedChannel.TestCase
TestForgetfulNamedChannel.settings = _SETTINGS
