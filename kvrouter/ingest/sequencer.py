"""Puts one source's batches in order: each is applied once, gaps are replayed, a new life is noticed.

Sequence numbers count from 0 in each life of an engine. Our own publishers name the life (the
incarnation of `kvrouter.events.envelope`), so nothing has to be guessed: see `_receive_named`. On the
engines' own wires nothing names it. There the digest of every recent batch is kept: the same number
with the same bytes is a duplicate, with other bytes it is another life. After a reconnection nothing
is applied before the publisher has repeated our last batch, because a new life may have counted past
the old one's end; where it cannot be asked, the source is in doubt until it can.

A snapshot is the publisher's whole state after one of its batches: the cursor jumps behind it.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from kvrouter.events import peek_timestamp
from kvrouter.ingest.cursor import Cursor, Feed
from kvrouter.ingest.fingerprints import CLOCK_STEP_SECONDS, REACH, Fingerprints
from kvrouter.ingest.limits import IngestLimits
from kvrouter.ingest.receipts import Outcome, Receipt
from kvrouter.ingest.waiting import Batch, Waiting

__all__ = ["Sequencer"]

_LIVES_LEFT_MAX: Final = 64


@dataclass(slots=True)
class _Replay:
    """A replay that was asked for. `unverified`: it must first show that the publisher's life is the one we know."""

    start: int
    unverified: bool = False
    attempts: int = 1
    began: bool = False


class Sequencer:
    """The cursor of one source. `receive` is idempotent per sequence number and bytes."""

    __slots__ = (
        "_doubted_from",
        "_drain_bytes",
        "_feed",
        "_fingerprints",
        "_given_up_below",
        "_left",
        "_life",
        "_limits",
        "_replay",
        "_waiting",
        "applied",
        "duplicates",
        "expected",
        "gaps",
        "gaps_lost",
        "incarnation",
        "replay_welcome",
        "restarts",
    )

    def __init__(self, feed: Feed, limits: IngestLimits, *, drain_bytes: int | None = None) -> None:
        self.expected = 0
        self.incarnation = 0
        self.replay_welcome = False
        """Whether a replay from number 0, whoever asked for it, begins this life anew: what is known is in doubt."""
        self.applied = self.duplicates = self.gaps = self.gaps_lost = self.restarts = 0
        self._doubted_from: int | None = None  # Batches from here on may be of another life than those before.
        self._drain_bytes = drain_bytes  # Of what waited, about so much is applied at once; None: all of it.
        self._feed = feed
        self._given_up_below = 0  # Batches below were given up, which the publisher may still have.
        self._limits = limits
        self._fingerprints = Fingerprints()
        self._life: int | None = None  # Its incarnation, if the publisher names it.
        self._left: OrderedDict[int, int] = OrderedDict()  # Incarnations followed before: the first number unseen.
        self._replay: _Replay | None = None
        self._waiting = Waiting(limits)

    @property
    def replaying(self) -> bool:
        """Whether batches were asked for and are awaited."""
        return self._replay is not None

    @property
    def unverified(self) -> bool:
        """Whether a connection was made whose publisher could not be asked if it is the one we knew."""
        return self._doubted_from is not None

    @property
    def names_lives(self) -> bool:
        """Whether the publisher says which life its batches are of."""
        return self._life is not None

    @property
    def backlog(self) -> bool:
        """Whether batches wait for nothing but their turn: `work` applies them."""
        return self.expected in self._waiting and not self._held

    @property
    def waiting(self) -> int:
        """Batches that wait for those before them."""
        return len(self._waiting)

    @property
    def lag(self) -> int:
        """Batches known to exist after the last applied one."""
        return self._waiting.highest + 1 - self.expected if self._waiting else 0

    def connected(self) -> Receipt:
        """A connection was made. What was published before it may be missed, and the engine may be another."""
        self._waiting.clear()
        known = self._known_below()
        # What was given up for want of an answer may be had now, unless that is longer ago than our digests reach.
        again = self._given_up_below > 0 and self.expected - self._given_up_below <= REACH
        self._replay = _Replay(0 if again else max(0, known - 1), unverified=known > 0)
        return Receipt("connected", self._replay.start)

    def reset(self) -> None:
        """Forget the life that was followed; the next batch begins another."""
        self._begin_life()
        self._replay = None
        self._waiting.clear()

    def save(self) -> Cursor:
        """Where we stand."""
        digests, covered_at = self._fingerprints.dump(0 if self._life is not None else self.expected)
        return Cursor(
            expected=self.expected,
            incarnation=self.incarnation,
            life=self._life,
            left=tuple(self._left.items()),
            given_up_below=self._given_up_below,
            fingerprints=digests,
            covered_at=covered_at,
        )

    def resume(self, cursor: Cursor) -> None:
        """Stand where another sequencer stood, until the publisher shows that it is the same one."""
        self.expected, self.incarnation, self._life = cursor.expected, cursor.incarnation, cursor.life
        self._left = OrderedDict(cursor.left)
        self._given_up_below = cursor.given_up_below
        self._fingerprints.load(cursor.expected, cursor.fingerprints, cursor.covered_at)
        self._doubted_from = cursor.expected

    def work(self) -> None:
        """Apply some of the backlog."""
        self._drain()

    def receive(self, sequence: int, batch: Batch, *, replayed: bool, incarnation: int | None = None) -> Receipt:
        """Take one batch, live or replayed, in whatever order they come; `incarnation` names the publisher's life."""
        if incarnation is not None:
            return self._receive_named(incarnation, sequence, batch, replayed=replayed)
        if self._life is not None:
            self._life = None  # Named by a snapshot only.
        if self.replay_welcome and replayed and not sequence and self._is_ours(sequence, batch):
            self._begin_again()
        first_of_replay = self._begins_replay(replayed=replayed)
        if first_of_replay and sequence < self._given_up_below:
            self._begin_again()
        if sequence < self.expected:
            return self._receive_again(sequence, batch, replayed=replayed)
        replay = self._replay
        if replay is not None and replay.unverified:
            if not replayed:
                return self._wait(sequence, batch, "buffered")
            # The publisher no longer has our last batch: it cannot be told whether this is still the same life.
            self._restart(_Replay(replay.start, began=True))
        return self._receive_next(sequence, batch, replayed=replayed, first_of_replay=first_of_replay)

    def is_next(self, sequence: int, incarnation: int | None) -> bool:
        """Whether a live batch is the one that is expected, and nothing else is to be thought of: as nearly always."""
        return (
            sequence == self.expected
            and incarnation == self._life
            and self._replay is None
            and self._doubted_from is None
            and not self._waiting
        )

    def take_next(self, payload: bytes) -> bool:
        """Apply the batch of which `is_next` is true; returns whether it could be understood."""
        if self._life is None:
            self._fingerprints.note(self.expected, payload)
        self.expected += 1
        self.applied += 1
        return self._feed.apply(payload)

    def took(self, payloads: Sequence[bytes]) -> None:
        """The batches that followed the one of which `is_next` was true have been applied."""
        if self._life is None:
            self._fingerprints.note_run(self.expected, payloads)
        self.expected += len(payloads)
        self.applied += len(payloads)

    def replay_finished(self, *, complete: bool) -> Receipt:
        """The replay that was asked for is over; `complete` if the publisher said so."""
        replay, self._replay = self._replay, None
        if replay is None:
            return Receipt("resolved")
        if replay.unverified:
            if complete:  # It does not have our last batch, so it never published it: another life, and a shorter one.
                self._restart(_Replay(0))
                self._drain()
                return Receipt("restarted", 0)
            self._doubted_from = self._known_below()
        self._drain()
        missing = self._waiting.first_missing(self.expected)
        if not self._waiting or missing > self._waiting.highest:
            return Receipt("resolved")
        # Under steady loss every replay leaves a later gap; only one that brought nothing counts against the source.
        attempts = 1 if self.expected > replay.start else replay.attempts + 1
        if complete and attempts <= self._limits.replay_attempts_max:
            self._replay = _Replay(missing, attempts=attempts)
            return Receipt("gap", missing)
        self._drain_all()
        self._given_up_below = self._waiting.lowest
        return self._give_up()

    def judge(self, sequence: int, incarnation: int | None, *, kept_from: int) -> Outcome:
        """Tell what a snapshot after batch `sequence` of that life is: applied, restarted, or a duplicate.

        `kept_from`: applied batches from this number on can be applied once more on top of it.
        """
        if incarnation is not None and incarnation != self._life and (self._life is not None or not self.expected):
            if sequence < self._left.get(incarnation, 0):
                return "duplicate"
            return "applied" if self._life is None else "restarted"
        return "duplicate" if sequence + 1 < min(kept_from, self.expected) else "applied"

    def jump(self, sequence: int, incarnation: int | None, stamp: float | None, *, restarted: bool) -> Receipt:
        """Go on after batch `sequence`, as `judge` allowed: the feed knows all that this and earlier batches said.

        `stamp` is when the publisher said so. A wire whose batches name no life goes on so, whatever names its
        snapshots.
        """
        if restarted:
            self.restarts += 1
            self._begin_life()
            self._waiting.clear()
            self._replay = None
        if incarnation is not None and (self._life is not None or not self.expected):
            if self._life is None:
                self._waiting.clear()
            self._life = incarnation
            self._left.pop(incarnation, None)
            self._doubted_from = None
            if self._replay is not None:
                self._replay.unverified = False
        self._fingerprints.cover(self.expected, sequence + 1, stamp)
        self.expected = max(self.expected, sequence + 1)
        self._given_up_below, self.replay_welcome = 0, False
        self._waiting.forget_below(self.expected)
        self._drain()
        receipt = self._ask_for_hole("restarted" if restarted else "applied")
        if not restarted or receipt.replay_from is not None:
            return receipt
        self._replay = _Replay(self.expected)  # What was published between the snapshot and our subscription.
        return Receipt("restarted", self.expected)

    def _ask_for_hole(self, outcome: Outcome) -> Receipt:
        """Ask for what those wait for that still wait, if nothing was asked for yet."""
        missing = self._waiting.first_missing(self.expected)
        if self._replay is not None or not self._waiting or missing > self._waiting.highest:
            return Receipt(outcome)
        self.gaps += 1
        self._replay = _Replay(missing)
        return Receipt(outcome, missing)

    def _receive_named(self, incarnation: int, sequence: int, batch: Batch, *, replayed: bool) -> Receipt:
        """Take a batch whose life is known: within it numbers alone decide, another life starts over.

        Lives have no order of their own. What a life that we left repeats is a late duplicate; what is news of it,
        or what a replay says, is not: then it was the other one that came late.
        """
        if incarnation != self._life:
            if not replayed and sequence < self._left.get(incarnation, 0):
                self.duplicates += 1
                return Receipt("duplicate")
            if not self._follow(incarnation, replayed=replayed):
                return self._receive_first(sequence, batch)
        if self.replay_welcome and replayed and not sequence:
            self._begin_again()
        first_of_replay = self._begins_replay(replayed=replayed)
        if first_of_replay and sequence < self._given_up_below:
            self._begin_again()
        self._verified()
        if sequence < self.expected:
            self.duplicates += 1
            return Receipt("duplicate")
        return self._receive_next(sequence, batch, replayed=replayed, first_of_replay=first_of_replay)

    def _follow(self, incarnation: int, *, replayed: bool) -> bool:
        """Follow that life from now on; returns whether what is missing of it was asked for already, or never came."""
        replay = self._replay
        fresh = self._life is None and not self.expected
        covered = replayed and replay is not None and not replay.start
        if fresh:
            if self._waiting:  # Of a wire that names no lives: nobody can tell whether they are of this one.
                self._waiting.clear()
        else:
            self._restart(_Replay(0))
            self._waiting.clear()
        self._life = incarnation
        self._left.pop(incarnation, None)
        return fresh or covered

    def _receive_first(self, sequence: int, batch: Batch) -> Receipt:
        """Take the first batch of a new life, which need not be its number 0, and ask for those before it."""
        if sequence:
            self._wait(sequence, batch, "buffered")
        else:
            self._advance(sequence, batch)
        return Receipt("restarted", 0)

    def _begins_replay(self, *, replayed: bool) -> bool:
        replay = self._replay
        if replay is None or not replayed or replay.began:
            return False
        replay.began = True
        return True

    def _receive_next(self, sequence: int, batch: Batch, *, replayed: bool, first_of_replay: bool) -> Receipt:
        """Take a batch of the life that we follow that was not seen before."""
        if sequence > self.expected:
            if not first_of_replay:
                return self._receive_ahead(sequence, batch, replayed=replayed)
            # A replay begins with the oldest batch that is left, so the ones before are gone for good, whatever came
            # between them: nothing of that is worth knowing, as the last of these holes ends it.
            self._waiting.add(sequence, batch)
            self._waiting.forget_before_run(sequence)
            return self._give_up()
        return Receipt(self._advance(sequence, batch))

    def _receive_again(self, sequence: int, batch: Batch, *, replayed: bool) -> Receipt:
        verdict = self._fingerprints.judge(sequence, batch.payload, expected=self.expected)
        if verdict == "same" or (verdict in {"skipped", "unknown"} and replayed):
            self.duplicates += 1
            if verdict == "same" and sequence < self._known_below():
                self._verified()
            return Receipt("duplicate")
        self._restart(_Replay(0))
        self._waiting.clear()
        return self._receive_first(sequence, batch)

    def _verified(self) -> None:
        """The publisher repeated a batch that we know: it is the life that we follow."""
        self._doubted_from = None
        if self._replay is not None and self._replay.unverified:
            self._replay.unverified = False
            self._drain()

    def _receive_ahead(self, sequence: int, batch: Batch, *, replayed: bool) -> Receipt:
        if self._replay is not None or replayed or (self.backlog and sequence - 1 in self._waiting):
            return self._wait(sequence, batch, "buffered")
        missing = self._waiting.first_missing(self.expected)
        self.gaps += 1
        self._replay = _Replay(missing)
        receipt = self._wait(sequence, batch, "gap")
        return Receipt("gap", missing) if receipt.outcome == "gap" else receipt

    def _known_below(self) -> int:
        """Batches below this one are certainly of the life that we follow."""
        return self.expected if self._doubted_from is None else self._doubted_from

    def _is_ours(self, sequence: int, batch: Batch) -> bool:
        """Whether nothing speaks against it that a number which was seen is of the life that we follow."""
        return self._fingerprints.judge(sequence, batch.payload, expected=self.expected) != "other"

    def _wait(self, sequence: int, batch: Batch, outcome: Outcome) -> Receipt:
        waiting = self._waiting
        waiting.add(sequence, batch)
        if self.backlog:
            self._drain()
        if waiting.full and self.backlog:
            self._drain_all()
        if waiting.full:
            self._given_up_below = waiting.lowest
            return self._give_up()
        return Receipt(outcome)

    def _advance(self, sequence: int, batch: Batch) -> Outcome:
        self._waiting.take(sequence)
        understood = self._take(batch)
        if self._waiting and self._life is None:
            # Batches that wait for this one are not older than it, unless they are of an earlier life.
            stamp = peek_timestamp(batch.payload)
            if stamp is not None:
                self._waiting.forget_before(stamp - CLOCK_STEP_SECONDS)
        self._drain()
        return "applied" if understood else "quarantined"

    def _take(self, batch: Batch) -> bool:
        """Apply one batch. The cursor moves even past one that nobody understands, or nothing would ever follow it."""
        understood = self.take_next(batch.payload)
        if batch.digest is not None:
            self._feed.compare(batch.digest)
        return understood

    @property
    def _held(self) -> bool:
        """Whether nothing may be applied before the publisher has shown that it is the one we know."""
        return self._replay is not None and self._replay.unverified

    def _drain(self) -> None:
        """Apply what waited for nothing but its turn, up to the bound of one go."""
        left = self._drain_bytes
        while not self._held:
            batch = self._waiting.take(self.expected)
            if batch is None:
                return
            self._take(batch)
            if left is not None:
                left -= len(batch.payload)
                if left <= 0:
                    return

    def _drain_all(self) -> None:
        while self.backlog:
            self._drain()

    def _give_up(self) -> Receipt:
        """Go on without what is missing. A removal may be among it, so nothing that was known can be kept."""
        lowest = self._waiting.lowest
        if self.expected:
            self.gaps_lost += 1
            self._doubted_from = None
            self._feed.forget(restarted=False)
        self._feed.miss()
        self._fingerprints.skip(self.expected, lowest)
        self.expected = lowest
        if self._replay is not None:
            self._replay.unverified = False
        self._drain()
        return self._ask_for_hole("applied")

    def _begin_again(self) -> None:
        """The publisher has what was given up after all: follow its life anew, from the beginning of this replay."""
        if self._replay is None:
            self._replay = _Replay(0)
        self._replay.unverified = False
        self._feed.forget(restarted=False)
        self._start_counting()

    def _restart(self, replay: _Replay) -> None:
        self.restarts += 1
        self._begin_life()
        self._feed.forget(restarted=True)
        self._replay = replay

    def _begin_life(self) -> None:
        self._leave()
        self.incarnation += 1
        self._start_counting()

    def _start_counting(self) -> None:
        self.expected = self._given_up_below = 0
        self._doubted_from = None
        self.replay_welcome = False
        self._fingerprints = Fingerprints()

    def _leave(self) -> None:
        """Remember how far the life that we leave had come, so that what is late of it is not taken for news."""
        if self._life is None:
            return
        self._left[self._life] = self.expected + self.lag
        self._life = None
        if len(self._left) > _LIVES_LEFT_MAX:
            self._left.popitem(last=False)
