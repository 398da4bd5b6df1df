"""The thread in which a publisher sends, and how an engine reaches it: the shell that all publishers share.

A subclass brings one transport. Nothing here knows about frames or networks.
"""

import asyncio
import contextlib
import logging
import os
import select
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Self

from kvrouter.events import Event
from kvrouter.events.load import LoadOutbox, LoadReport, load_from_record, load_record
from kvrouter_publishers.core import PublisherCore

__all__ = ["ThreadedPublisher"]

_log = logging.getLogger("kvrouter_publishers")

_JOIN_SECONDS = 1.0


class ThreadedPublisher(ABC):
    """An `EventPublisher` that sends from one daemon thread.

    A subclass opens what can fail in its `__init__`, so that a wrong setting raises there and not in the background,
    and then calls `_start`. It implements `_run`, the thread's body, which looks like this:

        while not self._is_finished():
            while (frame := self._core.take(time.monotonic())) is not None:
                ...  # send it
            while (report := self._take_load(time.monotonic())) is not None:
                ...  # send it, or forget it: another one comes
            self._wait_for_work(1.0)  # or, where an event loop runs: await self._work(1.0)

    (`_pause` and `_rest` are for the time in which nothing can be sent,)
    and `_release`, which frees what `_run` did not. `_run` must end soon after `_stop_deadline`, whatever the network
    does; an exception that leaves it is logged and counted as a crash, and publishing is counted as dropped from then.

    After `fork` the child has neither the thread nor the sockets: its `publish` drops and counts. A process that
    publishes builds its own publisher, after the fork.
    """

    def __init__(self, core: PublisherCore) -> None:
        self._core = core
        self._loads = LoadOutbox()
        self._stop_deadline: float | None = None
        """When `_run` must have ended, in monotonic seconds; None as long as nobody asked it to."""
        self._process = os.getpid()
        self._closing = False
        self._running = True
        self._freeing = threading.Lock()
        self._given_up = False
        """Whether nobody waits for the thread any more: then it frees everything itself when it ends."""
        self._sleeping = False
        self._bell, self._bell_pull = socket.socketpair()
        self._bell.setblocking(False)  # noqa: FBT003 - positional in the standard library
        self._bell_pull.setblocking(False)  # noqa: FBT003 - positional in the standard library
        name = f"kvrouter-publisher-{core.source.rank}"
        self._thread = threading.Thread(target=self._run_supervised, name=name, daemon=True)

    def publish(self, events: Sequence[Event]) -> None:
        """Hand over the events of one engine step; see `EventPublisher` for what may be relied on."""
        if os.getpid() != self._process:
            self._core.counters.events_dropped_forked += _length(events)
        elif self._closing or not self._running:
            self._core.counters.events_dropped_not_running += _length(events)
        else:
            self._core.put(events)
            if self._sleeping:
                self._ring_bell()

    def publish_load(self, report: LoadReport) -> None:
        """Tell how busy our rank is; see `EventPublisher` for what may be relied on."""
        ours = self._own_load(report)
        if ours is not None:
            self._loads.offer(ours)
            if self._sleeping:
                self._ring_bell()

    def close(self, *, timeout_seconds: float = 2.0) -> None:
        """Send what waits, for at most `timeout_seconds`, then stop. May be called again.

        A thread that gets no time from its machine is left behind, and frees what it has when it ends.
        """
        if os.getpid() != self._process:
            return  # Sockets and thread belong to the parent; touching them here would disturb it.
        self._closing = True
        if self._stop_deadline is None:
            self._stop_deadline = time.monotonic() + timeout_seconds
        self._ring_bell()
        if self._thread.ident is not None:
            self._thread.join(timeout_seconds + _JOIN_SECONDS)
        with self._freeing:
            self._given_up = self._running and self._thread.ident is not None
            if not self._given_up:
                self._free()

    def statistics(self) -> dict[str, int]:
        """Return counters since the start, and the state now, as plain integers."""
        return {**asdict(self._core.counters), **self._core.statistics(), "running": int(self._running)}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def _run(self) -> None:
        """The thread's body."""

    def _release(self) -> None:
        """Free what is left when `_run` has ended; may be called again. Called by whoever closes, or came last."""
        return

    def _own_load(self, report: LoadReport) -> LoadReport | None:
        """Return a report under our own name, with a time, without figures that cannot be meant.

        None, and counted, if it is no report at all, or nobody is here to send it.
        """
        source = self._core.source
        try:
            if os.getpid() == self._process and not self._closing and self._running:
                ours = replace(
                    report, worker_id=source.worker_id, rank=source.rank, timestamp=report.timestamp or time.time()
                )
                return load_from_record(load_record(ours))
        except Exception:  # noqa: BLE001, S110 - a guest never raises into its host; it is counted
            pass
        self._core.counters.load_reports_refused += 1
        return None

    def _take_load(self, now: float) -> LoadReport | None:
        """Return the report that is to be sent now, if any; it counts as sent."""
        report = self._loads.take(now)
        self._core.counters.load_reports_sent += report is not None
        return report

    def _start(self) -> None:
        """Start the thread; the last thing that `__init__` does."""
        self._thread.start()

    def _is_finished(self) -> bool:
        """Whether `_run` should return: it was asked to, and everything was taken or the deadline has passed."""
        if self._stop_deadline is None:
            return False
        return not self._core.has_batches() or time.monotonic() >= self._stop_deadline

    def _wait_for_work(self, timeout_seconds: float) -> None:
        """Sleep until there is something to take or a stop to obey, at most so long. Only in `_run`."""
        self._sleep(self._begin_sleep(timeout_seconds))

    async def _work(self, timeout_seconds: float) -> None:
        """Sleep as `_wait_for_work` does, on the event loop that `_run` runs."""
        await self._sleep_on_loop(self._begin_sleep(timeout_seconds))

    def _pause(self, seconds: float) -> None:
        """Sleep so long whatever there is to take, as before another attempt; ended early by `close` alone."""
        if self._stop_deadline is None:
            self._sleep(seconds)
        else:
            self._sleep(min(seconds, max(0.0, self._stop_deadline - time.monotonic())))

    async def _rest(self, seconds: float) -> None:
        """Sleep as `_pause` does, on the event loop that `_run` runs."""
        if self._stop_deadline is not None:
            seconds = min(seconds, max(0.0, self._stop_deadline - time.monotonic()))
        await self._sleep_on_loop(seconds)

    def _bell_descriptor(self) -> int:
        """Return what becomes readable when there is work, for a `_run` that waits for other things as well.

        It sleeps for at most `_begin_sleep` says, and calls `_end_sleep`.
        """
        return self._bell_pull.fileno()

    def _begin_sleep(self, timeout_seconds: float) -> float:
        """Say that we sleep, then look once more, because `publish` does it the other way round."""
        self._sleeping = True
        if self._stop_deadline is not None or self._core.pending():
            return 0.0
        return min(timeout_seconds, self._core.idle_seconds(), self._loads.idle_seconds(time.monotonic()))

    def _end_sleep(self) -> None:
        self._sleeping = False
        with contextlib.suppress(BlockingIOError):
            self._bell_pull.recv(4096)

    def _sleep(self, seconds: float) -> None:
        select.select([self._bell_pull], [], [], seconds)
        self._end_sleep()

    async def _sleep_on_loop(self, seconds: float) -> None:
        loop, rung = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._bell_pull.fileno(), rung.set)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await rung.wait()
        finally:
            loop.remove_reader(self._bell_pull.fileno())
        self._end_sleep()

    def _ring_bell(self) -> None:
        """Wake the thread if it sleeps; never waits. Called from any thread."""
        self._sleeping = False
        try:
            self._bell.send(b"\0")
        except OSError:
            return  # The bell is already ringing (its buffer is full), or the thread has ended.

    def _run_supervised(self) -> None:
        """One supervised edge, so that a fault is counted and told instead of vanishing."""
        try:
            self._run()
        except Exception:  # noqa: BLE001 - counted, logged, and shown by `statistics`
            self._core.counters.crashes += 1
            _log.exception("kvrouter_publisher_stopped")
        finally:
            with self._freeing:
                self._running = False
                if self._given_up:
                    self._free()

    def _free(self) -> None:
        self._bell.close()
        self._bell_pull.close()
        self._release()


def _length(events: Sequence[Event]) -> int:
    """Count the events of a step that is dropped, whatever it is: a guest never raises into its host."""
    try:
        return len(tuple(events))
    except Exception:  # noqa: BLE001 - see above
        return 1
