"""One source as ingest follows it: its cursor, its rank's cache, and what went wrong.

`sequencer` says which batch comes next and `rank_cache` what it means; here they meet, and here it is decided whether
what is known can be believed. Where it cannot, or is known to be not all, the publisher's snapshot is wanted.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from kvrouter.errors import WireError
from kvrouter.events import Source, decode_batch
from kvrouter.index import PrefixIndex
from kvrouter.ingest.digests import agrees
from kvrouter.ingest.limits import IngestLimits
from kvrouter.ingest.lookup import Lookup
from kvrouter.ingest.rank_cache import RankCache
from kvrouter.ingest.receipts import Receipt, SourceState, SourceStatus
from kvrouter.ingest.sequencer import Sequencer
from kvrouter.ingest.waiting import DigestRows, Journal

__all__ = ["Followed"]

_HARMLESS = frozenset(["unknown_field"])  # What a decoder skips without losing an event.
_BROKEN_OFF: Final = "a batch was applied in part"
_RETRY_SECONDS: Final = 30.0
_RETRY_SECONDS_MAX: Final = 3600.0


class Followed:
    """The `Feed` of its own sequencer.

    `doubt` says why something that is believed may be wrong, None if nothing speaks against it. `incomplete` says
    that blocks may be held which we were never told of: that only costs hits. `starved` says that this is so because
    of the bound on memory; from `retry_at` on they may be asked for, if there is room.
    """

    def __init__(
        self,
        source: Source,
        cache: RankCache,
        *,
        index: PrefixIndex,
        lookup: Lookup,
        limits: IngestLimits,
        drain_bytes: int | None = None,
    ) -> None:
        self.source = source
        self.cache = cache
        self.sequencer = Sequencer(self, limits, drain_bytes=drain_bytes)
        self.now = 0.0
        self.connected: bool | None = None  # None: nobody ever told, as where batches come from a file.
        self.announced_rank: int | None = None
        self.adapters: dict[int, str] = {}
        self.doubt: str | None = None
        self.incomplete = False
        self.restored = False  # Whether all that is known comes from a saved state, and nobody confirmed it yet.
        self.last_error: str | None = None
        self.counts: Counter[str] = Counter()
        """By the names of `SourceStatus`."""
        self.skipped: dict[str, int] = {}
        self.settle: Callable[[], object] | None = None
        """Draws conclusions from what the bound on memory has cost; None where there is none."""
        self.starved = False
        self.retry_at = float("-inf")
        self._retry_seconds = _RETRY_SECONDS
        self._asking = False  # Whether the next receipt shall ask for a snapshot.
        self._asking_replay = False  # Whether it shall ask for all batches.
        self._journal: Journal | None = None  # Of what was applied since a snapshot was wanted; there while one is.
        self._wanted_since = 0.0
        self._last_event_at: float | None = None
        self._index, self._limits, self._lookup = index, limits, lookup
        self._disproved = False  # Whether the doubt is a proof.
        self._hearsay = False  # Whether the doubt is somebody else's.
        self._miscounted = False  # Whether copies may be miscounted, of which no digest tells.
        self._broken_off = False  # Whether something was applied in part, and nothing was asked for since.

    @property
    def awaiting(self) -> bool:
        """Whether a snapshot is wanted, and neither came nor failed."""
        return self._journal is not None

    def apply(self, payload: bytes) -> bool:
        """Apply the next batch in order."""
        self._last_event_at = self.now
        sequence = self.sequencer.expected - 1
        if self._journal is not None:
            self._journal.add(sequence, payload)
        try:
            applied = self.cache.apply_payload(payload)
        except WireError as error:
            self.counts["quarantined"] += 1
            self.last_error = f"batch {sequence}: {error}"
            self._miscounted = True
            self.suspect("a batch was not understood")  # It may have removed blocks that we go on believing in.
            return False
        self.announced_rank = applied.announced_rank
        if applied.skipped:
            for reason, count in applied.skipped.items():
                self.skipped[reason] = self.skipped.get(reason, 0) + count
        if self.doubt and applied.cleared:
            self._cleared()
        if applied.changed:
            self._lookup.place(self.cache)
        return True

    def take_run(self, payloads: Sequence[bytes]) -> tuple[int, bool]:
        """Apply the batches that come next, while nothing is awaited, up to one that is not understood.

        Returns how many, with that one, and whether all are understood.
        """
        sequencer = self.sequencer
        try:
            taken, announced_rank = self.cache.apply_plain(payloads)
        except BaseException:
            sequencer.took(payloads[: self.cache.begun])  # What was applied must not be applied again.
            raise
        if taken:
            self._last_event_at, self.announced_rank = self.now, announced_rank
            sequencer.took(payloads if taken == len(payloads) else payloads[:taken])
        if taken == len(payloads):
            return taken, True
        return taken + 1, sequencer.take_next(payloads[taken])

    def forget(self, *, restarted: bool) -> None:
        """Drop what earlier batches said."""
        self._trust()
        self.incomplete = self.restored = self._miscounted = self.starved = False
        self._want_no_more()
        if restarted:
            self.cache.restart()
            self._lookup.place(self.cache)
        else:
            self.cache.drop()

    def miss(self) -> None:
        """Batches are lost for good: the publisher may hold blocks that we do not know of."""
        self.incomplete = True
        self.want()

    def starve(self) -> None:
        """Blocks were not noted for want of memory. It is tried again later, and later still if that was in vain."""
        self.incomplete = True
        if not self.starved:
            self.starved = True
            calm = self.now - self.retry_at > _RETRY_SECONDS_MAX
            self._retry_seconds = _RETRY_SECONDS if calm else min(2 * self._retry_seconds, _RETRY_SECONDS_MAX)
            self.retry_at = self.now + self._retry_seconds

    def give_up(self) -> None:
        """The index has forgotten the rank to make room: so does all the rest, and nothing is left to be doubted."""
        self._trust()
        self.cache.drop()
        self._miscounted = False
        self.starve()

    def seek_room(self, *, has_room: bool) -> bool:
        """Ask for all that is held, if there is room for it; returns whether."""
        sequencer = self.sequencer
        if sequencer.replaying or (self.awaiting and sequencer.names_lives):
            return False
        if not has_room:
            self.retry_at = self.now + _RETRY_SECONDS
            return False
        self._retry_seconds = min(2 * self._retry_seconds, _RETRY_SECONDS_MAX)
        self.retry_at = self.now + self._retry_seconds
        if sequencer.names_lives:
            self.want()
        else:  # An engine's own wire: it may still have all of its batches.
            sequencer.replay_welcome = self._asking_replay = True
        return True

    def compare(self, digest: DigestRows) -> None:
        """Compare what is believed with what the publisher says."""
        if self.settle is not None:
            self.settle()
        if agrees(self.cache, digest):
            self.counts["digests_matched"] += 1
            # It tells neither how many copies there are, nor what the blocks are.
            if not self._miscounted:
                self._trust()
            if self.incomplete or self._miscounted:
                self.want()
            else:
                self._want_no_more()
        elif self.incomplete:
            self.want()  # No news: less is known than there is.
        else:
            self.counts["digest_mismatches"] += 1
            self.last_error = f"batch {self.sequencer.expected - 1}: its digest is not that of the blocks believed in"
            self.suspect(self.last_error)
            self._disproved = True

    def suspect(self, reason: str) -> None:
        """Doubt what is believed, and want the truth."""
        self.doubt, self._hearsay = reason, False
        self.sequencer.replay_welcome = True
        self.want()

    def break_off(self) -> None:
        """Doubt everything: what was to be applied was applied in part. Needs no memory, of which there may be none."""
        self.doubt = self.last_error = _BROKEN_OFF
        self._hearsay, self._miscounted, self._broken_off = False, True, True

    def hear_doubt(self, reason: str) -> None:
        """Doubt for a reason that the events do not show; one that they show says more."""
        if self.doubt is None:
            self.suspect(reason)
            self._hearsay = True

    def hear_trust(self) -> None:
        """What was heard is not so any more."""
        if self._hearsay:
            self._trust()
            if not self.incomplete:
                self._want_no_more()

    def want(self) -> None:
        """Want a snapshot, if none is awaited already."""
        if self._journal is None:
            self._journal = Journal(self._limits, self.sequencer.expected)
            self._wanted_since = self.now
            self._asking = True

    def want_again(self) -> None:
        """A connection is new: what was asked over the last one will not be answered."""
        self._want_no_more()
        if self.doubt or self.incomplete or self._miscounted:
            self.want()

    def answer(self, receipt: Receipt) -> Receipt:
        """Add to a receipt what else is wanted."""
        if self._asking_replay:
            self._asking_replay = False
            if receipt.replay_from is None:
                receipt = replace(receipt, replay_from=0)
        if not self._asking:
            return receipt
        self._asking = False
        return replace(receipt, snapshot_wanted=True)

    def snapshot(self, batches: Sequence[bytes], *, sequence: int, incarnation: int | None) -> Receipt:
        """Take the publisher's whole state after batch `sequence` in place of what is known."""
        sequencer, journal = self.sequencer, self._journal
        kept_from = sequencer.expected if journal is None else min(journal.start, sequencer.expected)
        outcome = sequencer.judge(sequence, incarnation, kept_from=kept_from)
        if outcome == "duplicate":
            sequencer.duplicates += 1
            self._asking = self.awaiting
            return Receipt("duplicate")
        try:
            stamp = _check(batches)
        except WireError as error:
            self.counts["snapshots_refused"] += 1
            self.last_error = f"snapshot after batch {sequence}: {error}"
            self.go_without()
            return Receipt("quarantined")
        restarted = outcome == "restarted"
        newer = [] if journal is None or restarted else list(journal.after(sequence))
        self._last_event_at = self.now
        self.counts["snapshots_applied"] += 1
        self._want_no_more()
        self._trust()
        self.incomplete = self.restored = self._miscounted = self.starved = False
        self._rebuild(batches, newer, restarted=restarted)
        return sequencer.jump(sequence, incarnation, stamp, restarted=restarted)

    def go_without(self) -> None:
        """A snapshot that is wanted cannot be had: what is known to be wrong is dropped, as after a lost gap."""
        if self._journal is None:
            return
        self._want_no_more()
        if self._disproved:
            self._trust()
            self.cache.drop()
            self._miscounted, self.incomplete = False, True

    def expire(self) -> None:
        """Wait no longer for a snapshot that was wanted long ago; want one for what could not be finished."""
        if self._broken_off:
            self._broken_off = False
            self.suspect(_BROKEN_OFF)
        if self._journal is not None and self.now - self._wanted_since > self._limits.snapshot_seconds_max:
            self.counts["snapshots_missed"] += 1
            self.go_without()

    def name_adapter(self, lora_id: int, name: str) -> None:
        """Say which adapter an engine means that sends numbers instead of names."""
        self.adapters[lora_id] = name
        self.cache.name_adapter(lora_id, name)

    def state(self) -> SourceState:
        """Say the worst that is true."""
        sequencer = self.sequencer
        if not self.connected and not sequencer.applied and not self.restored and not self.counts["snapshots_applied"]:
            return "predicted"
        if self.connected is False or self.doubt or sequencer.unverified:
            return "suspect"
        # Where lives have names there are snapshots to come; on an engine's own wire nobody may have any.
        waits = self.awaiting and sequencer.names_lives
        return "replaying" if sequencer.replaying or sequencer.backlog or waits else "live"

    def status(self, now: float) -> SourceStatus:
        """Everything that people and metrics may want to know."""
        sequencer, cache, counts = self.sequencer, self.cache, self.counts
        shape = cache.profile.shape
        return SourceStatus(
            worker_id=self.source.worker_id,
            rank=self.source.rank,
            announced_rank=self.announced_rank,
            dense_rank=cache.rank,
            state=self.state(),
            connected=bool(self.connected),
            incarnation=sequencer.incarnation,
            block_size=shape.unit * shape.stride,
            blocks=self._index.blocks(cache.rank, "gpu"),
            applied_sequence=sequencer.expected - 1 if sequencer.expected else None,
            applied_batches=sequencer.applied,
            lag=sequencer.lag,
            gaps=sequencer.gaps,
            gaps_lost=sequencer.gaps_lost,
            duplicates=sequencer.duplicates,
            restarts=sequencer.restarts,
            quarantined=counts["quarantined"],
            snapshot_awaited=self.awaiting,
            incomplete=self.incomplete,
            starved=self.starved,
            doubt=self.doubt,
            snapshots_applied=counts["snapshots_applied"],
            snapshots_refused=counts["snapshots_refused"],
            snapshots_missed=counts["snapshots_missed"],
            digests_matched=counts["digests_matched"],
            digest_mismatches=counts["digest_mismatches"],
            orphans=cache.orphans,
            orphans_dropped=cache.orphans_dropped,
            unresolved=cache.unresolved,
            unresolved_dropped=cache.unresolved_dropped,
            buffered_batches=sequencer.waiting,
            skipped=dict(self.skipped),
            ignored=dict(cache.ignored),
            last_event_age=None if self._last_event_at is None else max(0.0, now - self._last_event_at),
            last_error=self.last_error,
        )

    def _cleared(self) -> None:
        """The engine reset its cache; what it keeps on the host may still be miscounted."""
        if self._miscounted and any(tier != "gpu" for tier, _ in self.cache.copies()):
            return
        self._miscounted = False
        self._trust()
        if not self.incomplete:
            self._want_no_more()

    def _trust(self) -> None:
        self.doubt = None
        self._disproved = self._hearsay = self._broken_off = self.sequencer.replay_welcome = False

    def _want_no_more(self) -> None:
        self._journal = None
        self._asking = False

    def _rebuild(self, parts: Sequence[bytes], newer: Sequence[bytes], *, restarted: bool) -> None:
        """Make the cache what a snapshot and the batches after it say; nobody can look at the index meanwhile."""
        if restarted:
            self.cache.restart()
        else:
            self.cache.drop()
        for payload in parts:
            self.cache.apply_payload(payload)
        for payload in newer:
            try:
                self.cache.apply_payload(payload)
            except WireError:
                self._miscounted = True
                self.suspect("a batch was not understood")
        self._lookup.place(self.cache)


def _check(batches: Sequence[bytes]) -> float | None:
    """Look at all of a snapshot before any of it is applied: one that lacks an event is none. Returns when it was made.

    Raises:
        WireError: it cannot be used.
    """
    stamps = []
    for payload in batches:
        part = decode_batch(payload)
        if part.skipped.keys() - _HARMLESS:
            raise WireError(f"events that are not understood: {', '.join(part.skipped)}", reason="bad_snapshot")
        stamps.append(part.timestamp)
    if not stamps:
        raise WireError("a snapshot without a part", reason="bad_snapshot")
    return stamps[0] or None
