"""The bounds and keys of a ZMQ subscriber, as values; nothing here opens a socket."""

from dataclasses import dataclass

__all__ = ["CurveKeys", "ZmqLimits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveKeys:
    """Z85 keys for CURVE: the publisher's public key, and our own pair."""

    server_key: bytes
    public_key: bytes
    secret_key: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ZmqLimits:
    """The bounds of a ZMQ subscriber."""

    frame_bytes_max: int = 64 << 20
    """Larger frames close their connection; a 100 k-token prefill chunk is about 0.5 MB."""
    waiting_messages_max: int = 100_000
    """Messages of one source that ZeroMQ holds for us before it stops reading from the network."""
    turn_seconds: float = 0.001
    """How long events are read before other work of the event loop gets its turn."""
    replays_max: int = 8
    """Replays and snapshots in progress at once, over all sources."""
    replay_silence_seconds: float = 3.0
    """A replay endpoint that says nothing for so long has failed; engines answer between steps."""
    replay_seconds_max: float = 120.0
    replay_attempts: int = 2
    """Attempts before the sink is told that a replay or a snapshot failed."""
    replay_pause_seconds: float = 0.25
    """Pause after a failed attempt; doubled by each further failure."""
    replay_pause_seconds_max: float = 30.0
    snapshot_silence_seconds: float = 30.0
    """A publisher that was asked for a snapshot may say nothing for so long: it makes all of it first."""
    snapshot_bytes_max: int = 1 << 30
    """A snapshot that is larger is given up; a block takes about 100 bytes of it."""
    probe_seconds: float = 10.0
    """An idle source is asked so often whether the last message was lost; 0 never asks."""
    reconnect_seconds_max: float = 2.0
    handshake_seconds_max: float = 30.0
    """Who has not said by then that he is a publisher is none; the connection is tried anew."""
