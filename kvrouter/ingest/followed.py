"""One source as ingest follows it: its cursor, its rank's cache, and what went wrong.

`sequencer` says which batch comes next and `rank_cache` what it means; here they meet.
"""

from kvrouter.errors import WireError
from kvrouter.events import AllBlocksCleared, Source, decode_batch
from kvrouter.index import PrefixIndex
from kvrouter.ingest.limits import IngestLimits
from kvrouter.ingest.lookup import Lookup
from kvrouter.ingest.rank_cache import RankCache
from kvrouter.ingest.receipts import SourceState, SourceStatus
from kvrouter.ingest.sequencer import Sequencer

__all__ = ["Followed"]


class Followed:
    """The `Feed` of its own sequencer."""

    def __init__(self, source: Source, cache: RankCache, lookup: Lookup, limits: IngestLimits) -> None:
        self.source = source
        self.cache = cache
        self.sequencer = Sequencer(self, limits)
        self.now = 0.0
        self.connected: bool | None = None  # None: nobody ever told, as where batches come from a file.
        self.announced_rank: int | None = None
        self.quarantined = 0
        self.skipped: dict[str, int] = {}
        self.last_error: str | None = None
        self._doubtful = False
        self._last_event_at: float | None = None
        self._lookup = lookup

    def apply(self, payload: bytes) -> bool:
        """Apply the next batch in order."""
        self._last_event_at = self.now
        try:
            batch = decode_batch(payload)
        except WireError as error:
            self.quarantined += 1
            self.last_error = f"batch {self.sequencer.expected - 1}: {error}"
            self._doubtful = True  # It may have removed blocks that we go on believing in.
            return False
        self.announced_rank = batch.data_parallel_rank
        for reason, count in batch.skipped.items():
            self.skipped[reason] = self.skipped.get(reason, 0) + count
        if self._doubtful and any(isinstance(event, AllBlocksCleared) for event in batch.events):
            self._doubtful = False
        if self.cache.apply(batch.events):
            self._lookup.place(self.cache)
        return True

    def forget(self, *, restarted: bool) -> None:
        """Drop what earlier batches said."""
        self._doubtful = False
        if restarted:
            self.cache.restart()
            self._lookup.place(self.cache)
        else:
            self.cache.drop()

    def state(self) -> SourceState:
        """Say the worst that is true."""
        sequencer = self.sequencer
        if not self.connected and not sequencer.applied:
            return "predicted"
        if self.connected is False or self._doubtful or sequencer.unverified:
            return "suspect"
        return "replaying" if sequencer.replaying else "live"

    def status(self, index: PrefixIndex, now: float) -> SourceStatus:
        """Everything that people and metrics may want to know."""
        sequencer, cache = self.sequencer, self.cache
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
            blocks=index.blocks(cache.rank, "gpu"),
            applied_sequence=sequencer.expected - 1 if sequencer.expected else None,
            applied_batches=sequencer.applied,
            lag=sequencer.lag,
            gaps=sequencer.gaps,
            gaps_lost=sequencer.gaps_lost,
            duplicates=sequencer.duplicates,
            restarts=sequencer.restarts,
            quarantined=self.quarantined,
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
