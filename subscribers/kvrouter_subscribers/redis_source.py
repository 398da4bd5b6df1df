"""One source of a stream: what was handed over of it, what the sink answered, and what is counted about both."""

from collections.abc import Callable, Sequence

from kvrouter.events import Envelope, Source
from kvrouter.events.load import LoadReport
from kvrouter_subscribers.sink_edge import SinkEdge
from kvrouter_subscribers.subscriber import EventSink, Receipt, TransportStatus

__all__ = ["FollowedSource"]


class FollowedSource:
    """Hands one source's batches to the sink. A fault of the sink is counted and told; it must not end the stream.

    `last` is the newest batch that was handed over, `whole_from` the number since which none of its life was missing.
    """

    def __init__(self, source: Source, endpoint: str, *, sink: EventSink, clock: Callable[[], float]) -> None:
        self.source, self.endpoint = source, endpoint
        self.last: Envelope | None = None
        self.whole_from: int | None = None
        self.read_from_start = False
        """Whether everything of it was read that the stream had, so that reading again finds what we have seen."""
        self.awaited: int | None = None
        """The number from which the sink wants to know that it missed nothing; what comes next may tell."""
        self.heard = False
        """Whether anything came since the connection was made."""
        self.unbroken: bool | None = None
        """Whether all that came since follows what came before; None as long as nobody can tell."""
        self.doubted = False
        """Whether the stream was shortened beyond what we had read, so that batches of it may be lost."""
        self.reading_history = False
        self.replay_wanted: int | None = None
        self.snapshot_wanted = False
        self.replaying = False
        self.last_error: str | None = None
        self.replays = self.replays_failed = self.replayed_batches = 0
        self.snapshots = self.snapshots_failed = 0
        self.connects = self.disconnects = 0
        self.messages = self.bytes = self.malformed = 0
        self._sink, self._clock = SinkEdge(source, sink, self._sink_failed), clock

    def connected(self) -> Receipt | None:
        """Tell the sink that the stream can be read; returns its answer, None if it failed."""
        self.connects += 1
        self.awaited, self.heard, self.unbroken, self.doubted = None, False, None, False
        return self._sink.connected(now=self._clock())

    def disconnected(self) -> None:
        """Tell the sink that the stream cannot be read."""
        self.disconnects += 1
        self.awaited, self.replaying = None, False
        self._sink.disconnected(now=self._clock())

    def arrived(self, envelope: Envelope) -> Receipt | None:
        """Hand over a batch that came live; returns the sink's answer, None if it failed."""
        self.messages += 1
        self.bytes += len(envelope.payload)
        self.heard = True
        self._note(envelope)
        return self._receive(envelope, replayed=False)

    def replayed(self, envelope: Envelope) -> Receipt | None:
        """Hand over a batch that was in the stream before."""
        self.replayed_batches += 1
        self._note(envelope)
        return self._receive(envelope, replayed=True)

    def replay_finished(self, *, complete: bool) -> Receipt | None:
        """Tell the sink that what it wanted to be repeated is over."""
        return self._sink.replay_finished(now=self._clock(), complete=complete)

    def snapshot(self, frames: Sequence[Envelope]) -> Receipt | None:
        """Hand over the source's whole state, in all its parts."""
        self.snapshots += 1
        first, batches = frames[0], [frame.payload for frame in frames]
        return self._sink.snapshot(batches, sequence=first.sequence, incarnation=first.incarnation, now=self._clock())

    def snapshot_failed(self) -> None:
        """Tell the sink that its source's state cannot be had now."""
        self.snapshots_failed += 1
        self._sink.snapshot_failed(now=self._clock())

    def load_reported(self, report: LoadReport, on_load: Callable[[LoadReport], None]) -> bool:
        """Hand over the source's load report; returns whether it was taken."""
        return self._sink.load(report, on_load)

    def reject(self, reason: str) -> None:
        """Count a frame that cannot be an event of this source."""
        self.malformed += 1
        self.last_error = reason

    def status(self, *, connected: bool, last_error: str | None) -> TransportStatus:
        """Return what is known; `last_error` is the stream's, shown where the source has none of its own."""
        return TransportStatus(
            transport="redis",
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
            replaying=self.replaying or self.awaited is not None,
            replays=self.replays,
            replays_failed=self.replays_failed,
            replayed_batches=self.replayed_batches,
            probes=0,
            tail_losses=0,
            last_error=self.last_error or last_error,
            snapshots=self.snapshots,
            snapshots_failed=self.snapshots_failed,
        )

    def _note(self, envelope: Envelope) -> None:
        """Keep account of what we have seen: a batch that follows the last one shows that none is missing."""
        last = self.last
        if last is not None and last.incarnation == envelope.incarnation and envelope.sequence <= last.sequence:
            return
        follows = last is not None and (
            envelope.sequence == last.sequence + 1
            if last.incarnation == envelope.incarnation
            else not envelope.sequence
        )
        if last is not None:
            self.unbroken = follows and self.unbroken is not False
        if last is None or last.incarnation != envelope.incarnation or not follows:
            self.whole_from = envelope.sequence
        self.last = envelope

    def _receive(self, envelope: Envelope, *, replayed: bool) -> Receipt | None:
        return self._sink.receive(
            envelope.sequence,
            envelope.payload,
            now=self._clock(),
            replayed=replayed,
            incarnation=envelope.incarnation,
            digest=envelope.digest,
        )

    def _sink_failed(self, why: str) -> None:
        self.last_error = why
