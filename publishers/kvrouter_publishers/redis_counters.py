"""What a Redis publisher counts beside what every publisher does. Written by its thread only."""

from dataclasses import dataclass

__all__ = ["RedisCounters"]


@dataclass(slots=True)
class RedisCounters:
    """Counts since the start.

    `frames_resent` were sent more than once, because the answer was lost or the server lost its data (`streams_lost`);
    `frames_lost` had left our memory by then. `snapshot_requests_abandoned` are those whose asker did not go on,
    `load_reports_forbidden` those that the server's rights do not allow.
    """

    connects: int = 0
    disconnects: int = 0
    frames_acknowledged: int = 0
    frames_resent: int = 0
    frames_lost: int = 0
    streams_lost: int = 0
    snapshot_requests_answered: int = 0
    snapshot_requests_abandoned: int = 0
    snapshot_parts_sent: int = 0
    load_reports_forbidden: int = 0
