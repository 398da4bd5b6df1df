"""What a publisher counts. Each number is written by one thread only, so none needs a lock."""

from dataclasses import dataclass

__all__ = ["Counters"]


@dataclass(slots=True)
class Counters:
    """Counts since the start, in the order in which `statistics()` shows them."""

    batches_published: int = 0
    events_published: int = 0
    bytes_published: int = 0
    compactions: int = 0
    batches_compacted: int = 0
    events_dropped_unencodable: int = 0
    events_dropped_not_running: int = 0
    events_dropped_forked: int = 0
    losses_announced: int = 0
    digests_published: int = 0
    snapshots_taken: int = 0
    replays_served: int = 0
    replays_abandoned: int = 0
    replays_refused: int = 0
    replay_batches_sent: int = 0
    replay_requests_ignored: int = 0
    load_reports_sent: int = 0
    load_reports_refused: int = 0
    crashes: int = 0
