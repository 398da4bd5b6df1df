"""What every publisher does, whatever carries its events: numbers batches, remembers them, knows what the cache holds.

No sockets, no threads, no clock but the stamp of each batch. A transport takes frames and sends them; `threaded` is the
thread in which it does.
"""

import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, cast

from kvrouter.errors import SettingsError, WireError
from kvrouter.events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    Event,
    EventBatch,
    Source,
    encode_batch,
)
from kvrouter.events.decode import EVENTS_PER_BATCH_MAX, PAYLOAD_BYTES_MAX
from kvrouter.events.digest import DigestRow
from kvrouter.events.encode import Encoding
from kvrouter.events.envelope import DIGEST_ROWS_MAX
from kvrouter.events.envelope_stream import EnvelopeWriter
from kvrouter_publishers.counters import Counters
from kvrouter_publishers.net_changes import NetChanges
from kvrouter_publishers.outbox import Outbox
from kvrouter_publishers.places import Layout, Places
from kvrouter_publishers.resident_set import ResidentSet
from kvrouter_publishers.ring import ReplayRing
from kvrouter_publishers.split import halves

__all__ = ["Frame", "PublisherCore"]

_log = logging.getLogger("kvrouter_publishers")

BATCH_BYTES_MIN: Final = 1024
SNAPSHOT_PART_BYTES: Final = 1 << 20
_UNREADABLE = cast("tuple[Event, ...]", (None,))
"""Stands for a step whose events could not even be listed."""


class Frame(NamedTuple):
    """One batch of the stream, as it is sent: its number, its bytes, and how many events are in it."""

    sequence: int
    payload: bytes
    events: int


class _Parcel(NamedTuple):
    """What is published next: a step of the engine, or what many steps changed in sum."""

    timestamp: float
    events: Sequence[Event]
    unread: Sequence[Event]
    sum: NetChanges | None


class PublisherCore:
    """One rank's stream of events, from the engine's steps to the frames of a transport.

    Args:
        worker_id: who publishes; part of every native frame, unused without `native`.
        rank: data-parallel rank; part of every batch.
        native: whether frames are envelopes (docs/wire.md) or bare batches, as engines send them.
        encoding: how events are written in a batch; `kvrouter.events.encode`.
        buffer_steps: frames kept for `since`.
        buffer_bytes: bytes kept for `since`; whichever bound is reached first counts.
        max_queue_size: engine steps that wait for `take`.
        batch_bytes_max: no batch is larger: steps are divided if they must be. A native frame is a batch and at most
            4096 bytes. None is the wire's own bound, 64 MiB.
        digest_seconds: how often a native frame says what the cache holds; None never.
        snapshots: whether to follow what the cache holds, for `snapshot` and digests: about 300 bytes a block.

    Threading: the engine's thread calls `put`; one other thread, the transport's, everything else. `counters` may be
    read anywhere.

    The first frame of a native stream has no event. It tells consumers of the new life at once, which before its
    first event is as empty as it says.

    Raises:
        SettingsError: a setting is out of its bounds.
    """

    def __init__(
        self,
        *,
        worker_id: str,
        rank: int,
        native: bool = True,
        encoding: Encoding = "map",
        buffer_steps: int = 10_000,
        buffer_bytes: int = 256 << 20,
        max_queue_size: int = 100_000,
        batch_bytes_max: int | None = None,
        digest_seconds: float | None = 30.0,
        snapshots: bool = True,
    ) -> None:
        if batch_bytes_max is not None and batch_bytes_max < BATCH_BYTES_MIN:
            raise SettingsError(f"batch_bytes_max is {batch_bytes_max}; it must be at least {BATCH_BYTES_MIN}")
        if digest_seconds is not None and not digest_seconds > 0:
            raise SettingsError(f"digest_seconds is {digest_seconds}; it must be above 0, or None")
        if max_queue_size < 1:
            raise SettingsError(f"max_queue_size is {max_queue_size}; it must be at least 1")
        self.source = Source(worker_id, rank)
        self.incarnation = int.from_bytes(os.urandom(8))
        self._writer = self._make_writer() if native else None
        self.counters = Counters()
        self.next_sequence = 0
        self._native, self._encoding = native, encoding
        self._batch_bytes_max = min(batch_bytes_max or PAYLOAD_BYTES_MAX, PAYLOAD_BYTES_MAX)
        self._digest_seconds = digest_seconds if native and snapshots else None
        self._digest_due = float("-inf")
        self._outbox = Outbox(max_queue_size, self._sum_up)
        self._ring = ReplayRing(batches_max=buffer_steps, bytes_max=buffer_bytes)
        self._resident = ResidentSet() if snapshots else None
        self._places, self._layout = Places(), Layout()  # Where there is no resident set; it has its own.
        self._ready: deque[Frame] = deque()

    def put(self, events: Sequence[Event]) -> None:
        """Add the events of one engine step; an empty one adds nothing. Never waits, never raises."""
        try:
            batch = tuple(events)
        except Exception:  # noqa: BLE001 - a guest never raises into its host; `take` counts it and states a loss
            batch = _UNREADABLE
        if batch:
            self._outbox.put(time.time(), batch)

    def take(self, now: float) -> Frame | None:
        """Return the next frame to send, None if there is none; `now` is monotonic seconds.

        It is remembered already: `since` and `snapshot` include it. So a transport that could not send it may
        forget it and ask `since` later.
        """
        if not self._ready:
            self._refill(now)
        return self._ready.popleft() if self._ready else None

    def pending(self, now: float | None = None) -> bool:
        """Whether `take` has something; a digest may be due at `now`, which is this moment unless it is given."""
        return self.has_batches() or self.idle_seconds(now) <= 0.0

    def has_batches(self) -> bool:
        """Whether `take` has events, as opposed to a digest; what a publisher that closes still has to send."""
        return bool(self._ready or self._outbox)

    def idle_seconds(self, now: float | None = None) -> float:
        """Return how long `take` has nothing unless something is put; infinity if for ever."""
        if self._native and not self.next_sequence:
            return 0.0
        if self._digest_seconds is None:
            return float("inf")
        return max(0.0, self._digest_due - (time.monotonic() if now is None else now))

    def limit_batches(self, bytes_max: int) -> None:
        """Divide batches to at most `bytes_max` from now on, if that is less than before; a transport found its own."""
        self._batch_bytes_max = max(BATCH_BYTES_MIN, min(self._batch_bytes_max, bytes_max))

    def since(self, sequence: int) -> list[tuple[int, bytes]]:
        """Return the kept frames from number `sequence` on, oldest first; they may begin above it."""
        return self._ring.since(sequence)

    def oldest_sequence(self) -> int | None:
        """Return the number of the oldest kept frame, None if there is none."""
        return self._ring.oldest_sequence()

    def snapshot(self, *, part_bytes_max: int = SNAPSHOT_PART_BYTES) -> list[bytes]:
        """Return the frames of a snapshot: the whole state after batch `next_sequence - 1`.

        No batch in them is larger than `part_bytes_max`, but for events that cannot be divided. The list is empty
        before the first frame was taken, and where there are no snapshots: without `snapshots` or `native`.
        """
        frames: list[bytes] = []
        for frames in self.prepare_snapshot(part_bytes_max=part_bytes_max):  # noqa: B007 - the last one is wanted
            pass
        return frames

    def prepare_snapshot(self, *, part_bytes_max: int = SNAPSHOT_PART_BYTES) -> Iterator[list[bytes]]:
        """Make a snapshot of this moment step by step, a part in each, while the stream goes on.

        Yields an empty list after every step but the last, then the frames, as `snapshot` returns them; nothing at
        all where there is no snapshot.
        """
        if self._resident is None or self._writer is None or not self.next_sequence:
            return iter(())
        return self._snapshot_steps(
            self._writer, self._resident.copy(), self.next_sequence - 1, part_bytes_max=part_bytes_max
        )

    def _snapshot_steps(
        self, writer: EnvelopeWriter, resident: ResidentSet, sequence: int, *, part_bytes_max: int
    ) -> Iterator[list[bytes]]:
        batches: list[bytes] = []
        for batch in self._snapshot_batches(resident, part_bytes_max):
            batches.append(batch)
            yield []
        self.counters.snapshots_taken += 1
        now, last = time.time(), len(batches) - 1
        yield [
            writer.write_any(
                sequence,
                now,
                batch,
                snapshot=(part, len(batches)),
                digest=_bounded(resident.digest()) if part == last else None,
            )
            for part, batch in enumerate(batches)
        ]

    def statistics(self) -> dict[str, int]:
        """Return the state now, as plain integers; counts are in `counters`."""
        return {
            "outbox_batches": len(self._outbox) + len(self._ready),
            "replayable_batches": len(self._ring),
            "replayable_bytes": self._ring.bytes,
            "resident_blocks": 0 if self._resident is None else len(self._resident),
            "next_sequence": self.next_sequence,
        }

    def _make_writer(self) -> EnvelopeWriter:
        try:
            return EnvelopeWriter(self.source, self.incarnation)
        except WireError as error:
            raise SettingsError(f"cannot publish as worker {self.source.worker_id!r}: {error}") from error

    def _refill(self, now: float) -> None:
        if self._native and not self.next_sequence:
            self._send(self._encode(time.time(), ()), 0, self._digest_at(now))
            return
        parcel = self._next_parcel()
        if parcel is not None:
            self._publish(parcel, now)
        elif self._digest_seconds is not None and now >= self._digest_due:
            self._send(self._encode(time.time(), ()), 0, self._digest_at(now))

    def _sum_up(self) -> NetChanges:
        resident = self._resident
        if resident is None:
            return NetChanges(self._places, self._layout, None)
        return NetChanges(resident.places, resident.layout, resident)

    def _next_parcel(self) -> _Parcel | None:
        """Take a step, or the sum of steps, and follow it; no sum may begin before we have."""
        with self._outbox.lock:
            taken = self._outbox.take()
            if taken is None:
                return None
            timestamp, content = taken
            if self._resident is not None:
                return self._follow(self._resident, timestamp, content)
            if isinstance(content, NetChanges):
                self._places = content.places
            else:
                for event in content:  # What a sum of later steps must know of those before.
                    with contextlib.suppress(Exception):
                        if not isinstance(event, AllBlocksCleared):
                            self._places.place(event)
        events = tuple(content.events()) if isinstance(content, NetChanges) else content
        return _Parcel(timestamp, events, (), content if isinstance(content, NetChanges) else None)

    def _follow(self, resident: ResidentSet, timestamp: float, content: Sequence[Event] | NetChanges) -> _Parcel:
        if not isinstance(content, NetChanges):
            return _Parcel(timestamp, content, resident.apply(content), None)
        if content.lost:
            resident.forget()
        events = tuple(content.events())
        return _Parcel(timestamp, events, resident.apply(events), content)

    def _publish(self, parcel: _Parcel, now: float) -> None:
        if parcel.sum is not None:
            self.counters.compactions += 1
            self.counters.batches_compacted += parcel.sum.batches
            self.counters.events_dropped_unencodable += parcel.sum.unreadable
            if parcel.sum.lost:
                self._announce_loss(parcel.timestamp, forget=False)
        events, payload = self._readable(parcel)
        parts = list(self._parts(parcel.timestamp, events, payload, self._batch_bytes_max)) if events else []
        for number, (part, count) in enumerate(parts, 1):
            self._send(part, count, self._digest_at(now) if number == len(parts) else None)

    def _readable(self, parcel: _Parcel) -> tuple[Sequence[Event], bytes]:
        """Return what of a step can be published, and its bytes."""
        events, stamp = parcel.events, parcel.timestamp
        try:
            if not parcel.unread:
                return events, self._encode(stamp, events)
        except Exception:  # noqa: BLE001, S110 - whatever an engine hands us must not end the stream; it is counted below
            pass
        good = self._salvage(stamp, events, parcel.unread)
        return good, self._encode(stamp, good)

    def _salvage(self, timestamp: float, events: Sequence[Event], bad: Sequence[Event]) -> list[Event]:
        """Return what can be published of a step that cannot be published as it is.

        A store that we drop makes consumers believe in less than there is. Any other event that we drop would
        make them believe in more, so the loss is stated.
        """
        good: list[Event] = []
        claims_too_much = False
        for event in events:
            unread = any(event is other for other in bad)
            if not unread and self._is_encodable(timestamp, event):
                good.append(event)
                continue
            self.counters.events_dropped_unencodable += 1
            if not isinstance(event, BlockStored):
                claims_too_much = True
            elif not unread:
                self._take_back(event)
        if claims_too_much:
            self._announce_loss(timestamp)
            if self._resident is not None:
                self._resident.apply(good)
        return good

    def _is_encodable(self, timestamp: float, event: Event) -> bool:
        try:
            self._encode(timestamp, (event,))
        except Exception:  # noqa: BLE001 - as in `_readable`
            return False
        return True

    def _take_back(self, event: BlockStored) -> None:
        """The resident set has followed a store that is not published after all."""
        if self._resident is not None:
            self._resident.apply(
                [BlockRemoved(block_hashes=event.block_hashes, medium=event.medium, group_idx=event.group_idx)]
            )

    def _parts(
        self, timestamp: float, events: Sequence[Event], payload: bytes, bytes_max: int
    ) -> Iterator[tuple[bytes, int]]:
        """Return `payload`, the encoded `events`, in parts of at most `bytes_max`, each with its number of events."""
        if len(payload) <= bytes_max and len(events) <= EVENTS_PER_BATCH_MAX:
            yield payload, len(events)
            return
        if len(events) > 1:
            middle = len(events) // 2
            divided: Sequence[Sequence[Event]] = (events[:middle], events[middle:])
        else:
            pair = halves(events[0])
            if pair is None:
                self.counters.events_dropped_unencodable += 1
                assert isinstance(events[0], BlockStored), "all others can be divided, or are small"
                self._take_back(events[0])
                return
            divided = ((pair[0],), (pair[1],))
        for half in divided:
            yield from self._parts(timestamp, half, self._encode(timestamp, half), bytes_max)

    def _announce_loss(self, timestamp: float, *, forget: bool = True) -> None:
        """Make every kind of consumer forget what may no longer be true.

        The skipped number shows careful consumers that something is missing (their replay cannot fill it, so they
        drop the rank's state and count it). `AllBlocksCleared` tells those that never look at numbers.
        """
        self.next_sequence += 1
        if self._resident is not None and forget:
            self._resident.forget()
        self._send(self._encode(timestamp, [AllBlocksCleared()]), 1, None)
        self.counters.losses_announced += 1
        losses = self.counters.losses_announced
        if losses & (losses - 1) == 0:  # The 1st, 2nd, 4th, 8th, ...: a guest does not flood its host's log.
            _log.warning(
                "kvrouter_publisher_lost_events: an event could not be encoded; subscribers forget this rank (loss %d)",
                losses,
            )

    def _send(self, batch: bytes, events: int, digest: tuple[DigestRow, ...] | None) -> None:
        sequence = self.next_sequence
        payload = batch
        if self._writer is not None and digest is None:
            payload = self._writer.write(sequence, time.time(), batch)
        elif self._writer is not None:
            payload = self._writer.write_any(sequence, time.time(), batch, digest=digest)
        self.next_sequence = sequence + 1
        self._ring.add(sequence, payload)
        self._ready.append(Frame(sequence, payload, events))
        counters = self.counters
        counters.batches_published += 1
        counters.events_published += events
        counters.bytes_published += len(payload)
        counters.digests_published += digest is not None

    def _digest_at(self, now: float) -> tuple[DigestRow, ...] | None:
        """Return the digest if one is due; the next is due later."""
        if self._digest_seconds is None or self._resident is None or now < self._digest_due:
            return None
        self._digest_due = now + self._digest_seconds
        return _bounded(self._resident.digest())

    def _snapshot_batches(self, resident: ResidentSet, bytes_max: int) -> Iterator[bytes]:
        """Return the batches of a snapshot, filled by the most that their events can take."""
        now = time.time()
        events: list[Event] = []
        estimate = 0
        for event in resident.snapshot():
            size = _bytes_at_most(event)
            if events and estimate + size > bytes_max:
                yield from (part for part, _ in self._parts(now, events, self._encode(now, events), bytes_max))
                events, estimate = [], 0
            events.append(event)
            estimate += size
        yield from (part for part, _ in self._parts(now, events, self._encode(now, events), bytes_max))

    def _encode(self, timestamp: float, events: Sequence[Event]) -> bytes:
        batch = EventBatch(timestamp=timestamp, events=tuple(events), data_parallel_rank=self.source.rank, skipped={})
        return encode_batch(batch, encoding=self._encoding)


def _bounded(rows: tuple[DigestRow, ...]) -> tuple[DigestRow, ...] | None:
    """Return the rows of a digest, unless the wire has no room for them: no engine is known to have so many groups."""
    return rows if len(rows) <= DIGEST_ROWS_MAX else None


def _bytes_at_most(event: Event) -> int:
    """Return a bound on an ordinary event's bytes in a batch, without encoding it."""
    size = 256
    if not isinstance(event, AllBlocksCleared):
        size += 9 * len(event.block_hashes)
    if isinstance(event, BlockStored):
        size += 5 * len(event.token_ids)
    return size
