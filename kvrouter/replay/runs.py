"""Many runs at once: each a trace, a policy and a fleet, spread over processes. What is done is told as it goes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Final, Protocol

from kvrouter.errors import KvrouterError
from kvrouter.replay.bounds import Bounds, bounds_of
from kvrouter.replay.curves import Curves, curves_of
from kvrouter.replay.fleet_simulation import FleetOptions, simulate
from kvrouter.replay.measures import Goal, Measures, measure
from kvrouter.replay.trace import Trace

__all__ = ["FixedTrace", "HeadOf", "Player", "Run", "RunResult", "TraceSource", "available_processors", "play_all"]

_TICK_SECONDS: Final = 0.1
_BOUNDS_MAX: Final = 1024


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


@dataclass(frozen=True, slots=True)
class HeadOf:
    """The beginning of another source's traces."""

    whole: TraceSource
    requests: int | None = None
    seconds: float | None = None

    @property
    def name(self) -> str:
        """The whole one's."""
        return self.whole.name

    def trace(self, seed: int) -> Trace:
        """Return the beginning of that seed's trace."""
        return self.whole.trace(seed).head(requests=self.requests, seconds=self.seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One simulation to do. `source` is a position among those that `play_all` was given."""

    source: int
    policy: str
    fleet: FleetOptions
    seed: int = 0
    rate_scale: float = 1.0
    goal: Goal = field(default_factory=Goal)
    wants_bounds: bool = True
    wants_curves: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What came of a run, and the processor time that it took."""

    run: Run
    measures: Measures
    curves: Curves | None
    cpu_seconds: float


class Player:
    """Does runs, one after the other, in this process."""

    def __init__(self, sources: Sequence[TraceSource]) -> None:
        self._sources = tuple(sources)
        self._bounds: dict[tuple[object, ...], Bounds] = {}

    def play(self, run: Run, progress: Callable[[float], None] | None = None) -> RunResult:
        """Do one run."""
        began = time.process_time()
        trace = self._sources[run.source].trace(run.seed).at_rate(run.rate_scale)
        outcome = simulate(trace, run.policy, run.fleet, seed=run.seed, progress=progress)
        measures = measure(outcome, goal=run.goal, bounds=self._bounds_of(run, trace) if run.wants_bounds else None)
        return RunResult(
            run=run,
            measures=measures,
            curves=curves_of(outcome) if run.wants_curves else None,
            cpu_seconds=time.process_time() - began,
        )

    def _bounds_of(self, run: Run, trace: Trace) -> Bounds:
        """Return the bounds, which are the same for all policies."""
        cache_tokens = run.fleet.workers * run.fleet.rates.cache_tokens
        key = (run.source, run.seed, run.rate_scale, cache_tokens)
        found = self._bounds.get(key)
        if found is None:
            if len(self._bounds) >= _BOUNDS_MAX:
                self._bounds.clear()
            found = self._bounds[key] = bounds_of(trace, cache_tokens=cache_tokens)
        return found


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
        # Not `concurrent.futures.wait`: it holds the locks of all futures, for ever if Ctrl-C comes just then.
        done: SimpleQueue[Future[RunResult]] = SimpleQueue()
        try:
            for number, run in enumerate(runs):
                pool.submit(_play_there, number, run).add_done_callback(done.put)
            left = len(runs)
            while left:
                future = _next(done)
                if tick is not None:
                    tick(shares[:-1])
                if future is not None:
                    left -= 1
                    yield future.result()
        except BrokenProcessPool:
            message = "a process that simulated was ended from outside; if memory is short, use fewer with --processes"
            raise KvrouterError(message) from None
        finally:
            shares[len(runs)] = 1.0
            pool.shutdown(wait=True, cancel_futures=True)


def _next(done: SimpleQueue[Future[RunResult]]) -> Future[RunResult] | None:
    """Wait a little for a run to end."""
    try:
        return done.get(timeout=_TICK_SECONDS)
    except Empty:
        return None


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

    player = Player(sources)
    for number, run in enumerate(runs):
        result = player.play(run, lambda share, number=number: told(number, share))  # type: ignore[misc]
        told(number, 1.0)
        yield result


class _Stopped(Exception):  # noqa: N818 - nothing went wrong
    """Nobody wants the result any more."""


_player: Player | None = None
_shares: Any = None


def _begin_process(sources: tuple[TraceSource, ...], shares: Any) -> None:
    """Keep what all runs of this process share; it arrives once instead of with every run."""
    global _player, _shares  # a process of the pool has no other place
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _player, _shares = Player(sources), shares


def _play_there(number: int, run: Run) -> RunResult:
    def told(share: float) -> None:
        if _shares[-1]:
            raise _Stopped
        _shares[number] = share

    assert _player is not None
    told(0.0)
    result = _player.play(run, told)
    told(1.0)
    return result
