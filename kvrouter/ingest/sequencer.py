"""Puts one source's batches in order: each is applied once, gaps are replayed, a new life is noticed.

Sequence numbers count from 0 in each life of an engine. Our own publishers name the life (the
incarnation of `kvrouter.events.envelope`), so nothing has to be guessed: see `_receive_named`. On the
engines' own wires nothing names it. There the digest of every recent batch is kept: the same number
with the same bytes is a duplicate, with other bytes it is another life. After a reconnection nothing
is applied before the publisher has repeated our last batch, because a new life may have counted past
the old one's end; where it cannot be asked, the source is in doubt until it can.
"""

from array import array
from collections import OrderedDict
from dataclasses import dataclass
from math import inf
from typing import Final, Protocol

from xxhash import xxh3_64_intdigest

from kvrouter.events import peek_timestamp
from kvrouter.ingest.limits import IngestLimits
from kvrouter.ingest.receipts import Outcome, Receipt

__all__ = ["Feed", "Sequencer"]

_DIGESTS: Final = 4096
_CLOCK_STEP_SECONDS: Final = 1.0  # Engines stamp with the wall clock, which may be set back a little.
_LIVES_LEFT_MAX: Final = 64
_SKIPPED: Final = 0  # In place of a digest: this number was given up, whatever it carried.


class Feed(Protocol):
    """What the ordered batches are for."""

    def apply(self, payload: bytes) -> bool:
        """Apply the next batch; returns whether it could be understood."""
        ...

    def forget(self, *, restarted: bool) -> None:
        """Drop what earlier batches said: batches are lost, or another life has begun."""
        ...


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
        "_digests",
        "_doubted_from",
        "_feed",
        "_given_up_below",
        "_left",
        "_life",
        "_limits",
        "_replay",
        "_waiting",
        "_waiting_bytes",
        "_waiting_since",
        "applied",
        "duplicates",
        "expected",
        "gaps",
        "gaps_lost",
        "incarnation",
        "restarts",
    )

    def __init__(self, feed: Feed, limits: IngestLimits) -> None:
        self.expected = 0
        self.incarnation = 0
        self.applied = self.duplicates = self.gaps = self.gaps_lost = self.restarts = 0
        self._doubted_from: int | None = None  # Batches from here on may be of another life than those before.
        self._feed = feed
        self._given_up_below = 0  # Batches below were given up, which the publisher may still have.
        self._limits = limits
        self._digests = array("Q", bytes(8 * _DIGESTS))
        self._life: int | None = None  # Its incarnation, if the publisher names it.
        self._left: OrderedDict[int, int] = OrderedDict()  # Incarnations followed before: the first number unseen.
        self._replay: _Replay | None = None
        self._waiting: dict[int, bytes] = {}
        self._waiting_bytes = 0
        self._waiting_since = inf  # No batch that waits has an earlier stamp.

    @property
    def replaying(self) -> bool:
        """Whether batches were asked for and are awaited."""
        return self._replay is not None

    @property
    def unverified(self) -> bool:
        """Whether a connection was made whose publisher could not be asked if it is the one we knew."""
        return self._doubted_from is not None

    @property
    def waiting(self) -> int:
        """Batches that wait for those before them."""
        return len(self._waiting)

    @property
    def lag(self) -> int:
        """Batches known to exist after the last applied one."""
        return max(self._waiting) + 1 - self.expected if self._waiting else 0

    def connected(self) -> Receipt:
        """A connection was made. What was published before it may be missed, and the engine may be another."""
        self._forget_waiting()
        known = self._known_below()
        # What was given up for want of an answer may be had now, unless that is longer ago than our digests reach.
        again = self._given_up_below > 0 and self.expected - self._given_up_below <= _DIGESTS
        self._replay = _Replay(0 if again else max(0, known - 1), unverified=known > 0)
        return Receipt("connected", self._replay.start)

    def reset(self) -> None:
        """Forget the life that was followed; the next batch begins another."""
        self._begin_life()
        self._replay = None
        self._forget_waiting()

    def receive(self, sequence: int, payload: bytes, *, replayed: bool, incarnation: int | None = None) -> Receipt:
        """Take one batch, live or replayed, in whatever order they come; `incarnation` names the publisher's life."""
        if incarnation is not None:
            return self._receive_named(incarnation, sequence, payload, replayed=replayed)
        first_of_replay = self._begins_replay(replayed=replayed)
        if first_of_replay and sequence < self._given_up_below:
            self._begin_again()
        if sequence < self.expected:
            return self._receive_again(sequence, payload, replayed=replayed)
        replay = self._replay
        if replay is not None and replay.unverified:
            if not replayed:
                return self._wait(sequence, payload, "buffered")
            # The publisher no longer has our last batch: it cannot be told whether this is still the same life.
            self._restart(_Replay(replay.start, began=True))
        return self._receive_next(sequence, payload, replayed=replayed, first_of_replay=first_of_replay)

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
        if not self._waiting:
            return Receipt("resolved")
        # Under steady loss every replay leaves a later gap; only one that brought nothing counts against the source.
        attempts = 1 if self.expected > replay.start else replay.attempts + 1
        if complete and attempts <= self._limits.replay_attempts_max:
            self._replay = _Replay(self.expected, attempts=attempts)
            return Receipt("gap", self.expected)
        self._given_up_below = min(self._waiting)
        return Receipt(self._give_up())

    def _receive_named(self, incarnation: int, sequence: int, payload: bytes, *, replayed: bool) -> Receipt:
        """Take a batch whose life is known: within it numbers alone decide, another life starts over.

        Lives have no order of their own. What a life that we left repeats is a late duplicate; what is news of it,
        or what a replay says, is not: then it was the other one that came late.
        """
        if incarnation != self._life:
            if not replayed and sequence < self._left.get(incarnation, 0):
                self.duplicates += 1
                return Receipt("duplicate")
            if not self._follow(incarnation, replayed=replayed):
                return self._receive_first(sequence, payload)
        first_of_replay = self._begins_replay(replayed=replayed)
        if first_of_replay and sequence < self._given_up_below:
            self._begin_again()
        self._verified()
        if sequence < self.expected:
            self.duplicates += 1
            return Receipt("duplicate")
        return self._receive_next(sequence, payload, replayed=replayed, first_of_replay=first_of_replay)

    def _follow(self, incarnation: int, *, replayed: bool) -> bool:
        """Follow that life from now on; returns whether what is missing of it was asked for already, or never came."""
        replay = self._replay
        fresh = self._life is None and not self.expected
        covered = replayed and replay is not None and not replay.start
        if fresh:
            if self._waiting:  # Of a wire that names no lives: nobody can tell whether they are of this one.
                self._forget_waiting()
        else:
            self._restart(_Replay(0))
            self._forget_waiting()
        self._life = incarnation
        self._left.pop(incarnation, None)
        return fresh or covered

    def _receive_first(self, sequence: int, payload: bytes) -> Receipt:
        """Take the first batch of a new life, which need not be its number 0, and ask for those before it."""
        if sequence:
            self._wait(sequence, payload, "buffered")
        else:
            self._advance(payload)
        return Receipt("restarted", 0)

    def _begins_replay(self, *, replayed: bool) -> bool:
        replay = self._replay
        if replay is None or not replayed or replay.began:
            return False
        replay.began = True
        return True

    def _receive_next(self, sequence: int, payload: bytes, *, replayed: bool, first_of_replay: bool) -> Receipt:
        """Take a batch of the life that we follow that was not seen before."""
        if sequence > self.expected:
            if not first_of_replay:
                return self._receive_ahead(sequence, payload, replayed=replayed)
            # A replay begins with the oldest batch that is left, so the ones before are gone for good.
            self._wait(sequence, payload, "buffered")
            return Receipt(self._give_up())
        return Receipt(self._advance(payload))

    def _receive_again(self, sequence: int, payload: bytes, *, replayed: bool) -> Receipt:
        known = self._known_digest(sequence)
        if known == _digest(payload) or (known == _SKIPPED and replayed):
            self.duplicates += 1
            if known != _SKIPPED and sequence < self._known_below():
                self._verified()
            return Receipt("duplicate")
        self._restart(_Replay(0))
        self._forget_waiting()
        return self._receive_first(sequence, payload)

    def _verified(self) -> None:
        """The publisher repeated a batch that we know: it is the life that we follow."""
        self._doubted_from = None
        if self._replay is not None and self._replay.unverified:
            self._replay.unverified = False
            self._drain()

    def _receive_ahead(self, sequence: int, payload: bytes, *, replayed: bool) -> Receipt:
        if self._replay is not None or replayed:
            return self._wait(sequence, payload, "buffered")
        self.gaps += 1
        self._replay = _Replay(self.expected)
        receipt = self._wait(sequence, payload, "gap")
        return Receipt("gap", self.expected) if receipt.outcome == "gap" else receipt

    def _known_below(self) -> int:
        """Batches below this one are certainly of the life that we follow."""
        return self.expected if self._doubted_from is None else self._doubted_from

    def _known_digest(self, sequence: int) -> int | None:
        if sequence < self.expected - _DIGESTS:
            return None
        return self._digests[sequence % _DIGESTS]

    def _wait(self, sequence: int, payload: bytes, outcome: Outcome) -> Receipt:
        if sequence not in self._waiting:
            self._waiting[sequence] = payload
            self._waiting_bytes += len(payload)
            stamp = peek_timestamp(payload)
            if stamp is not None and stamp < self._waiting_since:
                self._waiting_since = stamp
        limits = self._limits
        if len(self._waiting) > limits.buffered_batches_max or self._waiting_bytes > limits.buffered_bytes_max:
            self._given_up_below = min(self._waiting)
            return Receipt(self._give_up())
        return Receipt(outcome)

    def _forget_waiting(self) -> None:
        self._waiting.clear()
        self._waiting_bytes = 0
        self._waiting_since = inf

    def _advance(self, payload: bytes) -> Outcome:
        understood = self._take(payload)
        if self._waiting and self._life is None:
            self._forget_older_than(payload)
        self._drain()
        return "applied" if understood else "quarantined"

    def _forget_older_than(self, payload: bytes) -> None:
        """Batches that wait for this one are not older than it, unless they are of an earlier life."""
        stamp = peek_timestamp(payload)
        if stamp is None or self._waiting_since >= stamp - _CLOCK_STEP_SECONDS:
            return  # Looking at each one again for every batch of a long replay would take longer than the replay.
        self._waiting_since = inf
        for sequence, waiting in list(self._waiting.items()):
            since = peek_timestamp(waiting)
            if since is not None and since < stamp - _CLOCK_STEP_SECONDS:
                self._waiting_bytes -= len(self._waiting.pop(sequence))
            elif since is not None and since < self._waiting_since:
                self._waiting_since = since

    def _take(self, payload: bytes) -> bool:
        """Apply one batch. The cursor moves even past one that nobody understands, or nothing would ever follow it."""
        if self._life is None:
            self._digests[self.expected % _DIGESTS] = _digest(payload)
        self.expected += 1
        self.applied += 1
        return self._feed.apply(payload)

    def _drain(self) -> None:
        if self._replay is not None and self._replay.unverified:
            return
        waiting = self._waiting
        while waiting:
            payload = waiting.pop(self.expected, None)
            if payload is None:
                return
            self._waiting_bytes -= len(payload)
            self._take(payload)

    def _give_up(self) -> Outcome:
        """Go on without what is missing. A removal may be among it, so nothing that was known can be kept."""
        lowest = min(self._waiting)
        if self.expected:
            self.gaps_lost += 1
            self._doubted_from = None
            self._feed.forget(restarted=False)
        for skipped in range(max(self.expected, lowest - _DIGESTS), lowest):
            self._digests[skipped % _DIGESTS] = _SKIPPED
        self.expected = lowest
        if self._replay is not None:
            self._replay.unverified = False
        self._drain()
        return "applied"

    def _begin_again(self) -> None:
        """The publisher has what was given up after all: follow its life anew, from the beginning of this replay."""
        assert self._replay is not None
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
        self._digests = array("Q", bytes(8 * _DIGESTS))

    def _leave(self) -> None:
        """Remember how far the life that we leave had come, so that what is late of it is not taken for news."""
        if self._life is None:
            return
        self._left[self._life] = self.expected + self.lag
        self._life = None
        if len(self._left) > _LIVES_LEFT_MAX:
            self._left.popitem(last=False)


def _digest(payload: bytes) -> int:
    return int(xxh3_64_intdigest(payload)) or 1
