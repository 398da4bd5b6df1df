"""What a subscriber gives and needs, whatever transport carries the events."""

from dataclasses import dataclass
from typing import Protocol

from kvrouter.events import Source

__all__ = ["EventSink", "EventSubscriber", "Receipt", "TransportStatus"]


class Receipt(Protocol):
    """A sink's answer to something that arrived."""

    @property
    def outcome(self) -> str:
        """What became of it: `applied`, `duplicate`, `gap`, `restarted`, `quarantined`, `buffered`, ..."""
        ...

    @property
    def replay_from(self) -> int | None:
        """The sequence number from which the sink wants a replay; None when it needs none."""
        ...


class EventSink(Protocol):
    """Takes what arrives and decides what it means; `kvrouter.ingest.Ingest` is one.

    All methods are plain functions that are called on the event loop's thread and must not block. Delivery is at
    least once: a batch may come live and in a replay, so `receive` must be idempotent per sequence number. `now`
    is the subscriber's clock, in seconds.
    """

    def connected(self, source: Source, *, now: float) -> Receipt:
        """The source's live connection was made, for the first time or again."""
        ...

    def disconnected(self, source: Source, *, now: float) -> None:
        """The source's live connection was lost."""
        ...

    def receive(
        self,
        source: Source,
        sequence: int,
        payload: bytes,
        *,
        now: float,
        replayed: bool = False,
        incarnation: int | None = None,
    ) -> Receipt:
        """Take one batch. Live batches go on arriving while a replay is in progress.

        `incarnation` is the publisher's life as its wire names it; None where the wire names none. When the answer
        is `restarted`, a replay that is under way belongs to another life: nothing more of it may be handed over.
        """
        ...

    def replay_finished(self, source: Source, *, now: float, complete: bool) -> Receipt:
        """Close a replay that this sink asked for. It is `complete` only if its end marker was seen."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportStatus:
    """The transport's side of one source, for people and metrics. Counters count since the source was added."""

    transport: str
    endpoint: str
    replay_endpoint: str | None
    topic: str
    connected: bool
    messages: int
    bytes: int
    malformed: int
    sink_errors: int
    connects: int
    disconnects: int
    replaying: bool
    replays: int
    replays_failed: int
    replayed_batches: int
    probes: int
    tail_losses: int
    last_error: str | None


class EventSubscriber(Protocol):
    """Receives the events of many sources over one transport and hands them to one sink.

    Guarantee: every batch that arrives is handed over in the order of arrival of its source. Loss is the
    transport's nature; the subscriber finds it (gaps are reported by the sink, lost tails by asking idle sources)
    and asks for replays until the sink is content. Nothing that arrives ends the subscriber: bad bytes and errors
    are counted per source and shown by `status`.

    Threading: everything happens on the event loop that runs `run`; `add`, `remove` and `status` are called there.
    """

    def remove(self, source: Source) -> None:
        """Stop listening to `source` at once; unknown sources are ignored."""
        ...

    async def run(self) -> None:
        """Listen until `close` is called. Sources may be added before and meanwhile."""
        ...

    async def close(self) -> None:
        """Stop listening, within a bounded time. May be called again."""
        ...

    def status(self, source: Source) -> TransportStatus | None:
        """Return the state of one source, or None if it is unknown."""
        ...
