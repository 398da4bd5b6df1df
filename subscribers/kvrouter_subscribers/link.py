"""One source's live connection: a SUB socket, its monitor, and what is counted about both.

It reads and hands over; gaps, duplicates and restarts are the sink's to judge.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import zmq
from zmq.utils.monitor import parse_monitor_message

from kvrouter.errors import WireError
from kvrouter.events import Source, is_envelope
from kvrouter.events.envelope_stream import EnvelopeReader, Opened
from kvrouter.events.frames import parse_live
from kvrouter.events.load import KV_METRICS_TOPIC, LoadReport, decode_load
from kvrouter_subscribers.limits import CurveKeys, ZmqLimits
from kvrouter_subscribers.subscriber import EventSink, Receipt, TransportStatus

__all__ = ["Link", "ZmqAddress", "configure"]

_log = logging.getLogger("kvrouter_subscribers")

_BURST_MESSAGES = 32
_HANDSHAKE_FAILURES = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
    zmq.EVENT_HANDSHAKE_FAILED_AUTH,
)
_STILL_TRYING = (zmq.EVENT_CONNECT_RETRIED, zmq.EVENT_CONNECT_DELAYED, zmq.EVENT_CONNECTED)
_MONITORED = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | sum(_HANDSHAKE_FAILURES) | sum(_STILL_TRYING)
_ABANDONED_SECONDS = 1.0
_LOAD_TOPIC = KV_METRICS_TOPIC.encode()
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
    """Reads one source, between `open` and `close`; both may be repeated.

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
        self.socket: zmq.Socket[bytes] | None = None
        self.monitor: zmq.Socket[bytes] | None = None
        self.next_sequence = 0
        self.native: bool | None = None
        self.idle_since = 0.0
        self.last_error: str | None = None
        self._sink, self._clock = sink, clock
        self._reader = EnvelopeReader()
        self._on_receipt, self._on_connected, self._on_load = on_receipt, on_connected, on_load
        self._peers = self._failed_handshakes = 0
        self._lost_at: float | None = None
        self._refused = False
        self._messages = self._bytes = self._malformed = self._sink_errors = 0
        self._connects = self._disconnects = 0
        self.replays = self.replays_failed = self.replayed_batches = self.probes = self.tail_losses = 0
        self.snapshots = self.snapshots_failed = 0
        self.replaying = False

    @property
    def connected(self) -> bool:
        """Whether at least one publisher is connected now."""
        return self._peers > 0

    def is_abandoned(self, now: float) -> bool:
        """Tell whether ZeroMQ has stopped connecting, so that the sockets must be opened anew.

        It reconnects after a loss, but never again to a peer that once broke the protocol, which is how it sees
        a frame beyond `frame_bytes_max` as well.
        """
        return not self.address.bind and self._lost_at is not None and now - self._lost_at >= _ABANDONED_SECONDS

    def open(self, context: zmq.Context[zmq.Socket[bytes]], limits: ZmqLimits, curve: CurveKeys | None) -> None:
        """Open the sockets and begin to connect; what fails here is kept in `last_error` for a later attempt."""
        socket = None
        try:
            socket = context.socket(zmq.SUB)
            configure(socket, self.address.endpoint, limits, curve)
            socket.setsockopt(zmq.RCVHWM, limits.waiting_messages_max)
            self.monitor = socket.get_monitor_socket(_MONITORED)
            socket.setsockopt(zmq.SUBSCRIBE, self.address.topic.encode())
            if self._on_load is not None and not KV_METRICS_TOPIC.startswith(self.address.topic):
                socket.setsockopt(zmq.SUBSCRIBE, _LOAD_TOPIC)
            if self.address.bind:
                socket.bind(self.address.endpoint)
            else:
                socket.connect(self.address.endpoint)
        except zmq.ZMQError as error:
            self.last_error = f"{self.address.endpoint}: {error}"
            if socket is not None:
                _close(socket, self.monitor)
            self.monitor = None
            return
        self.socket = socket
        if self.address.endpoint.startswith("inproc://"):
            self._connection_made()  # Both ends share a process: there is no handshake to observe.

    def abandon(self, limits: ZmqLimits) -> None:
        """Close sockets that ZeroMQ has given up, and keep the reason for `status`."""
        if not self._refused:
            bound = f"a frame of more than {limits.frame_bytes_max} bytes, or bytes that are not ZeroMQ's"
            self.last_error = f"{self.address.endpoint}: {bound} ended the connection"
        self.close()

    def close(self) -> None:
        """Close the sockets at once."""
        if self.socket is not None:
            _close(self.socket, self.monitor)
        self.socket = self.monitor = self._lost_at = None
        self._peers = self._failed_handshakes = 0

    def drain(self, deadline: float) -> bool:
        """Read a burst, but nothing more after `deadline`; returns whether there may be more. Never raises."""
        if self.socket is None or self.monitor is None:
            return False
        self._read_monitor(self.monitor)
        receive = self.socket.recv_multipart
        for _ in range(_BURST_MESSAGES):
            try:
                frames = receive(zmq.NOBLOCK)
            except zmq.Again:
                return False
            self._take(frames)
            if time.perf_counter() >= deadline:  # batches may be large: a burst of them would hold up requests
                break
        return True

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
        try:
            return self._sink.replay_finished(self.source, now=self._clock(), complete=complete)
        except Exception as error:  # noqa: BLE001 - as in `_deliver`
            self._sink_failed(error)
            return None

    def deliver_snapshot(self, sequence: int, incarnation: int, batches: Sequence[bytes]) -> Receipt | None:
        """Hand over a whole snapshot; returns the sink's answer, None if it failed."""
        now = self._clock()
        try:
            receipt = self._sink.snapshot(self.source, batches, sequence=sequence, incarnation=incarnation, now=now)
        except Exception as error:  # noqa: BLE001 - as in `_deliver`
            self._sink_failed(error)
            return None
        self.next_sequence = sequence + 1 if receipt.outcome == "restarted" else max(self.next_sequence, sequence + 1)
        return receipt

    def give_up_snapshot(self) -> None:
        """Tell the sink that it gets no snapshot."""
        self.snapshots_failed += 1
        try:
            self._sink.snapshot_failed(self.source, now=self._clock())
        except Exception as error:  # noqa: BLE001 - as in `_deliver`
            self._sink_failed(error)

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
            sink_errors=self._sink_errors,
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

    def _take(self, frames: list[bytes]) -> None:
        if frames[0] == _LOAD_TOPIC:
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

    def _take_load(self, frames: list[bytes]) -> None:
        """Hand over a load report, if anybody wants it and it is of this source; it is no batch, whatever it is."""
        if self._on_load is None:
            return
        try:
            report = decode_load(parse_live(frames)[2])
        except WireError as error:
            self.reject(error)
            return
        if report.source != self.source:
            return
        try:
            self._on_load(report)
        except Exception as error:  # noqa: BLE001 - as in `_deliver`
            self._sink_failed(error)

    def _deliver(self, sequence: int, payload: bytes, *, replayed: bool) -> bool:
        """Hand one batch to the sink; returns whether it is one.

        A fault of the sink is counted and told; it must not end the stream.
        """
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
        try:
            receipt = self._sink.receive(
                self.source, sequence, payload, now=now, replayed=replayed, incarnation=incarnation, digest=digest
            )
        except Exception as error:  # noqa: BLE001 - the supervised edge of event input: counted, logged, visible
            self._sink_failed(error)
            return True
        if receipt.replay_from is not None or receipt.snapshot_wanted:
            self._on_receipt(self, receipt)
        return True

    def _read_monitor(self, monitor: zmq.Socket[bytes]) -> None:
        """Follow connections before their messages, so that a restart is seen before its first batch."""
        while int(monitor.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            event = parse_monitor_message(monitor.recv_multipart(zmq.NOBLOCK))["event"]
            if event in _STILL_TRYING:
                self._lost_at = None
            elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._connection_made()
            elif event == zmq.EVENT_DISCONNECTED:
                self._connection_lost()
            elif event in _HANDSHAKE_FAILURES:
                self._failed_handshakes += 1  # Its own DISCONNECTED follows; it never was a connection.
                self.last_error = (
                    f"{self.address.endpoint}: handshake failed; is it a ZMQ publisher, and the key right?"
                )

    def _connection_made(self) -> None:
        self._peers += 1
        self._connects += 1
        now = self.idle_since = self._clock()
        try:
            receipt = self._sink.connected(self.source, now=now)
        except Exception as error:  # noqa: BLE001 - as in `_deliver`
            self._sink_failed(error)
            return
        if receipt.replay_from is not None:
            self.next_sequence = receipt.replay_from
        self._on_connected(self, receipt)

    def _connection_lost(self) -> None:
        self._lost_at = self._clock()
        if self._failed_handshakes:
            self._failed_handshakes -= 1
            self._refused = True
            return
        self._refused = False
        self._peers = max(0, self._peers - 1)
        self._disconnects += 1
        try:
            if not self._peers:
                self._sink.disconnected(self.source, now=self._clock())
        except Exception as error:  # noqa: BLE001 - as in `_deliver`
            self._sink_failed(error)

    def _sink_failed(self, error: Exception) -> None:
        self._sink_errors += 1
        self.last_error = f"{type(error).__name__}: {error}"
        if self._sink_errors == 1:
            _log.exception("event_sink_failed", extra={"source": tuple(self.source)})


def configure(socket: zmq.Socket[bytes], endpoint: str, limits: ZmqLimits, curve: CurveKeys | None) -> None:
    """Set the options that live and replay sockets share.

    TCP keep-alive, not ZeroMQ heartbeats: the kernel answers for a process that is merely stopped, whose cache
    is intact, and does not answer for a machine that is gone.
    """
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.IPV6, int("[" in endpoint))
    socket.setsockopt(zmq.MAXMSGSIZE, limits.frame_bytes_max)
    socket.setsockopt(zmq.RECONNECT_IVL, 100)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, round(limits.reconnect_seconds_max * 1000))
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 10)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 5)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)
    if curve is not None:
        socket.setsockopt(zmq.CURVE_SERVERKEY, curve.server_key)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, curve.public_key)
        socket.setsockopt(zmq.CURVE_SECRETKEY, curve.secret_key)


def _close(socket: zmq.Socket[bytes], monitor: zmq.Socket[bytes] | None) -> None:
    if monitor is not None:
        socket.disable_monitor()
        monitor.close(linger=0)
    socket.close(linger=0)
