"""One source of a stream: what was handed over of it, what the sink answered, and what is counted about both."""

from collections.abc import Callable, Sequence

from kvrouter.events import Envelope, Source
from kvrouter.events.load import LoadReport
from kvrouter_subscribers.sink_edge import SinkEdge
from kvrouter_subscribers.subscriber import EventSink, Receipt, TransportStatus

__all__ = ["FollowedSource"]


class FollowedSource:
    """Hands one source's batches to the sink. A fault of the sink is counted and told; it must not end the stream.

    `last` is the newest batch that was handed over, `whole_from` the first number since which none was missing, in
    the life that is followed.
    """

    def __init__(self, source: Source, endpoint: str, *, sink: EventSink, clock: Callable[[], float]) -> None:
        self.source, self.endpoint = source, endpoint
        self.last: Envelope | None = None
        self.whole_from: int | None = None
        self.read_from = 0
        """Where in the stream to look for what is missing: after the last batch before the newest gap."""
        self.catching_up: int | None = None
        """The number from which the sink wants what it may have missed, while that is being read."""
        self.found = 0
        """Batches of this source since that began."""
        self.replay_wanted: int | None = None
        self.snapshot_wishes = self.snapshot_wishes_served = 0
        self.owes_snapshot = False
        """Whether the stream dropped messages that may have been of this source: its whole state makes that good."""
        self.replaying = False
        self.last_error: str | None = None
        self.replays = self.replays_failed = self.replayed_batches = 0
        self.snapshots = self.snapshots_failed = 0
        self.connects = self.disconnects = 0
        self.messages = self.bytes = self.malformed = self.redelivered = 0
        self._place = 0
        self._sink, self._clock = SinkEdge(source, sink, self._sink_failed), clock

    @property
    def snapshot_wanted(self) -> bool:
        """Whether the whole state was wished for since it was last asked for."""
        return self.snapshot_wishes > self.snapshot_wishes_served

    def connected(self) -> Receipt | None:
        """Tell the sink that the stream can be read; returns its answer, None if it failed."""
        self.connects += 1
        return self._sink.connected(now=self._clock())

    def disconnected(self) -> None:
        """Tell the sink that the stream cannot be read."""
        self.disconnects += 1
        self.catching_up = self.replay_wanted = None
        self.replaying = False
        self._sink.disconnected(now=self._clock())

    def arrived(self, envelope: Envelope, place: int, *, replayed: bool) -> Receipt | None:
        """Hand over the batch that stands at `place` of the stream; returns the sink's answer, None if it failed."""
        self.messages += 1
        self.bytes += len(envelope.payload)
        last = self.last
        if last is None or last.incarnation != envelope.incarnation or envelope.sequence > last.sequence + 1:
            self.whole_from, self.read_from = envelope.sequence, self._place
        if last is None or last.incarnation != envelope.incarnation or envelope.sequence > last.sequence:
            self.last = envelope
        self._place = place
        return self.receive(envelope, replayed=replayed)

    def receive(self, envelope: Envelope, *, replayed: bool) -> Receipt | None:
        """Hand over a batch, wherever it was read."""
        self.found += 1
        self.replayed_batches += replayed
        return self._sink.receive(
            envelope.sequence,
            envelope.payload,
            now=self._clock(),
            replayed=replayed,
            incarnation=envelope.incarnation,
            digest=envelope.digest,
        )

    def replay_finished(self, *, complete: bool) -> Receipt | None:
        """Tell the sink that what it wanted to be repeated is over."""
        return self._sink.replay_finished(now=self._clock(), complete=complete)

    def snapshot(self, batches: Sequence[bytes], first: Envelope) -> Receipt | None:
        """Hand over the source's whole state; `first` is the frame of its first part."""
        self.snapshots += 1
        return self._sink.snapshot(batches, sequence=first.sequence, incarnation=first.incarnation, now=self._clock())

    def snapshot_failed(self) -> None:
        """Tell the sink that its source's state cannot be had now."""
        self._sink.snapshot_failed(now=self._clock())

    def load_reported(self, report: LoadReport, on_load: Callable[[LoadReport], None]) -> bool:
        """Hand over the source's load report; returns whether it was taken."""
        return self._sink.load(report, on_load)

    def reject(self, reason: str) -> None:
        """Count a frame that cannot be an event of this source."""
        self.malformed += 1
        self.last_error = reason

    def status(self, *, connected: bool, probes: int, last_error: str | None) -> TransportStatus:
        """Return what is known; `last_error` is the stream's, shown where the source has none of its own."""
        return TransportStatus(
            transport="jetstream",
            endpoint=self.endpoint,
            replay_endpoint=None,
            topic="",
            connected=connected,
            messages=self.messages,
            bytes=self.bytes,
            malformed=self.malformed,
            sink_errors=self._sink.errors,
            connects=self.connects,
            disconnects=self.disconnects,
            replaying=self.replaying or self.catching_up is not None,
            replays=self.replays,
            replays_failed=self.replays_failed,
            replayed_batches=self.replayed_batches,
            probes=probes,
            tail_losses=0,
            last_error=self.last_error or last_error,
            snapshots=self.snapshots,
            snapshots_failed=self.snapshots_failed,
        )

    def _sink_failed(self, why: str) -> None:
        self.last_error = why
