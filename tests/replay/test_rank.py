"""A rank moved through time that is only counted: hours pass in an instant, and every delay is exact."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence

import pytest

from kvrouter.events import AllBlocksCleared, BlockStored, Event
from kvrouter.replay.engine.cache import PrefixCache
from kvrouter.replay.engine.rank import Rank
from kvrouter.replay.engine.scheduler import Scheduler
from kvrouter.replay.engine.timing import Timing
from tests.replay.driving import Recorded
from tests.replay.serving import eventually, run

TIMING = Timing(prefill_tokens_per_second=100, step_seconds=1, decode_seconds=10, decode_seconds_per_request=2)


class CountedTime:
    """A clock that only sleeping moves; each sleep oversleeps by `late` seconds, as real timers do.

    The sleep number `holds_at` lasts until `release` is set.
    """

    def __init__(self, *, late: float = 0.0, holds_at: int = -1) -> None:
        self.now = 1000.0
        self.release = asyncio.Event()
        self.sleeps = 0
        self._late, self._holds_at = late, holds_at

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += max(0.0, seconds) + self._late
        self.sleeps += 1
        await (self.release.wait() if self.sleeps == self._holds_at else asyncio.sleep(0))


class Notebook:
    """A publisher that writes down when each batch came."""

    def __init__(self, time: CountedTime) -> None:
        self.batches: list[tuple[float, Sequence[Event]]] = []
        self._time = time

    def publish(self, events: Sequence[Event]) -> None:
        self.batches.append((self._time.now, events))

    def close(self) -> None:
        """Nothing to close."""

    def statistics(self) -> Mapping[str, int]:
        return {}


class Timed(Recorded):
    """A job that remembers when each token came."""

    __slots__ = ("times",)

    def __init__(self, time: CountedTime, tokens: Sequence[int], *, output: int = 1) -> None:
        super().__init__(tokens, output=output)
        self.times: list[float] = []
        remember = self.emit

        def emit(token: int | None) -> None:
            self.times.append(time.now - 1000.0)
            remember(token)

        self.emit = emit


def scheduler() -> Scheduler:
    """Return an idle scheduler with times that are easy to add up."""
    cache = PrefixCache(blocks=1000, block_size=4, seed=b"seed")
    return Scheduler(cache, TIMING, running_max=8, step_tokens_max=100)


def rank(time: CountedTime) -> tuple[Rank, Notebook]:
    """Return a rank in counted time, and what it publishes."""
    made = Rank(0, scheduler(), clock=time, sleep=time.sleep)
    notebook = Notebook(time)
    made.publisher = notebook
    return made, notebook


@contextlib.asynccontextmanager
async def running(made: Rank) -> AsyncIterator[None]:
    """Run a rank for a while."""
    task = asyncio.ensure_future(made.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def test_the_first_token_takes_the_prefill_and_the_others_a_step_each() -> None:
    """250 tokens in chunks of 100 at 100 per second; then 1 + 10 + 2 seconds for each further token."""

    async def work() -> list[float]:
        time = CountedTime()
        made, _ = rank(time)
        job = Timed(time, range(250), output=3)
        async with running(made):
            made.submit(job)
            await eventually(lambda: job.done)
        return job.times

    first = 250 / 100 + 3 * 1
    assert run(work) == pytest.approx([first, first + 13, first + 26, first + 26])


def test_what_is_cached_is_not_waited_for() -> None:
    """The second request computes only its own end."""

    async def work() -> float:
        time = CountedTime()
        made, _ = rank(time)
        first, second = Timed(time, range(200)), Timed(time, [*range(200), 1, 2, 3])
        async with running(made):
            made.submit(first)
            await eventually(lambda: first.done)
            begun = time.now - 1000
            made.submit(second)
            await eventually(lambda: second.done)
        assert second.cached_tokens == 200
        return second.times[0] - begun

    assert run(work) == pytest.approx(3 / 100 + 1)


def test_late_timers_do_not_add_up() -> None:
    """Steps follow an ideal time line: a hundred late sleeps make one delay, not a hundred."""

    async def work() -> float:
        time = CountedTime(late=0.25)
        made, _ = rank(time)
        job = Timed(time, range(100), output=101)
        async with running(made):
            made.submit(job)
            await eventually(lambda: job.done)
        return job.times[-1]

    assert run(work) == pytest.approx(2 + 100 * 13 + 0.25)


def test_a_slow_rank_takes_the_factor() -> None:
    """On every step."""

    async def work() -> float:
        time = CountedTime()
        made, _ = rank(time)
        made.slowdown = 4.0
        job = Timed(time, range(100), output=1)
        async with running(made):
            made.submit(job)
            await eventually(lambda: job.done)
        return job.times[0]

    assert run(work) == pytest.approx(4 * 2)


def test_events_leave_after_the_step_that_caused_them() -> None:
    """When the blocks are really filled."""

    async def work() -> None:
        time = CountedTime()
        made, notebook = rank(time)
        job = Timed(time, range(100), output=1)
        async with running(made):
            made.submit(job)
            await eventually(lambda: job.done)

        ((when, (stored,)),) = notebook.batches
        assert when - 1000 == pytest.approx(2)
        assert isinstance(stored, BlockStored)
        assert len(stored.block_hashes) == 25

    run(work)


def test_a_restart_loses_the_jobs_and_the_cache() -> None:
    """Also in the middle of a step, which then changes nothing in the new life."""

    async def work() -> None:
        time = CountedTime(holds_at=4)
        made, notebook = rank(time)
        job = Timed(time, range(100), output=50)
        async with running(made):
            made.submit(job)
            await eventually(lambda: time.sleeps == 4)
            made.restart(scheduler())
            time.release.set()
            again = Timed(time, range(101))
            made.submit(again)
            await eventually(lambda: again.done)

        assert job.lost
        assert job.emitted == [1000, 1001, 1002, None]
        assert again.cached_tokens == 0
        assert made.scheduler.cache.pool.used == 0
        assert [type(batch[0]) for _, batch in notebook.batches] == [BlockStored, BlockStored]

    run(work)


def test_an_idle_rank_publishes_a_clear_at_once() -> None:
    """Nobody has to wait for the next request."""

    async def work() -> None:
        time = CountedTime()
        made, notebook = rank(time)
        async with running(made):
            cleared = made.clear_cache()

        assert cleared
        assert [list(events) for _, events in notebook.batches] == [[AllBlocksCleared()]]

    run(work)
