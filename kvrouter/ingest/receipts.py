"""What ingest answers and reports: receipts for what arrived, the state of every source."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from kvrouter.events import Source

__all__ = ["Outcome", "Receipt", "RestoreReport", "SourceState", "SourceStatus"]

Outcome = Literal[
    "applied", "duplicate", "gap", "restarted", "quarantined", "buffered", "connected", "resolved", "unknown_source"
]

SourceState = Literal["live", "replaying", "suspect", "predicted"]
"""How far the index can be trusted about a rank.

`live`: it follows the events. `replaying`: batches, or a snapshot, are missing and were asked for. `suspect`: something
may be wrong that a replay cannot tell. `predicted`: no event ever came, all there is are the router's own guesses.
"""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of something that arrived.

    With `replay_from`, batches from there on are wanted; with `snapshot_wanted`, the publisher's whole state.
    """

    outcome: Outcome
    replay_from: int | None = None
    snapshot_wanted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreReport:
    """What became of a saved state. `skipped` are not open, or had told us something themselves already.

    `blocks` are counted once in every tier and group that has a copy.
    """

    restored: tuple[Source, ...]
    skipped: tuple[Source, ...]
    blocks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceStatus:
    """One source. Counters count since it was opened; `applied_sequence` is None before the first batch.

    `lag` is how many batches are known to exist beyond the applied ones. `gaps_lost` are gaps that could not be
    filled, so that the rank's blocks were forgotten. `incomplete`: since then, or since it was joined late, the rank
    may hold more than is known; `starved`: because of the bound on memory. `doubt` says why less may be held, None if
    nothing speaks for it. `snapshots_missed` were wanted and could not be had; `snapshots_refused` could not be used.
    `digests_matched` confirmed the belief, `digest_mismatches` disproved it. `orphans` wait for their parent,
    `unresolved` for their tokens.
    `announced_rank` is the data-parallel rank that the last batch named, None if it named none: where a worker has
    several ranks and this is not `rank`, their endpoints are mixed up.
    """

    worker_id: str
    rank: int
    announced_rank: int | None
    dense_rank: int
    state: SourceState
    connected: bool
    incarnation: int
    block_size: int
    blocks: int
    applied_sequence: int | None
    applied_batches: int
    lag: int
    gaps: int
    gaps_lost: int
    duplicates: int
    restarts: int
    quarantined: int
    snapshot_awaited: bool
    incomplete: bool
    starved: bool
    doubt: str | None
    snapshots_applied: int
    snapshots_refused: int
    snapshots_missed: int
    digests_matched: int
    digest_mismatches: int
    orphans: int
    orphans_dropped: int
    unresolved: int
    unresolved_dropped: int
    buffered_batches: int
    skipped: Mapping[str, int]
    ignored: Mapping[str, int]
    last_event_age: float | None
    last_error: str | None
