"""Answers what is asked over HTTP about the streams of one server: events, snapshots, load, health. No sockets here.

Lives on one event loop, which is also the only place where the streams' cores are touched. docs/transport-http.md is
the protocol's page.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Final, Protocol
from urllib.parse import urlencode

from kvrouter.events import Source
from kvrouter.events.load import LoadReport
from kvrouter_publishers.http_metrics import TEXT_TYPE, metrics_record, metrics_text
from kvrouter_publishers.http_request import Answer, Refusal, Request, json_answer

__all__ = ["EVENTS_TYPE", "EventDesk", "EventStream", "StreamCore"]

EVENTS_TYPE: Final = "application/vnd.kvrouter.events"
SEQUENCE_MOST: Final = 2**64 - 2
RANK_MOST: Final = 2**32 - 1
SNAPSHOT_PART_BYTES: Final = 1 << 18
"""A part of a snapshot: about ten milliseconds' work, after which other answers get their turn."""
_HERE: Final = ("/kv_events", "/kv_snapshot", "/kv_metrics", "/health")


class StreamCore(Protocol):
    """What the desk needs of `PublisherCore`; nothing here waits."""

    @property
    def incarnation(self) -> int:
        """The publisher's life."""
        ...

    @property
    def next_sequence(self) -> int:
        """The number of the next frame."""
        ...

    def since(self, sequence: int) -> list[tuple[int, bytes]]:
        """Return the kept frames from `sequence` on, oldest first."""
        ...

    def oldest_sequence(self) -> int | None:
        """Return the number of the oldest kept frame."""
        ...

    def prepare_snapshot(self, *, part_bytes_max: int) -> Iterator[list[bytes]]:
        """Make the whole state of this moment step by step; the last step brings its frames, the others none.

        There are no steps at all where there are no snapshots.
        """
        ...


class _Snapshot:
    """The whole state before batch `following`: it is being made, or was at `made_at`."""

    __slots__ = ("following", "made_at", "making")

    def __init__(self, following: int, steps: Iterator[list[bytes]], clock: Callable[[], float]) -> None:
        self.following = following
        self.made_at: float | None = None
        loop = asyncio.get_running_loop()
        self.making: asyncio.Task[list[bytes]] = loop.create_task(
            self._make(steps, clock), name="kvrouter-http-snapshot"
        )

    def is_over(self, now: float, keep_seconds: float) -> bool:
        """Whether it is too old to be given again, or was never finished."""
        if self.made_at is None:
            return self.making.done()
        return now - self.made_at > keep_seconds

    async def _make(self, steps: Iterator[list[bytes]], clock: Callable[[], float]) -> list[bytes]:
        frames: list[bytes] = []
        for frames in steps:  # noqa: B007 - the last ones are wanted
            await asyncio.sleep(0)
        self.made_at = clock()
        return frames


class EventStream:
    """One rank's frames, who waits for the next of them, and the last snapshot that was made."""

    def __init__(self, source: Source, core: StreamCore, statistics: Callable[[], Mapping[str, int]]) -> None:
        self.source, self.core, self.statistics = source, core, statistics
        self.load: LoadReport | None = None
        self.closed = False
        self._waiting: set[asyncio.Future[None]] = set()
        self._snapshot: _Snapshot | None = None

    @property
    def position(self) -> dict[str, str]:
        """Where the stream stands, as headers."""
        headers = {"KV-Incarnation": f"{self.core.incarnation:016x}", "KV-Next-Sequence": str(self.core.next_sequence)}
        oldest = self.core.oldest_sequence()
        return headers if oldest is None else {**headers, "KV-Oldest-Sequence": str(oldest)}

    def wake(self) -> None:
        """Tell everybody who waits that there are new frames, or that there will be none any more."""
        waiting, self._waiting = self._waiting, set()
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def close(self) -> None:
        """End all waits; nothing more will come."""
        self.closed = True
        if self._snapshot is not None:
            self._snapshot.making.cancel()
            self._snapshot = None
        self.wake()

    async def changed(self, seconds: float) -> None:
        """Wait for new frames, at most so long."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await future
        finally:
            self._waiting.discard(future)

    async def snapshot(self, clock: Callable[[], float], *, after: int, keep_seconds: float) -> list[bytes]:
        """Return the whole state, or that of a moment ago: what follows it is still in the ring, so nothing is lost.

        It is not older than batch `after`. It is made a part at a time, between other answers, and once for all who
        ask meanwhile or soon after: many routers that start at once cost one walk over the cache.
        """
        after = min(after, self.core.next_sequence - 1)
        snapshot = self._snapshot
        while snapshot is not None and not snapshot.making.done() and snapshot.following <= after:
            await asyncio.wait({snapshot.making})  # One walk at a time.
            snapshot = self._snapshot
        if self.closed:
            return []
        usable = snapshot is not None and snapshot.following > after and self._leads_on(snapshot.following)
        if snapshot is None or not usable or snapshot.is_over(clock(), keep_seconds):
            steps = self.core.prepare_snapshot(part_bytes_max=SNAPSHOT_PART_BYTES)
            snapshot = self._snapshot = _Snapshot(self.core.next_sequence, steps, clock)
        await asyncio.wait({snapshot.making})  # Whoever asked may go away; the others still want it.
        return [] if snapshot.making.cancelled() else snapshot.making.result()

    def forget_snapshot(self, now: float, *, keep_seconds: float) -> None:
        """Free the memory of a snapshot that is too old to be given again."""
        if self._snapshot is not None and self._snapshot.is_over(now, keep_seconds):
            self._snapshot = None

    def _leads_on(self, following: int) -> bool:
        if following == self.core.next_sequence:
            return True
        oldest = self.core.oldest_sequence()
        return oldest is not None and oldest <= following


class EventDesk:
    """Answers requests about its streams.

    Args:
        wait_seconds_max: the longest poll; longer waits are cut to it.
        polls_max: polls that may wait at once; further ones are refused with 503.
        answer_bytes_max: an answer of events ends with the frame that reaches it.
        snapshot_keep_seconds: how long a snapshot may be given again.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        wait_seconds_max: float = 60.0,
        polls_max: int = 512,
        answer_bytes_max: int = 4 << 20,
        snapshot_keep_seconds: float = 2.0,
    ) -> None:
        self._clock = clock
        self._wait_seconds_max, self._polls_max = wait_seconds_max, polls_max
        self._answer_bytes_max, self._snapshot_keep_seconds = answer_bytes_max, snapshot_keep_seconds
        self._streams: dict[Source, EventStream] = {}
        self.polls = self.requests = self.refused = self.snapshots_served = self.frames_served = self.bytes_served = 0

    def open(self, stream: EventStream) -> None:
        """Serve a stream as well."""
        self._streams[stream.source] = stream

    def close(self, source: Source) -> None:
        """Serve a stream no more; who waits for it learns that at once."""
        stream = self._streams.pop(source, None)
        if stream is not None:
            stream.close()

    def tidy(self) -> None:
        """Free what was kept for a while; called now and then."""
        now = self._clock()
        for stream in self._streams.values():
            stream.forget_snapshot(now, keep_seconds=self._snapshot_keep_seconds)

    def counts(self) -> dict[str, int]:
        """Return the desk's own counters, and how many polls wait now."""
        return {
            "requests": self.requests,
            "requests_refused": self.refused,
            "snapshots_served": self.snapshots_served,
            "frames_served": self.frames_served,
            "bytes_served": self.bytes_served,
            "polls": self.polls,
        }

    async def answer(self, request: Request) -> Answer:
        """Answer one request; never raises on what is in it."""
        self.requests += 1
        try:
            return await self._answer(request)
        except Refusal as refusal:
            self.refused += refusal.status != 410
            return refusal.answer()

    async def _answer(self, request: Request) -> Answer:
        match request.path:
            case "/kv_events":
                return await self._events(request)
            case "/kv_snapshot":
                return await self._snapshot(request)
            case "/kv_metrics":
                return self._metrics(request)
            case "/health":
                return json_answer({"status": "ok"})
        raise Refusal(404, f"{request.path[:128]} is not here; there are {', '.join(_HERE)}", code="not_found")

    async def _events(self, request: Request) -> Answer:
        request.only("worker", "rank", "after", "incarnation", "wait")
        after = request.integer("after", least=-1, most=SEQUENCE_MOST)
        life = request.life("incarnation")
        until = self._clock() + request.seconds("wait", most=self._wait_seconds_max)
        stream = self._stream(request)
        while True:
            if stream.closed:
                raise _closing()
            frames = self._frames(stream, after, life)
            left = until - self._clock()
            if frames:
                self.frames_served += len(frames)
                self.bytes_served += sum(map(len, frames))
                return Answer(status=200, headers={"Content-Type": EVENTS_TYPE, **stream.position}, body=frames)
            if after is None or left <= 0:
                return Answer(status=204, headers=stream.position)
            await self._wait(stream, left)

    def _frames(self, stream: EventStream, after: int | None, life: int | None) -> list[bytes]:
        """Return what follows `after`, up to the bound on an answer.

        Raises:
            Refusal: 410, the stream cannot be continued from there.
        """
        core = stream.core
        if life is not None and life != core.incarnation:
            raise self._gone(stream, "other_incarnation", "the publisher has begun another life", "incarnation")
        if after is None or after + 1 == core.next_sequence:
            return []
        if after >= core.next_sequence:
            text = f"sequence {after} is not published yet; the next one is {core.next_sequence}"
            raise self._gone(stream, "not_yet", text, "after")
        oldest = core.oldest_sequence()
        if oldest is None or after + 1 < oldest:
            raise self._gone(stream, "gone", f"sequence {after + 1} is not kept any more", "after")
        frames: list[bytes] = []
        size = 0
        for _, frame in core.since(after + 1):
            if frames and size + len(frame) > self._answer_bytes_max:
                break
            frames.append(frame)
            size += len(frame)
        return frames

    async def _wait(self, stream: EventStream, seconds: float) -> None:
        if self.polls >= self._polls_max:
            raise Refusal(
                503, f"{self._polls_max} polls wait already", code="too_many_polls", headers={"Retry-After": "1"}
            )
        self.polls += 1
        try:
            await stream.changed(seconds)
        finally:
            self.polls -= 1

    async def _snapshot(self, request: Request) -> Answer:
        request.only("worker", "rank", "after", "incarnation")
        after, life = request.integer("after", least=-1, most=SEQUENCE_MOST), request.life("incarnation")
        stream = self._stream(request)
        if after is None or (life is not None and life != stream.core.incarnation):
            after = -1  # What a client knows of another life says nothing about this one.
        if not stream.core.next_sequence:
            raise Refusal(404, "nothing was published yet", code="nothing_published", headers=stream.position)
        frames = await stream.snapshot(self._clock, after=after, keep_seconds=self._snapshot_keep_seconds)
        if stream.closed:
            raise _closing()
        if not frames:
            raise Refusal(404, "this publisher makes no snapshots", code="no_snapshots")
        self.snapshots_served += 1
        return Answer(status=200, headers={"Content-Type": EVENTS_TYPE, **stream.position}, body=frames)

    def _metrics(self, request: Request) -> Answer:
        request.only("worker", "rank", "format")
        form = request.parameters.get("format")
        if form not in {None, "json", "prometheus"}:
            raise Refusal(400, "format must be json or prometheus", code="bad_parameter", param="format")
        streams = self._chosen(request)
        reports = [stream.load for stream in streams if stream.load is not None]
        accepted = request.headers.get("accept", "")
        if form == "prometheus" or (form is None and accepted.startswith(("text/plain", "application/openmetrics"))):
            text = metrics_text(reports, {stream.source: stream.statistics() for stream in streams})
            return Answer(status=200, headers={"Content-Type": TEXT_TYPE}, body=(text,))
        return json_answer(metrics_record(reports))

    def _stream(self, request: Request) -> EventStream:
        """Return the one stream that is meant.

        Raises:
            Refusal: 404, there is none such; 400, there are several.
        """
        chosen = self._chosen(request)
        if len(chosen) > 1:
            missing = "rank" if "rank" not in request.parameters else "worker"
            raise Refusal(
                400, f"{len(chosen)} streams are here; say which {missing}", code="missing_parameter", param=missing
            )
        return chosen[0]

    def _chosen(self, request: Request) -> list[EventStream]:
        worker, rank = request.parameters.get("worker"), request.integer("rank", least=0, most=RANK_MOST)
        here = [stream for stream in self._streams.values() if worker is None or stream.source.worker_id == worker]
        if not here:
            raise _not_here("worker", "no worker" if worker is None else f"worker {worker[:64]!r}", self._streams)
        chosen = [stream for stream in here if rank is None or stream.source.rank == rank]
        if not chosen:
            raise _not_here("rank", f"rank {rank}", self._streams)
        return chosen

    def _gone(self, stream: EventStream, code: str, message: str, param: str) -> Refusal:
        query = urlencode({"worker": stream.source.worker_id, "rank": stream.source.rank})
        oldest = stream.core.oldest_sequence()
        return Refusal(
            410,
            message,
            code=code,
            param=param,
            headers=stream.position,
            fields={
                "snapshot": f"/kv_snapshot?{query}",
                "incarnation": f"{stream.core.incarnation:016x}",
                "oldest_sequence": oldest,
                "next_sequence": stream.core.next_sequence,
            },
        )


def _closing() -> Refusal:
    return Refusal(503, "the publisher is closing", code="closing", headers={"Retry-After": "1"})


def _not_here(param: str, what: str, streams: Mapping[Source, EventStream]) -> Refusal:
    listed = ", ".join(f"{worker_id[:64]}/{rank}" for worker_id, rank in list(streams)[:16]) or "none"
    return Refusal(404, f"{what} is not published here; streams: {listed}", code="unknown_stream", param=param)
