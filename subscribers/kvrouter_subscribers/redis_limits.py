"""The bounds of a Redis subscriber, as values; nothing here opens a connection."""

from dataclasses import dataclass

__all__ = ["RedisLimits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisLimits:
    """The bounds of a Redis subscriber, per (server, stream) where nothing else is said."""

    read_entries: int = 500
    """Entries that are asked for at once."""
    read_bytes_max: int = 16 << 20
    """About how many bytes these may have: of large entries fewer are asked for."""
    block_seconds: float = 1.0
    """How long the server waits for an entry before it says that there is none."""
    turn_seconds: float = 0.001
    """How long events are handed over before other work of the event loop gets its turn."""
    request_seconds: float = 5.0
    """How long the server may take for an answer, and a publisher for the next part of a snapshot."""
    reconnect_seconds: float = 0.1
    """Pause after a lost connection; doubled by each further failure."""
    reconnect_seconds_max: float = 2.0
    lease_seconds: float = 10.0
    """A router that was not heard of for so long gives its group up to another one of the same name."""
    leave_seconds: float = 0.5
    """A server may take so long to hear that we go; one that does not answer finds out by itself."""
    inactive_seconds: float = 300.0
    """The group of a router that was not heard of for so long is removed by the others."""
    sweep_seconds: float = 60.0
    """How often that is looked for."""
    claim_seconds: float = 30.0
    """In a worker group: what a member was given and has not acknowledged for so long is taken over."""
    history_entries_max: int = 1_000_000
    """A stream is not read again over more entries than this; the publisher's snapshot is asked for instead."""
    snapshots_max: int = 8
    """Snapshots in progress at once, over all sources."""
    snapshot_attempts: int = 3
    snapshot_bytes_max: int = 512 << 20
    recovery_pause_seconds: float = 0.25
    """Pause before the sink's next wish when the last one brought nothing; doubled by each further one."""
    recovery_pause_seconds_max: float = 30.0
