"""The bounds of an HTTP subscriber, as values; nothing here opens a socket."""

from dataclasses import dataclass

__all__ = ["HttpLimits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """The bounds of an HTTP subscriber."""

    poll_seconds: float = 20.0
    """How long a publisher is asked to keep a poll that has nothing to say."""
    grace_seconds: float = 10.0
    """An answer must begin so soon after it was due, and go on so soon; else the peer is gone or half open."""
    connect_seconds: float = 5.0
    head_bytes_max: int = 16 * 1024
    answer_bytes_max: int = 80 << 20
    """Longer answers end the connection. It leaves room for one batch of the largest size."""
    snapshot_bytes_max: int = 1 << 30
    snapshot_seconds: float = 30.0
    """A publisher may take so long to begin with a snapshot: it walks over its whole cache first."""
    snapshot_attempts: int = 3
    """Attempts before the sink is told that a snapshot cannot be had."""
    retry_pause_seconds: float = 0.25
    """Pause before a replay or snapshot that follows a vain one; doubled by each further one."""
    retry_pause_seconds_max: float = 30.0
    reconnect_seconds: float = 0.1
    """Pause before the second attempt to connect; doubled by each further one, and then varied by up to a half."""
    reconnect_seconds_max: float = 2.0
    turn_seconds: float = 0.001
    """How long events are handed over before other work of the event loop gets its turn."""
    load_seconds: float = 1.0
    """How often a load report is asked for, where somebody wants it; ten times more seldom where there is none."""
