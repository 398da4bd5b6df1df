"""What a subscriber gives and needs, whatever transport carries the events."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from kvrouter.events import Source
from kvrouter.events.digest import DigestRow

__all__ = ["DigestRows", "EventSink", "EventSubscriber", "Receipt", "RunTaker", "TransportStatus"]

DigestRows: TypeAlias = Sequence[DigestRow]
"""What a publisher holds after a batch, in few numbers."""


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

    @property
    def snapshot_wanted(self) -> bool:
        """Whether the sink wants the publisher's whole state, because no replay can bring what is missing.

        Beside `replay_from` the replay is still wanted where there are no snapshots. A transport that has none
        ignores it.
        """
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
        digest: DigestRows | None = None,
    ) -> Receipt:
        """Take one batch. Live batches go on arriving while a replay is in progress.

        `incarnation` is the publisher's life as its wire names it; None where the wire names none. `digest` is what
        the publisher holds after this batch, if it said so. When the answer is `restarted`, a replay that is under
        way belongs to another life: nothing more of it may be handed over.

        A transport that acknowledges does so after this has returned: the index has been changed then, or the batch
        is remembered until it can be.
        """
        ...

    def replay_finished(self, source: Source, *, now: float, complete: bool) -> Receipt:
        """Close a replay that this sink asked for. It is `complete` only if its end marker was seen."""
        ...

    def snapshot(
        self, source: Source, batches: Sequence[bytes], *, sequence: int, incarnation: int | None, now: float
    ) -> Receipt:
        """Take the whole state of the source after batch `sequence` of that life; it replaces what is known at once.

        `batches` are all parts, in order; the sink judges whether they can be used. One that is older than what
        is known already changes nothing.
        """
        ...

    def snapshot_failed(self, source: Source, *, now: float) -> None:
        """Tell that a snapshot that was wanted cannot be had; the source goes on without."""
        ...


class RunTaker(Protocol):
    """The method `receive_run` that an `EventSink` may have beside `receive`, for sources that say much."""

    def __call__(self, source: Source, first: int, payloads: Sequence[bytes], *, now: float) -> tuple[int, Receipt]:
        """Take live batches without names of lives and digests, with numbers from `first` on, as `receive` would.

        Returns how many were taken, at least one, and the receipt of the last of them. It stops after a batch whose
        receipt asks for something; the rest is offered again then. A subclass with a `receive` of its own, and no
        `receive_run`, gets every batch there.
        """
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
    snapshots: int = 0
    snapshots_failed: int = 0
    fallbacks: int = 0
    """How often the source was left to a slower way of reading, because it does not speak what the faster one does."""


class EventSubscriber(Protocol):
    """Receives the events of many sources over one transport and hands them to one sink.

    Guarantee: every batch that arrives is handed over in the order of arrival of its source. Loss is the
    transport's nature; the subscriber finds it (gaps are reported by the sink, lost tails by asking idle sources)
    and asks for replays, and for snapshots where the transport has them, until the sink is content. Nothing that
    arrives ends the subscriber: bad bytes and errors are counted per source and shown by `status`.

    Threading: everything happens on the event loop that runs `run`; all other methods are called there.
    """

    def add(self, source: Source, endpoint: str, *, replay_endpoint: str | None = None, topic: str = "") -> None:
        """Listen to `source`; an earlier address of it is replaced.

        Raises:
            SettingsError: the address is malformed. One that merely does not answer is tried again for ever.
        """
        ...

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

    def resync(self, source: Source) -> bool:
        """Get the source's whole state anew, by a snapshot or else a whole replay; False if it cannot be asked."""
        ...
