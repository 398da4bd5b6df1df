"""The supervised edge of event input: what a sink raises must not end the stream that it came from."""

import logging
from collections.abc import Callable, Sequence

from kvrouter.events import Source
from kvrouter.events.load import LoadReport
from kvrouter_subscribers.subscriber import DigestRows, EventSink, Receipt

__all__ = ["SinkEdge"]

_log = logging.getLogger("kvrouter_subscribers")


class SinkEdge:
    """An `EventSink` for one source that never raises. A failed call answers None, is counted, told, and logged once.

    Args:
        source: whose events these are.
        sink: takes them.
        on_error: is told what the sink raised, in words.
    """

    def __init__(self, source: Source, sink: EventSink, on_error: Callable[[str], None]) -> None:
        self.errors = 0
        self._source, self._sink, self._on_error = source, sink, on_error

    def connected(self, *, now: float) -> Receipt | None:
        """The source's live connection was made, for the first time or again."""
        try:
            return self._sink.connected(self._source, now=now)
        except Exception as error:  # noqa: BLE001 - what this class is for, here and below
            self.failed(error)
            return None

    def disconnected(self, *, now: float) -> None:
        """The source's live connection was lost."""
        try:
            self._sink.disconnected(self._source, now=now)
        except Exception as error:  # noqa: BLE001
            self.failed(error)

    def receive(
        self,
        sequence: int,
        payload: bytes,
        *,
        now: float,
        replayed: bool,
        incarnation: int | None,
        digest: DigestRows | None,
    ) -> Receipt | None:
        """Hand over one batch."""
        try:
            return self._sink.receive(
                self._source, sequence, payload, now=now, replayed=replayed, incarnation=incarnation, digest=digest
            )
        except Exception as error:  # noqa: BLE001
            self.failed(error)
            return None

    def replay_finished(self, *, now: float, complete: bool) -> Receipt | None:
        """A replay that the sink asked for is over."""
        try:
            return self._sink.replay_finished(self._source, now=now, complete=complete)
        except Exception as error:  # noqa: BLE001
            self.failed(error)
            return None

    def snapshot(
        self, batches: Sequence[bytes], *, sequence: int, incarnation: int | None, now: float
    ) -> Receipt | None:
        """Hand over the source's whole state."""
        try:
            return self._sink.snapshot(self._source, batches, sequence=sequence, incarnation=incarnation, now=now)
        except Exception as error:  # noqa: BLE001
            self.failed(error)
            return None

    def snapshot_failed(self, *, now: float) -> None:
        """A snapshot that the sink wanted cannot be had."""
        try:
            self._sink.snapshot_failed(self._source, now=now)
        except Exception as error:  # noqa: BLE001
            self.failed(error)

    def load(self, report: LoadReport, on_load: Callable[[LoadReport], None]) -> bool:
        """Hand over a load report to who wants them; returns whether it was taken."""
        try:
            on_load(report)
        except Exception as error:  # noqa: BLE001
            self.failed(error)
            return False
        return True

    def failed(self, error: Exception) -> None:
        """Note what the sink raised; to be called while it is handled."""
        self.errors += 1
        self._on_error(f"{type(error).__name__}: {error}")
        if self.errors == 1:
            _log.exception("event_sink_failed", extra={"source": tuple(self._source)})
