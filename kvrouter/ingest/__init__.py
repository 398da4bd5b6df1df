"""Batches in, index mutations out: idempotence, gaps, orphans, source states; and what a rank can use of a prompt.

Pure: no sockets, no clocks. `Ingest` is the whole interface.
"""

from kvrouter.ingest.ingest import Ingest
from kvrouter.ingest.limits import IngestLimits
from kvrouter.ingest.lookup import TierOverlap
from kvrouter.ingest.receipts import Outcome, Receipt, RestoreReport, SourceState, SourceStatus

__all__ = [
    "Ingest",
    "IngestLimits",
    "Outcome",
    "Receipt",
    "RestoreReport",
    "SourceState",
    "SourceStatus",
    "TierOverlap",
]
