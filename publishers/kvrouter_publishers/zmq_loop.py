"""The publisher's own thread: the only code that touches its sockets once they are bound.

It encodes, numbers, sends and remembers batches, states losses, and answers replay requests. Nothing here runs
on the engine's threads.
"""

import logging
import socket
import time
from collections.abc import Sequence
from typing import Literal

import zmq

from kvrouter.events import AllBlocksCleared, BlockStored, Event, EventBatch, encode_batch
from kvrouter.events.frames import live_frames
from kvrouter_publishers.counters import Counters
from kvrouter_publishers.outbox import Outbox, Parcel
from kvrouter_publishers.replay_server import ReplayServer
from kvrouter_publishers.ring import ReplayRing

__all__ = ["PublisherLoop"]

_log = logging.getLogger("kvrouter_publishers")

TURN_BATCHES_MAX = 64
"""Live batches sent before replay requests get their turn."""
IDLE_POLL_MILLISECONDS = 1000


class PublisherLoop:
    """Runs until `stop` is called, then until the outbox is empty or its deadline has passed."""

    def __init__(
        self,
        *,
        live: zmq.Socket[bytes],
        replays: ReplayServer | None,
        outbox: Outbox,
        ring: ReplayRing,
        counters: Counters,
        topic: bytes,
        rank: int,
        encoding: Literal["map", "array"],
    ) -> None:
        self._live, self._replays, self._outbox, self._ring = live, replays, outbox, ring
        self._counters, self._topic, self._rank = counters, topic, rank
        self._encoding: Literal["map", "array"] = encoding
        self._bell, self._bell_pull = socket.socketpair()
        self._bell.setblocking(False)  # noqa: FBT003 - positional in the standard library
        self._bell_pull.setblocking(False)  # noqa: FBT003 - positional in the standard library
        self._stop_at: float | None = None
        self.next_sequence = 0
        self.sleeping = False
        self.running = True

    def ring_bell(self) -> None:
        """Wake the thread if it sleeps; never waits. Called from any thread."""
        self.sleeping = False
        try:
            self._bell.send(b"\0")
        except OSError:
            return  # The bell is already ringing (its buffer is full), or the thread has ended.

    def stop(self, *, deadline: float) -> None:
        """Ask the thread to end by `deadline`, in monotonic seconds."""
        self._stop_at = deadline
        self.ring_bell()

    def run(self) -> None:
        """The thread's body: one supervised edge, so that a fault is counted and told instead of vanishing."""
        try:
            poller = self._poller()
            while not self._is_finished():
                self._turn(poller)
        except Exception:  # noqa: BLE001 - counted, logged, and shown by `statistics`
            self._counters.crashes += 1
            _log.exception("kvrouter_publisher_stopped")
        finally:
            self.running = False
            self._close()

    def _poller(self) -> zmq.Poller:
        poller = zmq.Poller()
        poller.register(self._bell_pull.fileno(), zmq.POLLIN)
        poller.register(self._live, zmq.POLLIN)  # Never readable, but polling lets it handle new subscriptions.
        if self._replays is not None:
            poller.register(self._replays.socket, zmq.POLLIN)
        return poller

    def _is_finished(self) -> bool:
        return self._stop_at is not None and (not self._outbox or time.monotonic() >= self._stop_at)

    def _turn(self, poller: zmq.Poller) -> None:
        for _ in range(TURN_BATCHES_MAX):
            parcel = self._outbox.take()
            if parcel is None:
                break
            self._publish(parcel)
        if self._replays is not None:
            self._replays.advance(time.monotonic())
        self._wait(poller)

    def _wait(self, poller: zmq.Poller) -> None:
        """Sleep until there is work: a batch, a replay request, or a replay in progress."""
        timeout = IDLE_POLL_MILLISECONDS if self._replays is None else self._replays.poll_milliseconds()
        timeout = IDLE_POLL_MILLISECONDS if timeout is None else timeout
        self.sleeping = True  # First say that we sleep, then look once more: `publish` does it the other way round.
        ready = dict(poller.poll(0 if self._outbox or self._stop_at is not None else timeout))
        self.sleeping = False
        if self._bell_pull.fileno() in ready:
            self._bell_pull.recv(4096)
        if self._replays is not None and self._replays.socket in ready:
            self._replays.accept()

    def _publish(self, parcel: Parcel) -> None:
        if parcel.lost_batches:
            self._counters.batches_dropped += parcel.lost_batches
            self._counters.events_dropped_outbox_full += parcel.lost_events
            self._announce_loss(parcel.timestamp, f"outbox full, {parcel.lost_batches} batches dropped")
        try:
            payload = self._encode(parcel.timestamp, parcel.events)
        except Exception:  # noqa: BLE001 - whatever an engine hands us must not end the stream; it is counted below
            self._publish_encodable(parcel)
        else:
            self._send(payload, len(parcel.events))

    def _publish_encodable(self, parcel: Parcel) -> None:
        """Publish what can be encoded of a batch that cannot.

        A store that we drop makes consumers believe in less than there is. Any other event that we drop would
        make them believe in more, so the loss is stated.
        """
        good: list[Event] = []
        claims_too_much = False
        for event in parcel.events:
            try:
                self._encode(parcel.timestamp, [event])
                good.append(event)
            except Exception:  # noqa: BLE001 - see above
                self._counters.events_dropped_unencodable += 1
                claims_too_much |= not isinstance(event, BlockStored)
        if claims_too_much:
            self._announce_loss(parcel.timestamp, "an event could not be encoded")
        if good:
            self._send(self._encode(parcel.timestamp, good), len(good))

    def _announce_loss(self, timestamp: float, reason: str) -> None:
        """Make every kind of consumer forget what may no longer be true.

        The skipped number shows careful consumers that something is missing (their replay cannot fill it, so they
        drop the rank's state and count it). `AllBlocksCleared` tells those that never look at numbers.
        """
        self.next_sequence += 1
        self._send(self._encode(timestamp, [AllBlocksCleared()]), 1)
        self._counters.losses_announced += 1
        losses = self._counters.losses_announced
        if losses & (losses - 1) == 0:  # The 1st, 2nd, 4th, 8th, ...: a guest does not flood its host's log.
            _log.warning("kvrouter_publisher_lost_events: %s; subscribers forget this rank (loss %d)", reason, losses)

    def _send(self, payload: bytes, events: int) -> None:
        sequence = self.next_sequence
        self._live.send_multipart(live_frames(self._topic, sequence, payload))
        self.next_sequence = sequence + 1
        self._ring.add(sequence, payload)
        self._counters.batches_published += 1
        self._counters.events_published += events
        self._counters.bytes_published += len(payload)

    def _encode(self, timestamp: float, events: Sequence[Event]) -> bytes:
        batch = EventBatch(timestamp=timestamp, events=tuple(events), data_parallel_rank=self._rank, skipped={})
        return encode_batch(batch, encoding=self._encoding)

    def _close(self) -> None:
        """Close in the thread that owns the sockets; what was sent has until the deadline to reach the network."""
        now = time.monotonic()
        linger = max(0, round(((self._stop_at or now) - now) * 1000))
        self._live.close(linger=linger)
        if self._replays is not None:
            self._replays.socket.close(linger=linger)
        self._bell.close()
        self._bell_pull.close()
