"""What a JetStream publisher counts beside what every publisher does. Written by its thread only."""

from dataclasses import dataclass

__all__ = ["JetStreamCounters"]


@dataclass(slots=True)
class JetStreamCounters:
    """Counts since the start. `frames_resent` were sent more than once, `duplicates_refused` of them were there."""

    connects: int = 0
    disconnects: int = 0
    frames_acknowledged: int = 0
    frames_resent: int = 0
    frames_refused: int = 0
    frames_too_large: int = 0
    duplicates_refused: int = 0
    streams_lost: int = 0
    snapshot_parts_served: int = 0
    snapshot_requests_refused: int = 0
