"""Many runs at once: each a trace, a policy and a fleet, spread over processes. What is done is told as it goes."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from kvrouter.replay.curves import Curves, curves_of
from kvrouter.replay.fleet_simulation import FleetOptions, simulate
from kvrouter.replay.measures import Goal, Measures, measure
from kvrouter.replay.trace import Trace

__all__ = ["FixedTrace", "Run", "RunResult", "TraceSource", "play", "play_all"]

_TICK_SECONDS: Final = 0.1


class TraceSource(Protocol):
    """Where the trace of a seed comes from. Can be pickled; the same seed gives the same trace."""

    @property
    def name(self) -> str:
        """What it is called in tables."""
        ...

    def trace(self, seed: int) -> Trace:
        """Return the trace that one seed plays."""
        ...


@dataclass(frozen=True, slots=True)
class FixedTrace:
    """One trace for all seeds; what differs is when in their bins requests arrive."""

    fixed: Trace

    @property
    def name(self) -> str:
        """The trace's own."""
        return self.fixed.name

    def trace(self, seed: int) -> Trace:  # noqa: ARG002 - the interface
        """Return the trace."""
        return self.fixed


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One simulation to do. `source` is a position among those that `play_all` was given."""

    source: int
    policy: str
    fleet: FleetOptions
    seed: int = 0
    rate_scale: float = 1.0
    goal: Goal = field(default_factory=Goal)
    wants_curves: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What came of a run."""

    run: Run
    measures: Measures
    curves: Curves | None


def play(run: Run, source: TraceSource, progress: Callable[[float], None] | None = None) -> RunResult:
    """Do one run here."""
    trace = source.trace(run.seed).at_rate(run.rate_scale)
    outcome = simulate(trace, run.policy, run.fleet, seed=run.seed, progress=progress)
    cache_tokens = run.fleet.workers * run.fleet.rates.cache_tokens
    measures = measure(trace, outcome, goal=run.goal, cache_tokens=cache_tokens)
    return RunResult(run=run, measures=measures, curves=curves_of(outcome) if run.wants_curves else None)


def play_all(
    runs: Sequence[Run],
    sources: Sequence[TraceSource],
    *,
    processes: int | None = None,
    tick: Callable[[Sequence[float]], None] | None = None,
) -> Iterator[RunResult]:
    """Do all runs and yield what comes of them as they end, in any order.

    `tick` is called about ten times a second with the share of each run that is done. The first error of a run ends
    all; so does closing the iterator.
    """
    count = min(len(runs), processes or available_processors())
    if count <= 1:
        yield from _play_here(runs, sources, tick)
        return
    context = multiprocessing.get_context("spawn")
    shares = context.RawArray("d", len(runs) + 1)  # the last one asks all to stop
    with ProcessPoolExecutor(count, context, _begin_process, (tuple(sources), shares)) as pool:
        waiting: set[Future[RunResult]] = {pool.submit(_play_there, number, run) for number, run in enumerate(runs)}
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=_TICK_SECONDS, return_when=FIRST_COMPLETED)
                if tick is not None:
                    tick(shares[:-1])
                for future in done:
                    yield future.result()
        finally:
            shares[len(runs)] = 1.0
            pool.shutdown(wait=True, cancel_futures=True)


def available_processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _play_here(
    runs: Sequence[Run], sources: Sequence[TraceSource], tick: Callable[[Sequence[float]], None] | None
) -> Iterator[RunResult]:
    shares = [0.0] * len(runs)

    def told(number: int, share: float) -> None:
        shares[number] = share
        if tick is not None:
            tick(shares)

    for number, run in enumerate(runs):
        result = play(run, sources[run.source], lambda share, number=number: told(number, share))  # type: ignore[misc]
        told(number, 1.0)
        yield result


class _Stopped(Exception):  # noqa: N818 - nothing went wrong
    """Nobody wants the result any more."""


_sources: tuple[TraceSource, ...] = ()
_shares: Any = None


def _begin_process(sources: tuple[TraceSource, ...], shares: Any) -> None:
    """Keep what all runs of this process share; they arrive once instead of with every run."""
    global _sources, _shares  # a process of the pool has no other place
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _sources, _shares = sources, shares


def _play_there(number: int, run: Run) -> RunResult:
    def told(share: float) -> None:
        if _shares[-1]:
            raise _Stopped
        _shares[number] = share

    told(0.0)
    result = play(run, _sources[run.source], told)
    told(1.0)
    return result
