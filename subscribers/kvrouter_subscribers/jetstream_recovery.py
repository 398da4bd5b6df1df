"""Gets a source's missing batches back: the stream read again where that can help, else the publisher's snapshot.

At most one wish of a source is served at a time. What a replay or snapshot means for the index is the sink's to judge.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Literal

import msgpack
from nats.aio.client import Client
from nats.errors import Error, NoRespondersError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from kvrouter.errors import WireError
from kvrouter.events import Envelope, Source, decode_envelope, is_envelope
from kvrouter.events.nats_names import state_subject
from kvrouter_subscribers.jetstream_limits import JetStreamLimits
from kvrouter_subscribers.jetstream_pull import Place, Puller
from kvrouter_subscribers.jetstream_source import FollowedSource
from kvrouter_subscribers.subscriber import Receipt

__all__ = ["Recovery"]

_PARTS_AHEAD = 4
_EPHEMERAL_SECONDS = 30.0


@dataclass(slots=True)
class _Reading:
    """What one source wants of the next reading of the stream, and what was found."""

    followed: FollowedSource
    start: int
    done: asyncio.Future[bool]
    lowest: int | None = None


class Recovery:
    """Serves the wishes of the sources of one stream over one connection.

    `position` says how far the stream was read live; what stands behind it comes without being asked for.
    """

    def __init__(
        self,
        client: Client,
        stream: str,
        *,
        limits: JetStreamLimits,
        tasks: asyncio.TaskGroup,
        position: Callable[[], int],
    ) -> None:
        self._client, self._stream, self._limits, self._tasks = client, stream, limits, tasks
        self._position = position
        self._serving: dict[Source, asyncio.Task[None]] = {}
        self._snapshots = asyncio.Semaphore(limits.snapshots_max)
        self._readings: list[_Reading] = []
        self._reader: asyncio.Task[None] | None = None
        self._closed = False

    def answer(self, followed: FollowedSource, receipt: Receipt | None) -> None:
        """Do what the sink's answer asks for."""
        if receipt is None:
            return
        followed.snapshot_wishes += receipt.snapshot_wanted
        if receipt.replay_from is not None and followed.catching_up is None:
            last = followed.last
            whole = receipt.outcome == "restarted" and last is not None and followed.whole_from == 0
            if whole:  # Another life, and we saw it from its first batch on: nothing of it is missing.
                end = followed.replay_finished(complete=True)
                if end is not None:
                    followed.snapshot_wishes += end.snapshot_wanted
                    receipt = end
            if receipt.replay_from is not None:
                followed.replay_wanted = receipt.replay_from
        self._serve(followed)

    def want_snapshot(self, followed: FollowedSource, *, instead_of: int | None = None) -> None:
        """Get the source's whole state; it answers for a replay from `instead_of` on, if the sink wanted one."""
        followed.snapshot_wishes += 1
        if instead_of is not None:
            followed.replay_wanted = instead_of
        self._serve(followed)

    def cancel(self, source: Source) -> None:
        """Give up what is under way for a source."""
        task = self._serving.pop(source, None)
        if task is not None:
            task.cancel()  # What it was to bring is asked for anew over the next connection.

    def close(self) -> None:
        """Give up everything that is under way: its connection is lost."""
        self._closed = True  # A task that is cancelled while an answer arrives does not notice it.
        for source in list(self._serving):
            self.cancel(source)
        if self._reader is not None:
            self._reader.cancel()

    def _serve(self, followed: FollowedSource) -> None:
        wanted = followed.replay_wanted is not None or followed.snapshot_wanted
        if wanted and not self._closed and followed.source not in self._serving:
            work = self._until_content(followed)
            task = self._serving[followed.source] = self._tasks.create_task(work, name="jetstream-recovery")
            task.add_done_callback(lambda done: self._ended(followed, done))

    def _ended(self, followed: FollowedSource, task: asyncio.Task[None]) -> None:
        followed.replaying = False
        if self._serving.get(followed.source) is task:
            del self._serving[followed.source]

    async def _until_content(self, followed: FollowedSource) -> None:
        """Serve wishes until the sink has none, more and more slowly if what is done does not help."""
        limits, failures = self._limits, 0
        while not self._closed and (followed.replay_wanted is not None or followed.snapshot_wanted):
            followed.replaying = True
            helped = await self._serve_once(followed)
            # A snapshot that came and was not what the sink needs is no help either: it costs its publisher the most.
            failures = 0 if helped and not followed.snapshot_wanted else failures + 1
            if failures:
                pause = limits.recovery_pause_seconds * 2 ** min(failures - 1, 16)
                await asyncio.sleep(min(pause, limits.recovery_pause_seconds_max))

    async def _serve_once(self, followed: FollowedSource) -> bool:
        start, followed.replay_wanted = followed.replay_wanted, None
        filled = False
        if start is not None and not followed.snapshot_wanted:
            followed.replays += 1
            filled = await self._read_again(followed, start)
            followed.replays_failed += not filled
        if not filled:
            wishes = followed.snapshot_wishes  # Those that come meanwhile may want a newer one.
            outcome = await self._snapshot(followed)
            if outcome != "failed":
                followed.owes_snapshot = False
            if not followed.owes_snapshot:
                followed.snapshot_wishes_served = wishes
            filled = outcome == "taken" or (outcome == "empty" and start == 0)
            if not filled:
                followed.snapshots_failed += 1
                followed.snapshot_failed()
        if start is not None:
            self.answer(followed, followed.replay_finished(complete=filled))
        return filled

    async def _read_again(self, followed: FollowedSource, start: int) -> bool:
        """Deliver what the stream has of the source from `start` on; returns whether that begins there."""
        reading = _Reading(followed, start, asyncio.get_running_loop().create_future())
        self._readings.append(reading)
        if self._reader is None:
            self._reader = self._tasks.create_task(self._read_for_all(), name="jetstream-replay")
        return await reading.done

    async def _read_for_all(self) -> None:
        """Read the stream again, once for all sources that want it; who comes meanwhile waits for the next time."""
        try:
            while self._readings:
                readings, self._readings = self._readings, []
                wanted = {reading.followed.source: reading for reading in readings}
                try:
                    await self._read(wanted)
                except (Error, OSError, TimeoutError) as error:
                    for reading in readings:
                        reading.followed.last_error = f"replay: {self._explained(error, 'the server')}"
                for reading in readings:
                    if not reading.done.done():
                        reading.done.set_result(reading.lowest is not None and reading.lowest <= reading.start)
        finally:
            self._reader = None

    async def _read(self, wanted: dict[Source, _Reading]) -> None:
        begin = 1 + min(reading.followed.read_from if reading.start else 0 for reading in wanted.values())
        end = self._position()
        jetstream = self._client.jetstream(timeout=self._limits.request_seconds)
        state = (await jetstream.stream_info(self._stream)).state
        begin = max(begin, state.first_seq)
        if begin > end or end - begin >= self._limits.replay_messages_max:
            return
        config = ConsumerConfig(
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=begin,
            ack_policy=AckPolicy.NONE,
            inactive_threshold=_EPHEMERAL_SECONDS,
            mem_storage=True,
        )
        consumer = (await jetstream.add_consumer(self._stream, config)).name
        reached = asyncio.Event()

        async def take(data: bytes, place: Place, _: str) -> None:
            if not reached.is_set():
                self._offer(data, wanted)
            if place.stream_sequence >= end or not place.pending:
                reached.set()

        puller = Puller(self._client, stream=self._stream, consumer=consumer, limits=self._limits, take=take)
        await puller.open()
        try:
            await _first(reached, puller.failed, self._limits.replay_seconds_max)
        finally:
            await puller.close()
            await jetstream.delete_consumer(self._stream, consumer)

    def _offer(self, data: bytes, wanted: dict[Source, _Reading]) -> None:
        try:
            envelope = decode_envelope(data)
        except WireError:
            return  # It was counted when it came live.
        reading = wanted.get(envelope.source)
        if reading is None or envelope.sequence < reading.start or reading.done.done():
            return
        last = reading.followed.last
        if last is not None and last.incarnation != envelope.incarnation:
            return  # Of a life that has ended since.
        if reading.lowest is None or envelope.sequence < reading.lowest:
            reading.lowest = envelope.sequence
        if reading.lowest > reading.start > 0:
            return  # What follows a gap is known already; to hear it again would tell that the gap cannot be closed.
        self.answer(reading.followed, reading.followed.receive(envelope, replayed=True))

    async def _snapshot(self, followed: FollowedSource) -> Literal["taken", "empty", "failed"]:
        """Get the publisher's whole state to the sink; `empty` if it has sent nothing yet in its life."""
        limits = self._limits
        for attempt in range(limits.snapshot_attempts):
            if attempt:
                await asyncio.sleep(limits.recovery_pause_seconds * 2**attempt)
            try:
                async with self._snapshots:
                    frames = await self._ask_for_state(followed)
            except NoRespondersError:
                followed.last_error = "snapshot: the publisher is not there"
            except (Error, OSError, TimeoutError, WireError) as error:
                followed.last_error = f"snapshot: {self._explained(error, 'the publisher')}"
            else:
                if not frames:
                    return "empty"
                self.answer(followed, followed.snapshot([frame.payload for frame in frames], frames[0]))
                return "taken"
        return "failed"

    def _explained(self, error: Exception, who: str) -> str:
        if isinstance(error, TimeoutError):
            return f"{who} does not answer within {self._limits.request_seconds:g} s"
        return f"{type(error).__name__}: {error}"

    async def _ask_for_state(self, followed: FollowedSource) -> list[Envelope]:
        """Get all parts, one by one and a few at a time, so that neither side ever buffers more than that."""
        first = await self._part(followed, {"part": 0})
        if first is None:
            return []
        assert first.snapshot is not None
        this = {"incarnation": first.incarnation, "sequence": first.sequence}
        frames, size, parts = [first], len(first.payload), first.snapshot[1]
        for begin in range(1, parts, _PARTS_AHEAD):
            numbers = range(begin, min(begin + _PARTS_AHEAD, parts))
            more = await _together([self._part(followed, {"part": part, "of": this}) for part in numbers])
            for part, frame in zip(numbers, more, strict=True):
                same = frame is not None and (frame.incarnation, frame.sequence) == (first.incarnation, first.sequence)
                if frame is None or not same or frame.snapshot != (part, parts):
                    raise WireError("the parts of a snapshot do not belong together", reason="bad_snapshot")
                frames.append(frame)
                size += len(frame.payload)
            if size > self._limits.snapshot_bytes_max:
                raise WireError(f"a snapshot exceeds {self._limits.snapshot_bytes_max} bytes", reason="too_large")
        return frames

    async def _part(self, followed: FollowedSource, request: dict[str, Any]) -> Envelope | None:
        """Ask the publisher for one part; None if it has sent nothing yet, so that there is no state.

        Raises:
            WireError: the answer is not that part.
        """
        subject = state_subject(self._stream, followed.source)
        answer = await self._client.request(subject, msgpack.packb(request), timeout=self._limits.request_seconds)
        if not is_envelope(answer.data):
            if answer.data == b"empty":
                return None
            raise WireError(f"the publisher answers {bytes(answer.data[:32])!r}", reason="no_snapshot")
        envelope = decode_envelope(answer.data)
        if envelope.source != followed.source or envelope.snapshot is None or envelope.snapshot[0] != request["part"]:
            raise WireError("the answer is not what was asked for", reason="bad_snapshot")
        return envelope


async def _together(parts: list[Coroutine[Any, Any, Envelope | None]]) -> list[Envelope | None]:
    """Wait for all, and for nothing more once one of them failed."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _first(reached: asyncio.Event, failed: asyncio.Event, seconds: float) -> None:
    """Wait for one of two events; for a reading that stands still not for ever."""
    waits = [asyncio.ensure_future(event.wait()) for event in (reached, failed)]
    try:
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
