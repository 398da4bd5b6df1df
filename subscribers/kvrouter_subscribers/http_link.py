"""One source over HTTP: a cursor, and a loop of long polls that moves it.

Within a poll nothing can be lost or reordered: each one asks for what follows the last batch that was handed over, and
the publisher says so (410) when it cannot go on from there. What a batch means, and when something must be replayed or
replaced by a snapshot, is the sink's to judge; the bytes are `http_client`'s.
"""

import asyncio
import random
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Final

from kvrouter.errors import KvrouterError, WireError
from kvrouter.events import Envelope, Source, decode_envelope
from kvrouter.events.load import LoadReport, load_from_record
from kvrouter_subscribers.http_channel import HttpChannel, InterruptedPollError, explained, json_of, number_of
from kvrouter_subscribers.http_client import HttpAddress, HttpError, HttpResponse
from kvrouter_subscribers.http_frames import split_frames
from kvrouter_subscribers.http_limits import HttpLimits
from kvrouter_subscribers.sink_edge import SinkEdge
from kvrouter_subscribers.subscriber import EventSink, Receipt, TransportStatus

__all__ = ["HttpLink"]

_NEXT: Final = "kv-next-sequence"
_OLDEST: Final = "kv-oldest-sequence"
_LIFE: Final = "kv-incarnation"
_NOT_TAKEN: Final = frozenset({"duplicate", "quarantined", "unknown_source"})
_ERROR_BYTES_MAX: Final = 64 * 1024
_LOAD_BYTES_MAX: Final = 1 << 20
_LEAST_WAIT_SECONDS: Final = 0.01
_MORE_SELDOM: Final = 10.0
"""A publisher without a load report is asked for one so many times more seldom."""


class HttpLink:
    """Follows one source while `run` runs."""

    def __init__(
        self,
        source: Source,
        endpoint: str,
        *,
        token: str | None,
        sink: EventSink,
        clock: Callable[[], float],
        limits: HttpLimits,
        tls: ssl.SSLContext | None,
        jitter: random.Random,
        on_load: Callable[[LoadReport], None] | None,
    ) -> None:
        self.source, self.endpoint = source, endpoint
        self._channel = HttpChannel(HttpAddress.parse(endpoint, token=token), limits, tls)
        self._who: dict[str, object] = {"worker": source.worker_id, "rank": source.rank}
        self._sink, self._clock, self._limits = SinkEdge(source, sink, self._sink_failed), clock, limits
        self._jitter, self._on_load = jitter, on_load
        self._connected = self._ended = False
        self._after = -1
        self._life: int | None = None
        self._replaying = False
        self._replay_until: int | None = None
        self._snapshot_wanted = False
        self._snapshot_attempts = 0
        self._replay_pace = _Pace(limits, jitter)
        self._snapshot_pace = _Pace(limits, jitter)
        self._load_due = 0.0
        self._last_error: str | None = None
        self._messages = self._bytes = self._malformed = 0
        self._connects = self._disconnects = self._replays = self._replays_failed = self._replayed_batches = 0
        self._snapshots = self._snapshots_failed = 0

    def status(self) -> TransportStatus:
        """Return what is known about the connection."""
        return TransportStatus(
            transport="http",
            endpoint=self.endpoint,
            replay_endpoint=None,
            topic="",
            connected=self._connected,
            messages=self._messages,
            bytes=self._bytes,
            malformed=self._malformed,
            sink_errors=self._sink.errors,
            connects=self._connects,
            disconnects=self._disconnects,
            replaying=self._replaying,
            replays=self._replays,
            replays_failed=self._replays_failed,
            replayed_batches=self._replayed_batches,
            probes=0,
            tail_losses=0,
            last_error=self._last_error,
            snapshots=self._snapshots,
            snapshots_failed=self._snapshots_failed,
        )

    def resync(self) -> None:
        """Ask for the whole state as soon as possible; a poll that waits is given up for it."""
        self._snapshot_wanted = True
        self._snapshot_pace.reset()
        self._channel.interrupt()

    def end(self) -> None:
        """Hand nothing more over; whoever runs us is about to be cancelled."""
        self._ended = True

    async def run(self) -> None:
        """Follow the source, with pauses after failures, until cancelled."""
        limits, failures = self._limits, 0
        try:
            while True:
                began = self._clock()
                try:
                    await self._follow()
                except (KvrouterError, OSError) as error:
                    self._last_error = f"{self.endpoint}: {error}"
                except Exception as error:  # noqa: BLE001 - a second edge: a bug must not end the other sources
                    self._sink.failed(error)
                self._lost()
                failures = 0 if self._clock() - began > 2 * limits.reconnect_seconds_max else failures + 1
                pause = min(limits.reconnect_seconds_max, limits.reconnect_seconds * 2 ** min(max(0, failures - 1), 16))
                await asyncio.sleep(pause * self._jitter.uniform(0.5, 1.0))
        finally:
            self._connected = self._replaying = False
            await self._channel.close()

    async def _follow(self) -> None:
        """Find out where the stream stands, then poll for ever; raises when the publisher cannot be reached."""
        position = await self._channel.ask("/kv_events", self._who, wait=0.0, bytes_max=_ERROR_BYTES_MAX)
        if position.status != 204 or _LIFE not in position.headers or _NEXT not in position.headers:
            raise HttpError(explained(position))
        self._arrived()
        while True:
            try:
                if self._snapshot_wanted and self._clock() >= self._snapshot_pace.due:
                    await self._take_snapshot()
                await self._poll()
                await self._ask_load()
            except InterruptedPollError:
                continue

    async def _poll(self) -> None:
        """Ask for what follows the cursor, and hand it over."""
        wait = self._limits.poll_seconds
        if self._replaying:
            wait = 0.0
            await self._sleep_until(self._replay_pace.due)
        if self._snapshot_wanted:
            wait = min(wait, max(_LEAST_WAIT_SECONDS, self._snapshot_pace.due - self._clock()))
        if self._on_load is not None:
            wait = min(wait, max(_LEAST_WAIT_SECONDS, self._load_due - self._clock()))
        query: dict[str, object] = {**self._who, "after": self._after, "wait": f"{wait:.3f}"}
        if self._life is not None:
            query["incarnation"] = f"{self._life:016x}"
        answer = await self._channel.ask(
            "/kv_events", query, wait=wait, bytes_max=self._limits.answer_bytes_max, interruptible=True
        )
        if answer.status == 410:
            await self._start_over(answer)
        elif answer.status in {200, 204}:
            await self._take(answer)
        else:
            raise HttpError(explained(answer))

    async def _take(self, answer: HttpResponse) -> None:
        """Hand over an answer's batches, in turns with whatever else the event loop has to do."""
        following = number_of(answer, _NEXT)
        if self._replaying and self._replay_until is None:
            self._replay_until = following
        until = time.perf_counter() + self._limits.turn_seconds
        for envelope in self._envelopes(answer):
            if self._replay_until is not None and envelope.sequence >= self._replay_until and not self._finish_replay():
                return
            if not self._deliver(envelope):
                return
            if time.perf_counter() >= until:
                await asyncio.sleep(0)
                until = time.perf_counter() + self._limits.turn_seconds
            if self._ended:
                return
        if self._replay_until is not None and self._after + 1 >= self._replay_until:
            self._finish_replay()

    def _envelopes(self, answer: HttpResponse) -> Iterator[Envelope]:
        """Yield what an answer holds, as long as it is this source's and goes forward.

        Raises:
            HttpError: it does not, so that nothing more of this connection can be believed.
        """
        self._bytes += len(answer.body)
        try:
            for frame in split_frames(answer.body):
                self._messages += 1
                yield self._own(decode_envelope(frame))
        except WireError as error:
            self._malformed += 1
            raise HttpError(str(error)) from error

    def _own(self, envelope: Envelope) -> Envelope:
        if envelope.source != self.source:
            raise WireError(f"a batch of {'/'.join(map(str, envelope.source))}", reason="other_source")
        return envelope

    def _deliver(self, envelope: Envelope) -> bool:
        """Hand over one batch; returns whether the next one is wanted as well."""
        if self._life == envelope.incarnation and envelope.sequence <= self._after:
            self._malformed += 1
            raise HttpError(f"batch {envelope.sequence} came where one after {self._after} was asked for")
        self._after, self._life = envelope.sequence, envelope.incarnation
        self._replayed_batches += self._replaying
        receipt = self._sink.receive(
            envelope.sequence,
            envelope.payload,
            now=self._clock(),
            replayed=self._replaying,
            incarnation=envelope.incarnation,
            digest=envelope.digest,
        )
        return receipt is None or self._heed(receipt)

    def _heed(self, receipt: Receipt) -> bool:
        """Do what a receipt asks for; returns whether to go on from the cursor as it was."""
        if receipt.snapshot_wanted:
            self._snapshot_wanted = True
        if receipt.replay_from is not None:
            self._begin_replay(receipt.replay_from)
        return receipt.replay_from is None and not (self._snapshot_wanted and self._clock() >= self._snapshot_pace.due)

    def _begin_replay(self, start: int) -> None:
        self._after = start - 1
        self._replaying, self._replay_until = True, None
        self._replays += 1
        self._replay_pace.begin(self._clock())

    def _finish_replay(self) -> bool:
        """Tell the sink that it has all that was missing; returns whether it is content."""
        self._replaying, self._replay_until = False, None
        receipt = self._sink.replay_finished(now=self._clock(), complete=True)
        return receipt is None or self._heed(receipt)

    async def _start_over(self, answer: HttpResponse) -> None:
        """The stream cannot be continued from the cursor: take the whole state, or else all that is kept."""
        following = number_of(answer, _NEXT)
        if following is None:
            raise HttpError("a 410 that does not say where the stream stands")
        if following > 0:  # Who has published nothing has no snapshot, and all that there is can be replayed.
            self._snapshot_wanted = True
            await self._sleep_until(self._snapshot_pace.due)
            if await self._take_snapshot():
                return
        oldest = number_of(answer, _OLDEST)
        start = following if oldest is None else oldest
        self._life = None
        if self._replaying:
            self._replays_failed += 1
            self._begin_replay(start)
        else:  # The sink did not ask for a replay; it will when it sees where we go on.
            self._after = start - 1

    async def _take_snapshot(self) -> bool:
        """Get the whole state and hand it over; returns whether the sink has it now.

        A failure ends the connection and is tried again over the next one, a few times; then the sink is told.
        """
        self._snapshot_attempts += 1
        self._snapshot_pace.begin(self._clock())
        limits, query = self._limits, dict(self._who)
        if self._life is not None:
            query |= {"after": self._after, "incarnation": f"{self._life:016x}"}
        try:
            answer = await self._channel.ask(
                "/kv_snapshot", query, wait=limits.snapshot_seconds, bytes_max=limits.snapshot_bytes_max
            )
            if answer.status != 404:
                return self._hand_over(answer)
            self._last_error = f"{self.endpoint}: {explained(answer)}"
        except HttpError as error:
            if self._snapshot_attempts < limits.snapshot_attempts:
                raise
            self._last_error = f"{self.endpoint}: {error}"
        self._snapshot_wanted = False
        self._snapshot_attempts = 0
        self._snapshots_failed += 1
        self._sink.snapshot_failed(now=self._clock())
        return False

    def _hand_over(self, answer: HttpResponse) -> bool:
        """Give the sink a snapshot, and go on after it; returns whether the sink took it.

        Raises:
            HttpError: this is not a whole one.
        """
        if answer.status != 200:
            raise HttpError(explained(answer))
        parts = list(self._envelopes(answer))
        _check_parts(parts)
        last = parts[-1]
        self._snapshots += 1
        self._snapshot_wanted, self._snapshot_attempts = False, 0
        receipt = self._sink.snapshot(
            [part.payload for part in parts],
            sequence=last.sequence,
            incarnation=last.incarnation,
            now=self._clock(),
        )
        if receipt is None:
            return False
        if receipt.outcome in _NOT_TAKEN:
            self._heed(receipt)
            return False
        self._after, self._life = last.sequence, last.incarnation
        if self._heed(receipt) and self._replaying:
            self._finish_replay()  # What it was to bring is in the snapshot.
        return True

    async def _ask_load(self) -> None:
        """Get the source's load report where somebody wants it; that there is none is no failure."""
        if self._on_load is None or self._clock() < self._load_due:
            return
        answer = await self._channel.ask("/kv_metrics", self._who, wait=0.0, bytes_max=_LOAD_BYTES_MAX)
        reports = json_of(answer).get("reports")
        pause = self._limits.load_seconds * (1.0 if reports else _MORE_SELDOM)
        self._load_due = self._clock() + pause
        for record in reports if isinstance(reports, list) else ():
            try:
                report = load_from_record(record)
            except WireError:
                self._malformed += 1
                continue
            if report.source == self.source:
                self._sink.load(report, self._on_load)

    def _arrived(self) -> None:
        self._connected = True
        self._connects += 1
        self._replaying, self._replay_until = False, None
        receipt = self._sink.connected(now=self._clock())
        if receipt is not None:
            self._heed(receipt)

    def _lost(self) -> None:
        self._channel.drop()
        if not self._connected:
            return
        self._connected = self._replaying = False
        self._replay_until = None
        self._disconnects += 1
        self._sink.disconnected(now=self._clock())

    async def _sleep_until(self, due: float) -> None:
        await asyncio.sleep(max(0.0, due - self._clock()))

    def _sink_failed(self, why: str) -> None:
        self._last_error = why


class _Pace:
    """Spaces out what a source may want again and again: two at once, then ever more slowly until it rests."""

    def __init__(self, limits: HttpLimits, jitter: random.Random) -> None:
        self._first, self._most, self._jitter = limits.retry_pause_seconds, limits.retry_pause_seconds_max, jitter
        self.reset()

    def reset(self) -> None:
        """Let the next one begin at once."""
        self.due = 0.0
        self._hurried = 0
        self._began = float("-inf")

    def begin(self, now: float) -> None:
        """Note that one is wanted or done now; `due` is when the next thing of it may begin."""
        self._hurried = self._hurried + 1 if now - self._began < 2 * self._most else 0
        self._began = now
        if self._hurried < 2:
            self.due = now
        else:
            pause = min(self._most, self._first * 2 ** min(self._hurried - 2, 16))
            self.due = now + pause * self._jitter.uniform(0.5, 1.0)


def _check_parts(parts: list[Envelope]) -> None:
    """See that these are all parts of one snapshot.

    Raises:
        HttpError: they are not.
    """
    if not parts:
        raise HttpError("a snapshot without parts")
    first = parts[0]
    for number, part in enumerate(parts):
        if part.snapshot != (number, len(parts)):
            raise HttpError(f"part {number} of the snapshot is missing")
        if (part.sequence, part.incarnation) != (first.sequence, first.incarnation):
            raise HttpError("the parts are of different snapshots")
