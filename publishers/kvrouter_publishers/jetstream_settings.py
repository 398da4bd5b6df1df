"""What every connection of one JetStream publisher has in common, as values; needs no client library."""

import ssl
from dataclasses import dataclass
from typing import Literal

from kvrouter.events.nats_names import NatsCredentials, NatsEndpoint

__all__ = ["Delivery", "SessionSettings", "StreamSettings"]

Delivery = Literal["at-least-once", "at-most-once"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSettings:
    """How a missing stream is made. `max_age_seconds` 0 keeps messages for ever, `bytes_max` None any number."""

    name: str
    max_age_seconds: float
    bytes_max: int | None
    replicas: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """Where and how a publisher publishes.

    `request_seconds` is how long an answer of the server may take. After a failure it is tried again after
    `retry_seconds`, and more and more slowly up to `retry_seconds_max`.
    """

    endpoint: NatsEndpoint
    stream: StreamSettings
    delivery: Delivery
    snapshots: bool
    request_seconds: float
    credentials: NatsCredentials | None
    tls: ssl.SSLContext | None
    retry_seconds: float = 0.05
    retry_seconds_max: float = 2.0
