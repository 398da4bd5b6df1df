"""What one client, one request and one worker may cost the data plane, and the counts of what happened.

Not the settings schema: the composition root copies the values that users may set into `ProxyLimits`.
"""

from dataclasses import dataclass, field

__all__ = ["ProxyLimits", "ProxyStatistics"]

_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyLimits:
    """Every bound of the data plane; times in seconds."""

    # What a client may send.
    connections_max: int = 20_000
    header_bytes_max: int = 64 * 1024
    headers_max: int = 128
    target_bytes_max: int = 8192
    body_bytes_max: int = 32 * _MIB
    buffered_bytes_max: int = 1024 * _MIB
    """Request bodies held in memory, all clients together; beyond it a request is answered 503."""

    # How long a client may take.
    keepalive_seconds: float = 75.0
    header_seconds: float = 15.0
    body_seconds: float = 60.0
    stall_seconds: float = 300.0
    """How long a client may leave an answer unread."""
    linger_seconds: float = 5.0
    """How long a refused client may go on sending before its connection is cut."""

    # What a worker may take.
    attempts_max: int = 3
    connect_seconds: float = 3.0
    first_byte_seconds: float = 600.0
    idle_seconds: float = 600.0
    response_header_bytes_max: int = 64 * 1024
    worker_connections_max: int = 4096
    pool_idle_max: int = 1024
    pool_idle_seconds: float = 4.0
    """Shorter than the 5 s after which uvicorn, hence vLLM and SGLang, closes an idle connection."""

    # What answers say.
    route_headers: bool = True
    """Answer with x-kvrouter-worker and x-kvrouter-overlap-tokens."""

    @property
    def sweep_seconds(self) -> float:
        """How often deadlines are looked at: coarse, but fine enough for the shortest of them."""
        shortest = min(
            self.keepalive_seconds,
            self.header_seconds,
            self.body_seconds,
            self.stall_seconds,
            self.linger_seconds,
            self.first_byte_seconds,
            self.idle_seconds,
            self.pool_idle_seconds,
        )
        return max(0.01, min(0.5, shortest / 4))


@dataclass(slots=True, kw_only=True)
class ProxyStatistics:
    """Plain counts; whoever exports metrics reads them at scrape time."""

    connections_accepted: int = 0
    connections_refused: int = 0
    connections_open: int = 0
    requests: int = 0
    requests_active: int = 0
    replies: dict[int, int] = field(default_factory=dict)
    """Answers of our own, errors and refusals included, by status."""
    refusals: dict[str, int] = field(default_factory=dict)
    """Requests refused by the data plane itself, by error code."""
    responses: dict[int, int] = field(default_factory=dict)
    """Answers that workers gave and clients received the head of, by status."""
    attempts: int = 0
    retries: int = 0
    """Attempts after one that failed, on another worker."""
    stale_retries: int = 0
    """Requests sent again because a kept-alive connection turned out to be closed."""
    outcomes: dict[str, int] = field(default_factory=dict)
    """How attempts ended: the words of `Dispatcher.finished`."""
    truncated: int = 0
    """Answers cut short after their first byte."""
    internal_errors: int = 0
    buffered_bytes: int = 0
    """Request bodies held in memory now."""

    @property
    def replies_local(self) -> int:
        """Answers of our own, all together."""
        return sum(self.replies.values())

    def count_reply(self, status: int) -> None:
        """Count an answer of our own."""
        self.replies[status] = self.replies.get(status, 0) + 1
