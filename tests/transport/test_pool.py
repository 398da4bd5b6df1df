"""The connection pool: reuse, bounds, ages, who waits (A-203 to A-206, A-232, A-251 to A-256, A-275)."""

import asyncio
from dataclasses import dataclass, field

import pytest

from kvrouter.errors import UnreachableError
from kvrouter.transport.pool import ConnectionPool, PoolExhaustedError, PoolSettings
from tests.transport.conformance import eventually, run


@dataclass(eq=False)
class Line:
    """A connection that is nothing but its state."""

    open: bool = True
    closed: int = 0

    def is_usable(self) -> bool:
        """Whether nobody has closed it."""
        return self.open

    def close_now(self) -> None:
        """Count."""
        self.open = False
        self.closed += 1


@dataclass
class Exchange:
    """Dials."""

    lines: list[Line] = field(default_factory=list)
    broken: bool = False

    async def dial(self, target: str) -> Line:
        """A new line."""
        if self.broken:
            raise UnreachableError(target)
        self.lines.append(Line())
        return self.lines[-1]


def test_the_warm_one_is_used_again() -> None:
    """Last in, first out; counters tell created from reused."""

    async def scenario() -> None:
        exchange = Exchange()
        pool = ConnectionPool(exchange.dial)
        first = await pool.acquire("t", seconds=1)
        second = await pool.acquire("t", seconds=1)
        assert (pool.active("t"), pool.idle("t")) == (2, 0)
        pool.release("t", first, reusable=True)
        pool.release("t", second, reusable=True)
        assert (pool.active("t"), pool.idle("t")) == (0, 2)
        assert await pool.acquire("t", seconds=1) is second
        counters = pool.counters()["t"]
        assert (counters.created, counters.reused) == (2, 1)
        await pool.close()

    run(scenario())


def test_what_cannot_be_used_is_replaced() -> None:
    """A-232: closed by the peer, too old, idle for too long, or not to be reused."""

    async def scenario() -> None:
        exchange = Exchange()
        pool = ConnectionPool(exchange.dial, PoolSettings(idle_seconds=1000.0))
        line = await pool.acquire("t", seconds=1)
        pool.release("t", line, reusable=True)
        line.open = False
        other = await pool.acquire("t", seconds=1)
        assert other is not line
        assert pool.counters()["t"].validation_failures == 1
        pool.release("t", other, reusable=False)
        assert other.closed == 1
        aged = ConnectionPool(exchange.dial, PoolSettings(lifetime_seconds=0.0))
        line = await aged.acquire("t", seconds=1)
        aged.release("t", line, reusable=True)
        await asyncio.sleep(0.01)
        assert await aged.acquire("t", seconds=1) is not line
        await pool.close()
        await aged.close()

    run(scenario())


def test_the_bound_holds_and_waiters_go_in_turn() -> None:
    """A-275: exhaustion is an error of its own, with a count."""

    async def scenario() -> None:
        exchange = Exchange()
        pool = ConnectionPool(exchange.dial, PoolSettings(connections_max=2))
        held = [await pool.acquire("t", seconds=1) for _ in range(2)]
        with pytest.raises(PoolExhaustedError, match="all 2 connections"):
            await pool.acquire("t", seconds=0.01)
        order: list[int] = []

        async def use(number: int) -> None:
            line = await pool.acquire("t", seconds=60)
            order.append(number)
            assert pool.active("t") <= 2
            await asyncio.sleep(0)
            pool.release("t", line, reusable=True)

        waiting = [asyncio.create_task(use(number)) for number in range(5)]
        await asyncio.sleep(0)
        for line in held:
            pool.release("t", line, reusable=True)
        await asyncio.gather(*waiting)
        assert order == list(range(5))
        assert len(exchange.lines) == 2
        assert pool.counters()["t"].exhausted == 1
        await pool.close()

    run(scenario())


def test_a_cancelled_waiter_passes_its_place_on() -> None:
    """Nobody waits for ever behind one who has left."""

    async def scenario() -> None:
        exchange = Exchange()
        pool = ConnectionPool(exchange.dial, PoolSettings(connections_max=1))
        line = await pool.acquire("t", seconds=1)
        leaving = asyncio.create_task(pool.acquire("t", seconds=60))
        staying = asyncio.create_task(pool.acquire("t", seconds=60))
        await asyncio.sleep(0)
        pool.release("t", line, reusable=True)
        leaving.cancel()
        assert await staying is line
        await pool.close()

    run(scenario())


def test_a_failed_dial_frees_its_place() -> None:
    """The next one may succeed."""

    async def scenario() -> None:
        exchange = Exchange(broken=True)
        pool = ConnectionPool(exchange.dial, PoolSettings(connections_max=1))
        for _ in range(3):
            with pytest.raises(UnreachableError):
                await pool.acquire("t", seconds=1)
        exchange.broken = False
        assert (await pool.acquire("t", seconds=1)).open
        await pool.close()

    run(scenario())


def test_the_janitor_throws_out_and_tops_up() -> None:
    """A-205: idle time and the least number kept warm."""

    async def scenario() -> None:
        exchange = Exchange()
        pool = ConnectionPool(exchange.dial, PoolSettings(idle_min=3, idle_seconds=0.5))
        pool.start()
        line = await pool.acquire("t", seconds=1)
        pool.release("t", line, reusable=True)
        await eventually(lambda: pool.idle("t") == 3)
        await eventually(lambda: line.closed)
        await eventually(lambda: "t" not in pool.counters())
        assert all(each.closed for each in exchange.lines)
        await pool.close()

    run(scenario())


def test_switched_off_every_use_has_its_own() -> None:
    """A-206: a flag, and nothing is kept."""

    async def scenario() -> None:
        exchange = Exchange()
        pool = ConnectionPool(exchange.dial, PoolSettings(enabled=False, connections_max=1))
        lines = [await pool.acquire("t", seconds=1) for _ in range(3)]
        for line in lines:
            pool.release("t", line, reusable=True)
        assert [line.closed for line in lines] == [1, 1, 1]
        await pool.close()

    run(scenario())
