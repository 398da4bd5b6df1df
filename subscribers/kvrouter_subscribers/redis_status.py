"""What is told about a Redis stream; values only."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["Mode", "StreamStatus"]

Mode = Literal["broadcast", "worker-group"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamStatus:
    """One stream, for people and metrics. Counters count since it was first read.

    `position` is the id of the last entry that was handed over. `unknown` are entries of sources that nobody follows.
    `trimmed` is how often the stream was found shortened beyond what was read. `claimed` are entries taken over from
    members of a worker group that died, `groups_removed` those of routers that died. `load_reports` were handed over;
    those that are none count as `malformed`. `name_conflicts` is how often another router was found to read as ours.
    """

    endpoint: str
    group: str
    connected: bool
    position: str
    messages: int
    unknown: int
    malformed: int
    trimmed: int
    load_reports: int
    claimed: int
    connects: int
    groups_removed: int
    name_conflicts: int
    last_error: str | None
