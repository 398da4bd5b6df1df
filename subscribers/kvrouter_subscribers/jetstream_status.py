"""What a JetStream subscriber is given and tells, as values; needs no client library."""

import ssl
from dataclasses import dataclass
from typing import Literal

from kvrouter.events.nats_names import NatsCredentials

__all__ = ["Mode", "NatsAccess", "StreamStatus"]

Mode = Literal["broadcast", "worker-group"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamStatus:
    """One stream, for people and metrics. Counters count since it was first read.

    `position` is the last message that was handed over, `acknowledged` the last one that the server knows to be.
    `missed` are messages that the stream dropped before we read them, `unknown` those of sources that nobody follows.
    `load_reports` were handed over; those that are none count as `malformed`. `name_conflicts` is how often another
    router was found to read with our consumer.
    """

    endpoint: str
    consumer: str
    connected: bool
    position: int
    acknowledged: int
    pending: int
    messages: int
    unknown: int
    malformed: int
    redelivered: int
    missed: int
    load_reports: int
    connects: int
    looks: int
    name_conflicts: int
    last_error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NatsAccess:
    """What a connection needs beyond an address."""

    name: str
    """Shown by the server's monitoring."""
    credentials: NatsCredentials | None = None
    tls: ssl.SSLContext | None = None
    timeout_seconds: float = 5.0
