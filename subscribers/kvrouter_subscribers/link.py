"""One source as its messages and connections are handed over, and what is counted about them.

`live_socket` and `live_stream` read it; gaps, duplicates and restarts are the sink's to judge.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from kvrouter.errors import WireError
from kvrouter.events import Source, is_envelope
from kvrouter.events.envelope_stream import EnvelopeReader, Opened
from kvrouter.events.frames import parse_live
from kvrouter.events.load import KV_METRICS_TOPIC, LoadReport, decode_load
from kvrouter_subscribers.sink_edge import SinkEdge
from kvrouter_subscribers.subscriber import EventSink, Receipt, RunTaker, TransportStatus

__all__ = ["LOAD_TOPIC", "Link", "ZmqAddress"]

LOAD_TOPIC: Final = KV_METRICS_TOPIC.encode()
_MAPS = frozenset(bytes([mark]) for mark in (*range(0x80, 0x90), 0xDE, 0xDF))
"""What an envelope may begin with and an engine's batch never does: one look for each of an engine's messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ZmqAddress:
    """Where one source publishes and replays. `bind` says that publishers connect to us, not we to them."""

    endpoint: str
    replay_endpoint: str | None
    topic: str
    bind: bool


class Link:
    """Takes what one source says, from whatever reads it.

    `on_receipt` is told every answer of the sink that asks for something, `on_connected` the answer to each
    (re)connection, `on_load` the load reports of the source. `native` is whether the last batch was an envelope of
    ours; None before the first.
    """

    def __init__(
        self,
        source: Source,
        address: ZmqAddress,
        *,
        sink: EventSink,
        clock: Callable[[], float],
        on_receipt: Callable[["Link", Receipt], None],
        on_connected: Callable[["Link", Receipt], None],
        on_load: Callable[[LoadReport], None] | None = None,
    ) -> None:
        self.source, self.address = source, address
        self.topic = address.topic.encode()
        self.next_sequence = 0
        self.native: bool | None = None
        self.idle_since = 0.0
        self.last_error: str | None = None
        self._sink, self._clock = SinkEdge(source, sink, self._sink_failed), clock
        self._reader = EnvelopeReader()
        self._on_receipt, self._on_connected, self._on_load = on_receipt, on_connected, on_load
        self._take_run = _run_taker(sink)
        self._peers = 0
        self._messages = self._bytes = self._malformed = 0
        self._connects = self._disconnects = 0
        self.replays = self.replays_failed = self.replayed_batches = self.probes = self.tail_losses = 0
        self.snapshots = self.snapshots_failed = self.fallbacks = 0
        self.replaying = False

    @property
    def connected(self) -> bool:
        """Whether at least one publisher is connected now."""
        return self._peers > 0

    @property
    def subscriptions(self) -> tuple[bytes, ...]:
        """The beginnings of the topics that are wanted."""
        loads = self._on_load is not None and not LOAD_TOPIC.startswith(self.topic)
        return (self.topic, LOAD_TOPIC) if loads else (self.topic,)

    @property
    def takes_runs(self) -> bool:
        """Whether the sink takes several batches at once."""
        return self._take_run is not None

    def now(self) -> float:
        """What the sink's clock says."""
        return self._clock()

    def handshake_failed(self, why: str = "") -> None:
        """Note that whoever answered is no publisher that we can listen to."""
        reason = f": {why}" if why else ""
        self.last_error = (
            f"{self.address.endpoint}: handshake failed{reason}; is it a ZMQ publisher, and the key right?"
        )

    def gone(self) -> None:
        """Note that nobody reads any more; the sink is told nothing, as it is we who leave."""
        self._peers = 0

    def connection_made(self) -> None:
        """Tell the sink that a publisher is connected; what it said before may be missed."""
        self._peers += 1
        self._connects += 1
        self.ask_anew()

    def ask_anew(self) -> None:
        """Have the sink ask for all that it may have missed: the publisher can be asked, at first or again."""
        self.idle_since = self._clock()
        receipt = self._sink.connected(now=self.idle_since)
        if receipt is None:
            return
        if receipt.replay_from is not None:
            self.next_sequence = receipt.replay_from
        self._on_connected(self, receipt)

    def connection_lost(self) -> None:
        """Tell the sink that a publisher is gone."""
        self._peers = max(0, self._peers - 1)
        self._disconnects += 1
        if not self._peers:
            self._sink.disconnected(now=self._clock())

    def take(self, frames: list[bytes]) -> None:
        """Hand over a live message."""
        if frames[0] == LOAD_TOPIC:
            self._take_load(frames)
            return
        self._messages += 1
        self._bytes += sum(map(len, frames))
        try:
            _, sequence, payload = parse_live(frames)
        except WireError as error:
            self.reject(error)
            return
        if self._deliver(sequence, payload, replayed=False):
            self.next_sequence = sequence + 1

    def take_run(self, first: int, size: int, payloads: Sequence[bytes]) -> None:
        """Hand over bare batches that came in a row, with numbers from `first` on; their messages had `size` bytes."""
        self._messages += len(payloads)
        self._bytes += size
        if self._take_run is None:
            for sequence, payload in enumerate(payloads, first):
                self._deliver(sequence, payload, replayed=False)
        else:
            self._deliver_run(self._take_run, first, payloads)
        self.next_sequence = first + len(payloads)

    def rest(self) -> None:
        """Note that the source has just been found silent."""
        self.idle_since = self._clock()

    def deliver_replayed(self, sequence: int, payload: bytes) -> None:
        """Hand over a batch of a replay that the sink asked for."""
        if self._deliver(sequence, payload, replayed=True):
            self.replayed_batches += 1
            self.next_sequence = max(self.next_sequence, sequence + 1)

    def deliver_tail(self, sequence: int, payload: bytes) -> None:
        """Hand over a batch that a probe found, as if it came live: it is the next one, or the sink sees a gap."""
        lost = sequence >= self.next_sequence
        if self._deliver(sequence, payload, replayed=False) and lost:
            self.tail_losses += 1
            self.next_sequence = sequence + 1

    def finish_replay(self, *, complete: bool) -> Receipt | None:
        """Tell the sink that its replay is over; returns its answer, None if it failed."""
        return self._sink.replay_finished(now=self._clock(), complete=complete)

    def deliver_snapshot(self, sequence: int, incarnation: int, batches: Sequence[bytes]) -> Receipt | None:
        """Hand over a whole snapshot; returns the sink's answer, None if it failed."""
        receipt = self._sink.snapshot(batches, sequence=sequence, incarnation=incarnation, now=self._clock())
        if receipt is None:
            return None
        self.next_sequence = sequence + 1 if receipt.outcome == "restarted" else max(self.next_sequence, sequence + 1)
        return receipt

    def give_up_snapshot(self) -> None:
        """Tell the sink that it gets no snapshot."""
        self.snapshots_failed += 1
        self._sink.snapshot_failed(now=self._clock())

    def status(self) -> TransportStatus:
        """Return what is known about the connection."""
        return TransportStatus(
            transport="zmq",
            endpoint=self.address.endpoint,
            replay_endpoint=self.address.replay_endpoint,
            topic=self.address.topic,
            connected=self.connected,
            messages=self._messages,
            bytes=self._bytes,
            malformed=self._malformed,
            sink_errors=self._sink.errors,
            connects=self._connects,
            disconnects=self._disconnects,
            replaying=self.replaying,
            replays=self.replays,
            replays_failed=self.replays_failed,
            replayed_batches=self.replayed_batches,
            probes=self.probes,
            tail_losses=self.tail_losses,
            last_error=self.last_error,
            snapshots=self.snapshots,
            snapshots_failed=self.snapshots_failed,
            fallbacks=self.fallbacks,
        )

    def reject(self, error: WireError) -> None:
        """Count a message that is not an event message."""
        self._malformed += 1
        self.last_error = str(error)

    def open_envelope(self, sequence: int, frame: bytes, *, snapshot: bool) -> Opened:
        """Read an envelope that came under number `sequence`, of a `snapshot` or of the stream.

        Raises:
            WireError: it is damaged, not of this source, or of the other kind.
        """
        envelope = self._reader.read(frame)
        if envelope.source != self.source:
            found, own = envelope.source, self.source
            raise WireError(
                f"a batch of worker {found.worker_id!r}, rank {found.rank}; this is the address of {own.worker_id!r}, "
                f"rank {own.rank}",
                reason="another_source",
            )
        if envelope.sequence != sequence:
            raise WireError(f"batch {envelope.sequence} came as number {sequence}", reason="bad_sequence")
        if (envelope.snapshot is not None) is not snapshot:
            raise WireError("a snapshot's part among batches, or the reverse", reason="bad_snapshot")
        return envelope

    def _take_load(self, frames: list[bytes]) -> None:
        """Hand over a load report, if anybody wants it and it is of this source; it is no batch, whatever it is."""
        if self._on_load is None:
            return
        try:
            report = decode_load(parse_live(frames)[2])
        except WireError as error:
            self.reject(error)
            return
        if report.source == self.source:
            self._sink.load(report, self._on_load)

    def _deliver_run(self, take: RunTaker, first: int, payloads: Sequence[bytes]) -> None:
        """Hand over all of a run, however many pieces the sink takes it in."""
        self.native = False
        taken = 0
        while taken < len(payloads):
            rest = payloads[taken:] if taken else payloads
            now = self.idle_since = self._clock()
            try:
                count, receipt = take(self.source, first + taken, rest, now=now)
            except Exception as error:  # noqa: BLE001 - as `SinkEdge` does
                self._sink.failed(error)
                for sequence, payload in enumerate(rest, first + taken):  # Some may come twice: it knows them.
                    self._deliver(sequence, payload, replayed=False)
                return
            taken += count
            if receipt.replay_from is not None or receipt.snapshot_wanted:
                self._on_receipt(self, receipt)

    def _deliver(self, sequence: int, payload: bytes, *, replayed: bool) -> bool:
        """Hand one batch to the sink; returns whether it is one."""
        now = self.idle_since = self._clock()
        incarnation = digest = None
        if payload[:1] not in _MAPS or not is_envelope(payload):
            self.native = False
        else:
            self.native = True
            try:
                envelope = self.open_envelope(sequence, payload, snapshot=False)
            except WireError as error:
                self.reject(error)
                return False
            payload, incarnation, digest = envelope.payload, envelope.incarnation, envelope.digest
        receipt = self._sink.receive(
            sequence, payload, now=now, replayed=replayed, incarnation=incarnation, digest=digest
        )
        if receipt is not None and (receipt.replay_from is not None or receipt.snapshot_wanted):
            self._on_receipt(self, receipt)
        return True

    def _sink_failed(self, why: str) -> None:
        self.last_error = why


def _run_taker(sink: EventSink) -> RunTaker | None:
    """Return the sink's `receive_run`; None where a subclass looks at batches in a `receive` of its own alone."""
    for kind in type(sink).__mro__:
        if "receive_run" in vars(kind):
            taker: RunTaker = getattr(sink, "receive_run")  # noqa: B009 - a sink need not have it
            return taker
        if "receive" in vars(kind):
            return None
    return None
