"""Connections that are used again: a few per target, the warm ones first, and never more than a bound.

Whoever makes connections says how (`dial`) and whether one can still be used (`Pooled`). Everything else is here: ages,
idle times, the bound, who waits for a place, and the counters (docs/planes.md names the metrics).
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from kvrouter.errors import TransportError

__all__ = ["ConnectionPool", "PoolCounters", "PoolExhaustedError", "PoolSettings", "Pooled"]


class Pooled(Protocol):
    """What is pooled."""

    def is_usable(self) -> bool:
        """Whether it is open, and nothing that nobody asked for has arrived."""
        ...

    def close_now(self) -> None:
        """Close it."""
        ...


P = TypeVar("P", bound=Pooled)


class PoolExhaustedError(TransportError):
    """Every connection that a target may have is in use, and none came back in time."""

    code, retryable = "RESOURCE_EXHAUSTED", True


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """Bounds per target; times in seconds. Not `enabled`: a connection for each use."""

    enabled: bool = True
    connections_max: int = 50
    idle_min: int = 5
    idle_seconds: float = 300.0
    lifetime_seconds: float = 3600.0
    keepalive_seconds: float = 60.0
    """How long a connection is silent before the kernel asks whether its peer is there; for who dials."""


@dataclass(slots=True)
class PoolCounters:
    """What happened with one target."""

    created: int = 0
    reused: int = 0
    validation_failures: int = 0
    exhausted: int = 0


class _Parked(Generic[P]):
    __slots__ = ("connection", "created_at", "parked_at")

    def __init__(self, connection: P, created_at: float, parked_at: float) -> None:
        self.connection, self.created_at, self.parked_at = connection, created_at, parked_at


class _Target(Generic[P]):
    def __init__(self) -> None:
        self.idle: deque[_Parked[P]] = deque()
        self.active: dict[P, float] = {}
        self.dialling = 0
        self.waiters: OrderedDict[asyncio.Future[None], None] = OrderedDict()
        self.counters = PoolCounters()
        self.used_at = 0.0

    @property
    def count(self) -> int:
        return len(self.idle) + len(self.active) + self.dialling


class ConnectionPool(Generic[P]):
    """Connections by target. Lives on one event loop; `start` runs the janitor, which tops up and throws out."""

    def __init__(self, dial: Callable[[str], Awaitable[P]], settings: PoolSettings | None = None) -> None:
        self.settings = settings if settings is not None else PoolSettings()
        self._dial = dial
        self._targets: dict[str, _Target[P]] = {}
        self._janitor: asyncio.Task[None] | None = None
        self.observe: Callable[[str, float], None] = lambda _target, _seconds: None
        """Called with the time that each `acquire` took."""

    def start(self) -> None:
        """Begin to look after idle connections."""
        if self.settings.enabled and self._janitor is None:
            self._janitor = asyncio.create_task(self._clean(), name="pool janitor")

    def counters(self) -> dict[str, PoolCounters]:
        """By target."""
        return {name: target.counters for name, target in self._targets.items()}

    def active(self, target: str) -> int:
        """Connections that are handed out."""
        found = self._targets.get(target)
        return 0 if found is None else len(found.active)

    def idle(self, target: str) -> int:
        """Connections that wait to be used again."""
        found = self._targets.get(target)
        return 0 if found is None else len(found.idle)

    async def acquire(self, target: str, *, seconds: float) -> P:
        """A connection to a target: an idle one that can still be used, else a new one, else the next to come back.

        Raises:
            PoolExhaustedError: none came back within `seconds`.
            TransportError: what dialling raises.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        state = self._targets.setdefault(target, _Target())
        state.used_at = began
        try:
            async with asyncio.timeout(seconds):
                while state.count - len(state.idle) >= self.settings.connections_max and self.settings.enabled:
                    await self._wait(state)
        except TimeoutError:
            state.counters.exhausted += 1
            message = f"{target}: all {self.settings.connections_max} connections were in use for {seconds:g} seconds"
            raise PoolExhaustedError(message) from None
        connection = self._take_idle(state, loop.time())
        if connection is None:
            connection = await self._create(state, target)
        self.observe(target, loop.time() - began)
        return connection

    def release(self, target: str, connection: P, *, reusable: bool) -> None:
        """Give a connection back; one that is not reusable is closed."""
        state = self._targets.get(target)
        created_at = None if state is None else state.active.pop(connection, None)
        if state is None or created_at is None:
            connection.close_now()
            return
        if reusable and self.settings.enabled and connection.is_usable():
            state.idle.append(_Parked(connection, created_at, asyncio.get_running_loop().time()))
        else:
            connection.close_now()
        self._wake(state)

    async def close(self) -> None:
        """Close everything. Idempotent; what is handed out is closed when it comes back."""
        janitor, self._janitor = self._janitor, None
        if janitor is not None:
            janitor.cancel()
            await asyncio.gather(janitor, return_exceptions=True)
        targets, self._targets = self._targets, {}
        for state in targets.values():
            for parked in state.idle:
                parked.connection.close_now()
            for waiter in state.waiters:
                waiter.cancel()

    def _take_idle(self, state: _Target[P], now: float) -> P | None:
        while state.idle:
            parked = state.idle.pop()
            if self._is_valid(parked, now):
                state.active[parked.connection] = parked.created_at
                state.counters.reused += 1
                return parked.connection
            state.counters.validation_failures += 1
            parked.connection.close_now()
        return None

    def _is_valid(self, parked: _Parked[P], now: float) -> bool:
        return (
            now - parked.created_at <= self.settings.lifetime_seconds
            and now - parked.parked_at <= self.settings.idle_seconds
            and parked.connection.is_usable()
        )

    async def _create(self, state: _Target[P], target: str) -> P:
        state.dialling += 1
        try:
            connection = await self._dial(target)
        except BaseException:
            self._wake(state)
            raise
        finally:
            state.dialling -= 1
        state.active[connection] = asyncio.get_running_loop().time()
        state.counters.created += 1
        return connection

    async def _wait(self, state: _Target[P]) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        state.waiters[waiter] = None
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._wake(state)  # it was given a place that it does not take
            raise
        finally:
            state.waiters.pop(waiter, None)

    def _wake(self, state: _Target[P]) -> None:
        while state.waiters:
            waiter, _ = state.waiters.popitem(last=False)
            if not waiter.done():
                waiter.set_result(None)
                return

    async def _clean(self) -> None:
        settings, loop = self.settings, asyncio.get_running_loop()
        while True:
            await asyncio.sleep(max(0.01, min(30.0, settings.idle_seconds / 10)))
            now = loop.time()
            for target, state in tuple(self._targets.items()):
                for parked in tuple(state.idle):
                    if not self._is_valid(parked, now):
                        state.idle.remove(parked)
                        state.counters.validation_failures += not parked.connection.is_usable()
                        parked.connection.close_now()
                if now - state.used_at <= settings.idle_seconds:
                    await self._top_up(state, target)
                elif not state.count and not state.waiters:
                    del self._targets[target]

    async def _top_up(self, state: _Target[P], target: str) -> None:
        """Keep a few connections warm to a target that was used lately."""
        while len(state.idle) < self.settings.idle_min and state.count < self.settings.connections_max:
            try:
                connection = await self._create(state, target)
            except TransportError:
                return
            self.release(target, connection, reusable=True)
