"""Gets a source's missing batches back: the stream read again where that can help, else the publisher's snapshot.

At most one wish of a source is served at a time. What a replay or snapshot means for the index is the sink's to judge.
"""

import asyncio
import secrets
import time
from collections.abc import Callable

from kvrouter.errors import WireError
from kvrouter.events import Envelope, Source, decode_envelope
from kvrouter.events.redis_names import EMPTY_ANSWER, REFUSED_ANSWER, EntryId, answer_key, request_key
from kvrouter.redis_client import RedisClient, RedisError
from kvrouter_subscribers.redis_history import Reading, read_history
from kvrouter_subscribers.redis_limits import RedisLimits
from kvrouter_subscribers.redis_source import FollowedSource
from kvrouter_subscribers.subscriber import Receipt

__all__ = ["Recovery"]

_LISTEN_SECONDS = 1.0


class _NoAnswerError(Exception):
    """The publisher does not answer in time; it may the next time."""


class _NoSnapshotsError(Exception):
    """The publisher answers that it makes none, and never will."""


class Recovery:
    """Serves the wishes of the sources of one stream over one connection.

    `position` says how far the stream was read; what stands behind it comes without being asked for.
    """

    def __init__(
        self,
        client: RedisClient,
        stream: str,
        *,
        limits: RedisLimits,
        tasks: asyncio.TaskGroup,
        position: Callable[[], EntryId],
    ) -> None:
        self._client, self._stream, self._limits, self._tasks = client, stream, limits, tasks
        self._position = position
        self._serving: dict[Source, asyncio.Task[None]] = {}
        self._snapshots = asyncio.Semaphore(limits.snapshots_max)

    def answer(self, followed: FollowedSource, receipt: Receipt | None) -> None:
        """Do what the sink's answer asks for."""
        if receipt is None:
            return
        followed.snapshot_wanted = followed.snapshot_wanted or receipt.snapshot_wanted
        if receipt.replay_from is not None and not followed.reading_history and followed.awaited is None:
            if receipt.outcome == "restarted" and followed.whole_from == 0:
                # Another life, and we saw it from its first batch on: nothing of it is missing.
                end = followed.replay_finished(complete=True)
                if end is not None:
                    followed.snapshot_wanted = followed.snapshot_wanted or end.snapshot_wanted
                    receipt = end
            if receipt.replay_from is not None:
                followed.replay_wanted = receipt.replay_from
        self.serve(followed)

    def want_snapshot(self, followed: FollowedSource, *, instead_of: int | None = None) -> None:
        """Get the source's whole state; it answers for a replay from `instead_of` on, if the sink wanted one."""
        followed.snapshot_wanted = True
        if instead_of is not None:
            followed.replay_wanted = instead_of
        self.serve(followed)

    def want_replay(self, followed: FollowedSource, start: int) -> None:
        """Get what is missing from number `start` on."""
        followed.replay_wanted = start
        self.serve(followed)

    def serve(self, followed: FollowedSource) -> None:
        """Begin with what a source wants, unless that is under way."""
        wanted = followed.replay_wanted is not None or followed.snapshot_wanted
        if wanted and not followed.reading_history and followed.source not in self._serving:
            work = self._until_content(followed)
            task = self._serving[followed.source] = self._tasks.create_task(work, name="redis-recovery")
            task.add_done_callback(lambda done: self._ended(followed, done))

    def cancel(self, source: Source) -> None:
        """Give up what is under way for a source."""
        task = self._serving.pop(source, None)
        if task is not None:
            task.cancel()  # What it was to bring is asked for anew over the next connection.

    def close(self) -> None:
        """Give up everything that is under way: its connection is lost."""
        for source in list(self._serving):
            self.cancel(source)

    def _ended(self, followed: FollowedSource, task: asyncio.Task[None]) -> None:
        if self._serving.get(followed.source) is task:
            del self._serving[followed.source]
            followed.replaying = False
            self.serve(followed)  # What was wished for after the task had looked for the last time.

    async def _until_content(self, followed: FollowedSource) -> None:
        """Serve wishes until the sink has none, more and more slowly if what is done does not help."""
        limits, failures = self._limits, 0
        while followed.replay_wanted is not None or followed.snapshot_wanted:
            followed.replaying = True
            helped = await self._serve_once(followed)
            # A snapshot that came and was not what the sink needs is no help either: it costs its publisher the most.
            failures = 0 if helped and not followed.snapshot_wanted else failures + 1
            if failures:
                pause = limits.recovery_pause_seconds * 2 ** min(failures - 1, 16)
                await asyncio.sleep(min(pause, limits.recovery_pause_seconds_max))

    async def _serve_once(self, followed: FollowedSource) -> bool:
        """Serve what is wanted now; returns whether the source is whole then."""
        start, followed.replay_wanted = followed.replay_wanted, None
        filled = delivered = False
        if start is not None and not followed.snapshot_wanted and self._may_be_in_stream(followed, start):
            followed.replays += 1
            filled = delivered = await self._read_again(followed, start, partial=False)
            followed.replays_failed += not filled
        if not filled or followed.snapshot_wanted:
            followed.snapshot_wanted = False
            filled = await self._snapshot(followed)
            if not filled:
                if start is not None and not delivered:
                    await self._read_again(followed, start, partial=True)
                followed.snapshot_failed()
        if start is not None:
            self.answer(followed, followed.replay_finished(complete=filled))
        return filled

    def _may_be_in_stream(self, followed: FollowedSource, start: int) -> bool:
        """Whether the stream may have what is missing: what we saw of it, or what we never looked at."""
        seen = followed.whole_from is not None and start >= followed.whole_from
        return seen or not followed.read_from_start

    async def _read_again(self, followed: FollowedSource, start: int, *, partial: bool) -> bool:
        """Deliver what the stream has of the source; returns whether that begins where it should."""
        reading = Reading(followed, start, partial=partial)
        try:
            await read_history(
                self._client,
                self._stream,
                {followed.source: reading},
                end=self._position(),
                limits=self._limits,
                answer=self.answer,
            )
        except (RedisError, OSError, TimeoutError) as error:
            followed.last_error = f"replay: {type(error).__name__}: {error}"
            return False
        followed.read_from_start = True
        return reading.began

    async def _snapshot(self, followed: FollowedSource) -> bool:
        """Get the publisher's whole state to the sink, if it has any: one that has sent nothing yet has none."""
        for attempt in range(self._limits.snapshot_attempts):
            if attempt:
                await asyncio.sleep(self._limits.recovery_pause_seconds * 2**attempt)
            try:
                async with self._snapshots:
                    frames = await self._ask_for_state(followed.source)
            except _NoSnapshotsError as error:
                followed.last_error = f"snapshot: {error}"
                return False
            except _NoAnswerError as error:
                followed.last_error = f"snapshot: {error}"
            except (RedisError, OSError, TimeoutError, WireError) as error:
                followed.last_error = f"snapshot: {type(error).__name__}: {error}"
            else:
                if frames:
                    self.answer(followed, followed.snapshot(frames))
                return True
        return False

    async def _ask_for_state(self, source: Source) -> list[Envelope]:
        """Get all parts, one by one; none if the publisher has sent nothing yet."""
        mine = answer_key(self._stream, secrets.token_hex(16))
        wanted = request_key(self._stream, source)
        lifetime = max(1, round(self._limits.request_seconds))  # Nobody reads an answer that comes later.
        await self._client.transaction(("RPUSH", wanted, mine), ("EXPIRE", wanted, lifetime))
        try:
            return await self._parts(source, mine)
        except (_NoAnswerError, WireError):
            await self._client.transaction(("LREM", wanted, 0, mine), ("DEL", mine))  # Else both expire.
            raise

    async def _parts(self, source: Source, key: str) -> list[Envelope]:
        frames: list[Envelope] = []
        size, parts = 0, 1
        while len(frames) < parts:
            part = await self._next_part(key)
            if part == EMPTY_ANSWER:
                return []
            frame = decode_envelope(part)
            _check_part(frame, source, frames)
            frames.append(frame)
            parts = (frame.snapshot or (0, 0))[1]
            size += len(part)
            if size > self._limits.snapshot_bytes_max:
                raise WireError(f"a snapshot exceeds {self._limits.snapshot_bytes_max} bytes", reason="too_large")
        return frames

    async def _next_part(self, key: str) -> bytes:
        deadline = time.monotonic() + self._limits.request_seconds
        while time.monotonic() < deadline:
            taken = await self._client.command("BLPOP", key, _LISTEN_SECONDS, wait_seconds=_LISTEN_SECONDS)
            if taken is None:
                continue
            if taken[1] == REFUSED_ANSWER:
                raise _NoSnapshotsError("the publisher makes none")
            return bytes(taken[1])
        raise _NoAnswerError("the publisher does not answer")


def _check_part(frame: Envelope, source: Source, before: list[Envelope]) -> None:
    """Refuse a part that does not belong to the ones before it.

    Raises:
        WireError: it does not.
    """
    first = before[0] if before else frame
    fits = (
        frame.source == source
        and frame.snapshot is not None
        and first.snapshot is not None
        and frame.snapshot == (len(before), first.snapshot[1])
        and (frame.incarnation, frame.sequence) == (first.incarnation, first.sequence)
    )
    if not fits:
        raise WireError("the parts of a snapshot do not belong together", reason="bad_snapshot")
