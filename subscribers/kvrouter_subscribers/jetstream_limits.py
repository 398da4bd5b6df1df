"""The bounds of a JetStream subscriber, as values; nothing here opens a connection."""

from dataclasses import dataclass

__all__ = ["JetStreamLimits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JetStreamLimits:
    """The bounds of a JetStream subscriber, per (server, stream) where nothing else is said."""

    fetch_messages: int = 500
    """Messages that the server may send ahead of us."""
    fetch_bytes_max: int = 64 << 20
    """Bytes of them; a stream's largest message must fit."""
    turn_seconds: float = 0.001
    """How long events are read before other work of the event loop gets its turn."""
    acknowledge_messages: int = 100
    """Messages that one acknowledgement may cover; the last one that is there is always acknowledged at once."""
    ack_wait_seconds: float = 30.0
    """The server delivers a message again that was not acknowledged for so long."""
    unacknowledged_messages_max: int = 10_000
    inactive_seconds: float = 300.0
    """The server forgets a consumer that nobody used for so long; until then it holds back a purge."""
    takeover_seconds: float = 1.0
    """A consumer of our name that another process made is ours if nobody read with it for so long."""
    heartbeat_seconds: float = 5.0
    """The server speaks at least so often; a connection that is silent for three times as long is given up."""
    request_seconds: float = 5.0
    """How long one answer of the server or of a publisher may take."""
    look_seconds: float = 10.0
    """How often a silent stream is asked whether messages were removed that we had not read."""
    reconnect_seconds: float = 0.1
    """Pause after a lost connection; doubled by each further failure."""
    reconnect_seconds_max: float = 2.0
    replay_messages_max: int = 100_000
    """A stream is not read again over more messages than this; the publisher's snapshot is asked for instead."""
    replay_seconds_max: float = 60.0
    snapshots_max: int = 8
    """Snapshots in progress at once, over all sources."""
    snapshot_attempts: int = 3
    snapshot_bytes_max: int = 512 << 20
    recovery_pause_seconds: float = 0.25
    """Pause before the sink's next wish when the last one brought nothing; doubled by each further one."""
    recovery_pause_seconds_max: float = 30.0
