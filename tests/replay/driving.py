"""Helpers for tests of the engine's pure core: a scheduler that needs no clock, and jobs that remember."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence

from kvrouter.events import AllBlocksCleared, BlockRemoved, BlockStored, Event
from kvrouter.replay.engine.cache import Namespace, PrefixCache
from kvrouter.replay.engine.scheduler import Job, Scheduler
from kvrouter.replay.engine.timing import Timing


class Recorded(Job):
    """A job that remembers what it emitted; its output counts up from 1000."""

    __slots__ = ("emitted",)

    def __init__(self, tokens: Sequence[int], *, output: int = 1, namespace: Namespace | None = None) -> None:
        self.emitted: list[int | None] = []
        counter = iter(range(1000, 1_000_000))
        super().__init__(
            array("I", tokens),
            namespace=namespace or Namespace(),
            output_tokens_max=output,
            next_token=lambda: next(counter),
            emit=self.emitted.append,
        )

    @property
    def done(self) -> bool:
        return bool(self.emitted) and self.emitted[-1] is None


def scheduler(
    *, blocks: int = 64, block_size: int = 4, running_max: int = 8, step_tokens_max: int = 1024, seed: bytes = b"seed"
) -> Scheduler:
    """Return a scheduler over an empty cache."""
    cache = PrefixCache(blocks=blocks, block_size=block_size, seed=seed)
    return Scheduler(cache, Timing(), running_max=running_max, step_tokens_max=step_tokens_max)


def step(engine: Scheduler) -> bool:
    """Take one step; tell whether there was one."""
    planned = engine.begin()
    if planned is not None:
        engine.finish(planned)
    return planned is not None


def finish(engine: Scheduler, jobs: Iterable[Job] = (), *, steps_max: int = 10_000) -> None:
    """Submit `jobs` and step until nothing is left to do."""
    for job in jobs:
        engine.submit(job)
    for _ in range(steps_max):
        if not step(engine):
            return
    raise AssertionError("the scheduler does not come to an end")


def claimed(events: Iterable[Event], before: Counter[int] | None = None) -> Counter[int]:
    """Return what a listener believes is cached: each engine hash with its copies."""
    held = Counter(before or {})
    for event in events:
        match event:
            case BlockStored():
                held.update(event.block_hashes)
            case BlockRemoved():
                held.subtract(event.block_hashes)
            case AllBlocksCleared():
                held.clear()
        assert min(held.values(), default=0) >= 0, "removed more often than stored"
    return +held
