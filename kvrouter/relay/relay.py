"""Takes what engines publish and publishes it again, over any transport and with all that ours guarantee.

Batches are put in order and taken once, as `kvrouter.ingest` does it, before they go on: what leaves here has no gaps,
names its life, and can be had as a snapshot. Where the engine begins another life, or batches of it are lost for good,
the publisher begins another life as well, because nobody can say what of the old one is still true.
"""

import logging
import time
from collections.abc import Callable, Sequence

from kvrouter.errors import KvrouterError, WireError
from kvrouter.events import Event, Source, decode_batch
from kvrouter.ingest import IngestLimits
from kvrouter.ingest.hash_only import HashOnly
from kvrouter.ingest.receipts import Receipt
from kvrouter.ingest.sequencer import Sequencer
from kvrouter.ingest.waiting import Batch, DigestRows
from kvrouter_publishers import EventPublisher

__all__ = ["MakePublisher", "Relay", "RelayedSource"]

OPEN_SECONDS = 0.5
"""Pause before an address is tried again that could not be had; doubled by each further failure."""
OPEN_SECONDS_MAX = 30.0

_log = logging.getLogger("kvrouter.relay")

MakePublisher = Callable[[Source], EventPublisher]
"""Opens a publisher for one source; called again for each further life of it, at the same address."""

_UNKNOWN_SOURCE = Receipt("unknown_source")
_DEFAULT_LIMITS = IngestLimits()


class RelayedSource:
    """One source on its way through: events in order, into a publisher that is opened with the first of them."""

    def __init__(
        self,
        source: Source,
        make: MakePublisher,
        *,
        hash_only: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.source = source
        self.batches = self.events = self.quarantined = self.lives = 0
        self.open_failures = self.events_lost = 0
        self.incomplete = False
        """Whether a life could not be begun: once one can, the source's whole state is wanted."""
        self.skipped: dict[str, int] = {}
        self._make, self._clock = make, clock
        self._hashes = HashOnly() if hash_only else None
        self._publisher: EventPublisher | None = None
        self._open_at, self._pause = 0.0, OPEN_SECONDS

    @property
    def is_open(self) -> bool:
        """Whether there is a publisher now."""
        return self._publisher is not None

    def publish(self, events: Sequence[Event]) -> None:
        """Pass one step on. While no publisher can be opened, what is lost is counted."""
        publisher = self._publisher or self._reopened()
        if publisher is None:
            self.events_lost += len(events)
            return
        self.batches += 1
        self.events += len(events)
        publisher.publish(self._hashes.rewrite(events) if self._hashes is not None else events)

    def begin(self) -> None:
        """Begin a life, in which nothing is cached yet. Raises what opening a publisher raises."""
        self.close()
        if self._hashes is not None:
            self._hashes.restart()
        self._publisher = self._make(self.source)
        self.lives += 1

    def restart(self) -> bool:
        """Begin another life; returns False if its address cannot be had now. It is tried again with later events."""
        try:
            self.begin()
        except (KvrouterError, OSError) as error:
            self.open_failures += 1
            self.incomplete = True
            _log.warning("%s cannot be published, tried again in %g s: %s", self.source, self._pause, error)
            self._open_at = self._clock() + self._pause
            self._pause = min(2 * self._pause, OPEN_SECONDS_MAX)
            return False
        self._pause = OPEN_SECONDS
        return True

    def close(self) -> None:
        """Send what waits, and stop."""
        publisher, self._publisher = self._publisher, None
        if publisher is not None:
            publisher.close()

    def _reopened(self) -> EventPublisher | None:
        return self._publisher if self._clock() >= self._open_at and self.restart() else None

    def statistics(self) -> dict[str, int]:
        """Return what was relayed, and what the publisher counts of it in its present life."""
        counts = {
            "batches": self.batches,
            "events": self.events,
            "quarantined": self.quarantined,
            "lives": self.lives,
            "open_failures": self.open_failures,
            "events_lost": self.events_lost,
            "skipped": sum(self.skipped.values()),
        }
        if self._hashes is not None:
            counts["untold_blocks"] = self._hashes.untold_blocks
        if self._publisher is not None:
            counts |= {f"published_{name}": count for name, count in self._publisher.statistics().items()}
        return counts


class _Ordered:
    """The feed of a sequencer: what it calls in order goes to the relayed source."""

    def __init__(self, relayed: RelayedSource, limits: IngestLimits) -> None:
        self.relayed = relayed
        self.sequencer = Sequencer(self, limits)
        self.snapshot_wanted = False

    def apply(self, payload: bytes) -> bool:
        """Pass the next batch on; one that nobody understands may have removed anything."""
        relayed = self.relayed
        try:
            batch = decode_batch(payload)
        except WireError as error:
            relayed.quarantined += 1
            _log.warning("batch %d of %s was not understood: %s", self.sequencer.expected - 1, relayed.source, error)
            self._lose()
            return False
        for reason, count in batch.skipped.items():
            relayed.skipped[reason] = relayed.skipped.get(reason, 0) + count
        relayed.publish(batch.events)
        return True

    def forget(self, *, restarted: bool) -> None:  # noqa: ARG002 - the feed's signature
        """Nothing that was passed on can be relied on."""
        self.relayed.restart()

    def miss(self) -> None:
        """What is missing makes the source hold more than is known, which a snapshot mends."""
        self.snapshot_wanted = True

    def compare(self, digest: DigestRows) -> None:
        """The publisher makes its own digests; consumers compare those."""

    def _lose(self) -> None:
        self.relayed.restart()
        self.snapshot_wanted = True


class Relay:
    """An event sink (`kvrouter_subscribers.EventSink`) that publishes what it takes. Lives on one event loop.

    Args:
        make: opens the publisher of a source.
        hash_only: leave tokens out (docs/wire.md).
        limits: bounds on what waits for missing batches.
        clock: steady seconds, for pauses before an address is tried again.
    """

    def __init__(
        self,
        make: MakePublisher,
        *,
        hash_only: bool = False,
        limits: IngestLimits = _DEFAULT_LIMITS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._make, self._hash_only, self._limits, self._clock = make, hash_only, limits, clock
        self._sources: dict[Source, _Ordered] = {}

    def open(self, source: Source) -> None:
        """Begin to relay a source; its publisher is opened at once, so that a wrong address shows."""
        relayed = RelayedSource(source, self._make, hash_only=self._hash_only, clock=self._clock)
        relayed.begin()
        self._sources[source] = _Ordered(relayed, self._limits)

    def close(self) -> None:
        """Send what waits, and stop."""
        for ordered in self._sources.values():
            ordered.relayed.close()

    def statistics(self) -> dict[Source, dict[str, int]]:
        """Return counters per source: what came, and what went on."""
        return {source: self._counts(ordered) for source, ordered in self._sources.items()}

    def connected(self, source: Source, *, now: float) -> Receipt:  # noqa: ARG002 - the sink's signature
        """Ask for what was published before."""
        ordered = self._sources.get(source)
        return _UNKNOWN_SOURCE if ordered is None else ordered.sequencer.connected()

    def disconnected(self, source: Source, *, now: float) -> None:
        """A stopped process keeps its cache: nothing follows from it."""

    def receive(
        self,
        source: Source,
        sequence: int,
        payload: bytes,
        *,
        now: float,  # noqa: ARG002 - as above
        replayed: bool = False,
        incarnation: int | None = None,
        digest: DigestRows | None = None,
    ) -> Receipt:
        """Take one batch."""
        ordered = self._sources.get(source)
        if ordered is None:
            return _UNKNOWN_SOURCE
        batch = Batch(payload, digest)
        return self._answer(
            ordered, ordered.sequencer.receive(sequence, batch, replayed=replayed, incarnation=incarnation)
        )

    def replay_finished(self, source: Source, *, now: float, complete: bool) -> Receipt:  # noqa: ARG002 - as above
        """Close a replay."""
        ordered = self._sources.get(source)
        if ordered is None:
            return _UNKNOWN_SOURCE
        return self._answer(ordered, ordered.sequencer.replay_finished(complete=complete))

    def snapshot(
        self,
        source: Source,
        batches: Sequence[bytes],
        *,
        sequence: int,
        incarnation: int | None,
        now: float,  # noqa: ARG002 - as above
    ) -> Receipt:
        """Begin another life with the whole state of a source, if it is news."""
        ordered = self._sources.get(source)
        if ordered is None:
            return _UNKNOWN_SOURCE
        sequencer = ordered.sequencer
        outcome = sequencer.judge(sequence, incarnation, kept_from=sequencer.expected)
        if outcome == "duplicate":
            return Receipt("duplicate")
        try:
            parts = [decode_batch(batch) for batch in batches]
        except WireError as error:
            ordered.relayed.quarantined += 1
            _log.warning("a snapshot of %s was not understood: %s", source, error)
            return Receipt("quarantined")
        if not ordered.relayed.restart():
            return Receipt("quarantined", snapshot_wanted=True)
        ordered.relayed.incomplete = False
        for part in parts:
            ordered.relayed.publish(part.events)
        stamp = parts[0].timestamp if parts else None
        return self._answer(
            ordered, sequencer.jump(sequence, incarnation, stamp or None, restarted=outcome == "restarted")
        )

    def snapshot_failed(self, source: Source, *, now: float) -> None:
        """Go on with what is known: it is less than there is, never more."""

    def _answer(self, ordered: _Ordered, receipt: Receipt) -> Receipt:
        relayed = ordered.relayed
        if relayed.incomplete and relayed.is_open:
            relayed.incomplete, ordered.snapshot_wanted = False, True
        if not ordered.snapshot_wanted:
            return receipt
        ordered.snapshot_wanted = False
        return Receipt(receipt.outcome, receipt.replay_from, snapshot_wanted=True)

    def _counts(self, ordered: _Ordered) -> dict[str, int]:
        sequencer = ordered.sequencer
        return {
            **ordered.relayed.statistics(),
            "gaps": sequencer.gaps,
            "gaps_lost": sequencer.gaps_lost,
            "duplicates": sequencer.duplicates,
            "restarts": sequencer.restarts,
        }
