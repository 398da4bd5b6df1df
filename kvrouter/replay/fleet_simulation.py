"""Plays a trace against simulated workers behind the router's own routing, ingest and index, as discrete events.

Nothing here decides: routers place each turn, workers compute it, their cache events find their way back. The
simulation moves time from one event to the next and writes down what became of each turn (`outcome.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from random import Random
from typing import Final

from kvrouter.blocks import Prompt
from kvrouter.errors import SettingsError
from kvrouter.events import Source
from kvrouter.replay.event_feed import EventFeed, EventLog
from kvrouter.replay.outcome import Outcome, OutcomeRows
from kvrouter.replay.rates import EngineRates
from kvrouter.replay.replica_exchange import ReplicaExchange
from kvrouter.replay.trace import Trace, Turn, resampled
from kvrouter.replay.worker import Running, Worker
from kvrouter.routing import Policy, Router, RoutingSettings

__all__ = ["FleetOptions", "check_fits", "simulate"]

_EXPIRE_SECONDS: Final = 1.0
_PROGRESS_TURNS: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetOptions:
    """What stands around the workers.

    Attributes:
        workers: how many, all alike.
        rates: how fast and how large each of them is.
        routers: replicas of the router, each with its own index and its own knowledge of load; turns go to them in
            turn.
        replica_state: whether they tell each other what they have booked.
        replica_interval_seconds: each does at most so often.
        replica_delay_seconds: until the others know.
        event_delay_seconds: from the end of an engine's step until a router knows what it did to the cache.
        event_loss: share of the batches of events that get lost on the way to a router.
        event_replay: whether routers can ask the engines for what got lost.
        restart_every_seconds: a worker restarts about so often and loses its cache; 0: never.
        restart_seconds: how long that takes.
        settings: of the router; None for its defaults.
    """

    workers: int = 8
    rates: EngineRates = field(default_factory=EngineRates)
    routers: int = 1
    replica_state: bool = True
    replica_interval_seconds: float = 0.1
    replica_delay_seconds: float = 0.01
    event_delay_seconds: float = 0.0
    event_loss: float = 0.0
    event_replay: bool = True
    restart_every_seconds: float = 0.0
    restart_seconds: float = 30.0
    settings: RoutingSettings | None = None


def simulate(
    trace: Trace,
    policy: str | Policy,
    options: FleetOptions,
    *,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Outcome:
    """Play `trace` once; the same arguments give the same outcome. `progress` hears the share that is done.

    Raises:
        SettingsError: the trace has a request that no worker can ever hold.
    """
    check_fits(trace, options.rates)
    return _Simulation(resampled(trace, seed), policy, options, seed, progress).run()


def check_fits(trace: Trace, rates: EngineRates) -> None:
    """Check that a worker can hold each request.

    Raises:
        SettingsError: one is longer than a worker's whole cache, and would wait for ever.
    """
    worker = Worker(rates, block_tokens=trace.block_tokens)
    for number, turn in enumerate(trace.turns):
        if not worker.fits(turn.input_tokens, turn.output_tokens):
            room = worker.cache.pool.blocks * trace.block_tokens
            needed = turn.input_tokens + turn.output_tokens
            raise SettingsError(
                f"request {number} of {trace.name} needs {needed} tokens of KV cache; a worker has {room}"
            )


class _Place:
    """One worker and what is between it and the routers."""

    __slots__ = ("begun", "busy_until", "down", "feeds", "life", "log", "name", "worker")

    def __init__(self, name: str, worker: Worker) -> None:
        self.name, self.worker = name, worker
        self.log = EventLog()
        self.feeds: list[EventFeed] = []
        self.begun = 0.0
        self.busy_until: float | None = None
        self.life = 0
        self.down = False


class _Simulation:
    def __init__(
        self,
        trace: Trace,
        policy: str | Policy,
        options: FleetOptions,
        seed: int,
        progress: Callable[[float], None] | None,
    ) -> None:
        self._trace, self._options, self._progress = trace, options, progress
        self._turns: Sequence[Turn] = trace.turns
        self._random = Random(seed)
        self._heap: list[tuple[float, int, Callable[[float], None]]] = []
        self._serial = 0
        self._now = 0.0
        self._next_expiry = _EXPIRE_SECONDS
        self._unfinished = len(self._turns)
        self._followers: dict[int, list[int]] = {}
        self._rows = OutcomeRows(len(self._turns))
        self._routers = [
            Router(policy=policy, settings=options.settings, seed=seed + number) for number in range(options.routers)
        ]
        self._places = [self._place(number) for number in range(options.workers)]
        self._by_name = {place.name: number for number, place in enumerate(self._places)}
        if options.routers > 1 and options.replica_state:
            ReplicaExchange(
                self._routers,
                interval_seconds=options.replica_interval_seconds,
                delay_seconds=options.replica_delay_seconds,
                random=Random(seed),
                later=self._later,
            )

    def run(self) -> Outcome:
        """Move time until every turn has ended."""
        for number, turn in enumerate(self._turns):
            if turn.follows is None:
                self._later(turn.arrival, lambda now, number=number: self._arrive(number, now))  # type: ignore[misc]
            else:
                self._followers.setdefault(turn.follows, []).append(number)
        if self._options.restart_every_seconds:
            for place in self._places:
                self._plan_restart(place, 0.0)
        heap = self._heap
        while self._unfinished:
            now, _, call = heappop(heap)
            self._now = now
            call(now)
        return self._rows.outcome(self._trace, [place.worker for place in self._places], end=self._now)

    def _later(self, when: float, call: Callable[[float], None]) -> None:
        self._serial += 1
        heappush(self._heap, (when, self._serial, call))

    # -- turns ---------------------------------------------------------------------------------------------------------

    def _arrive(self, number: int, now: float) -> None:
        self._rows.arrived(number, now)
        if now >= self._next_expiry:
            for router in self._routers:
                router.expire(now)
            self._next_expiry = now + _EXPIRE_SECONDS
        self._send(number, now)

    def _send(self, number: int, now: float) -> None:
        """Place a turn and give it to its worker."""
        if all(place.down for place in self._places):
            self._later(now + 1.0, lambda then: self._send(number, then))
            return
        turn = self._turns[number]
        router = self._routers[number % len(self._routers)]
        size = self._trace.block_tokens
        full = turn.input_tokens // size
        prompt = Prompt.from_hashes(turn.keys[:full].tobytes(), block_size=size, tokens=turn.input_tokens)
        decision = router.place(prompt, model=None, session=turn.session, exclude=(), id=number, now=now)
        chosen = self._by_name[decision.worker_id]
        self._rows.placed(
            number, worker=chosen, promised=decision.overlap_tokens, cost=decision.cost, reason=decision.reason
        )
        request = Running(number, turn.keys.tolist(), prompt_tokens=turn.input_tokens, output_tokens=turn.output_tokens)
        place = self._places[chosen]
        place.worker.submit(request)
        self._wake(place, now)

    def _ended(self, request: Running, now: float) -> None:
        number = request.number
        router = self._routers[number % len(self._routers)]
        router.finished(number, now=now, cached_tokens=request.cached_tokens)
        self._rows.ended(number, now, cached=request.cached_tokens or 0, preemptions=request.preemptions)
        self._unfinished -= 1
        if self._progress is not None and self._unfinished % _PROGRESS_TURNS == 0:
            self._progress(1.0 - self._unfinished / len(self._turns))
        for follower in self._followers.get(number, ()):
            at = now + self._turns[follower].arrival
            self._later(at, lambda then, follower=follower: self._arrive(follower, then))  # type: ignore[misc]

    # -- workers -------------------------------------------------------------------------------------------------------

    def _place(self, number: int) -> _Place:
        options = self._options
        size = self._trace.block_tokens
        place = _Place(f"worker-{number}", Worker(options.rates, block_tokens=size))
        for router in self._routers:
            router.add_worker(place.name, block_size=size, now=0.0)
            source = Source(place.name, 0)
            feed = EventFeed(
                place.log,
                router.ingest,
                source,
                delay_seconds=options.event_delay_seconds,
                loss=options.event_loss,
                replays=options.event_replay,
                random=self._random,
                later=self._later,
            )
            place.feeds.append(feed)
        return place

    def _wake(self, place: _Place, now: float) -> None:
        """Let a worker see what has just been given to it."""
        if place.down:
            return
        if place.busy_until is None:
            self._begin(place, now)
            return
        shorter = place.worker.interrupt(now - place.begun)
        if shorter is not None:
            self._run_until(place, place.begun + shorter)

    def _begin(self, place: _Place, now: float) -> None:
        seconds = place.worker.begin()
        place.begun = now
        if seconds is None:
            place.busy_until = None
        else:
            self._run_until(place, now + seconds)

    def _run_until(self, place: _Place, end: float) -> None:
        place.busy_until = end
        life = place.life

        def done(now: float) -> None:
            if place.busy_until == end and place.life == life:
                self._finish(place, now)

        self._later(end, done)

    def _finish(self, place: _Place, now: float) -> None:
        worker = place.worker
        ended = worker.finish(now - place.begun)
        for request in worker.first_tokens:
            number = request.number
            self._rows.first_token(number, now)
            self._routers[number % len(self._routers)].first_token(number, now=now)
        events = worker.take_events()
        if events:
            number, payload = place.log.publish(events, now)
            for feed in place.feeds:
                feed.send(number, payload, now)
        for request in ended:
            self._ended(request, now)
        self._begin(place, now)

    # -- restarts ------------------------------------------------------------------------------------------------------

    def _plan_restart(self, place: _Place, now: float) -> None:
        wait = self._random.expovariate(1.0 / self._options.restart_every_seconds)
        self._later(now + wait, lambda then: self._stop(place, then))

    def _stop(self, place: _Place, now: float) -> None:
        """A worker dies; its requests are sent to others from their beginning."""
        lost = place.worker.lose_all()
        place.life += 1
        place.down, place.busy_until = True, None
        place.log.restart()
        for router in self._routers:
            router.set_routable(place.name, routable=False, now=now)
        for request in lost:
            router = self._routers[request.number % len(self._routers)]
            router.finished(request.number, now=now, completed=False)
            self._rows.retried(request.number)
        self._later(now + self._options.restart_seconds, lambda then: self._start(place, then))
        for request in lost:
            self._send(request.number, now)

    def _start(self, place: _Place, now: float) -> None:
        place.down = False
        for router in self._routers:
            router.set_routable(place.name, routable=True, now=now)
            router.ingest.reset(Source(place.name, 0), now=now, reason="the worker restarted")
        self._begin(place, now)
        self._plan_restart(place, now)
