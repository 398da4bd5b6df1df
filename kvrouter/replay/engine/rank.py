"""One data-parallel rank in motion: drives its scheduler through time and publishes what its cache did.

Time comes in as two functions, so that tests can run hours of it in an instant. Events leave after the step that
caused them, as vLLM's do; unlike vLLM's, a clear leaves at once although the rank is idle.
"""

import asyncio
from collections.abc import Awaitable, Callable

from kvrouter.replay.engine.scheduler import Job, Scheduler
from kvrouter_publishers.publisher import EventPublisher

__all__ = ["Rank"]


class Rank:
    """A scheduler, its publisher, and the loop that alternates steps and waiting."""

    def __init__(
        self,
        number: int,
        scheduler: Scheduler,
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self.number, self.scheduler = number, scheduler
        self.publisher: EventPublisher | None = None
        self.slowdown = 1.0
        """Factor on every step's duration; a fault raises it."""
        self.silent_batches = 0
        """Batches of events still to be swallowed; a fault raises it."""
        self.steps = 0
        self._clock, self._sleep = clock, sleep
        self._work = asyncio.Event()
        self._gate = asyncio.Event()
        self._gate.set()

    def submit(self, job: Job) -> None:
        """Queue a job and wake the loop."""
        self.scheduler.submit(job)
        self._work.set()

    def abort(self, job: Job) -> None:
        """Stop a job; its blocks are free before the next step."""
        self.scheduler.abort(job)
        self._work.set()

    def pause(self) -> None:
        """Stop computing until `resume`, without losing anything."""
        self._gate.clear()

    def resume(self) -> None:
        """Go on computing."""
        self._gate.set()

    def clear_cache(self) -> bool:
        """Forget the cache, if no request uses it, and say so."""
        cleared = self.scheduler.cache.clear()
        self.publish()
        return cleared

    def restart(self, scheduler: Scheduler) -> None:
        """Begin a new life with an empty cache; every request of the old one is lost."""
        self.scheduler.lose_all()
        self.scheduler = scheduler
        self._work.set()

    async def run(self) -> None:
        """Compute for ever. Steps follow each other on an ideal time line, so that late timers do not add up."""
        due = self._clock()
        while True:
            await self._gate.wait()
            scheduler = self.scheduler
            step = scheduler.begin()
            if step is None:
                self._work.clear()
                await self._work.wait()
                due = self._clock()
                continue
            due = max(due + step.seconds * self.slowdown, self._clock())
            await self._sleep(due - self._clock())
            await self._gate.wait()
            scheduler.finish(step)
            self.steps += 1
            self.publish()

    def publish(self) -> None:
        """Hand the events since the last call to the publisher."""
        events = self.scheduler.cache.take_events()
        if not events:
            return
        if self.silent_batches > 0:
            self.silent_batches -= 1
        elif self.publisher is not None:
            self.publisher.publish(events)
