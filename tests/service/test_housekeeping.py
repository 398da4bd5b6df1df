"""What the service does by itself now and then goes on, whatever happens to one round of it."""

import asyncio

from tests.service.inprocess import InProcess


def test_a_bug_in_one_round_of_housekeeping_does_not_end_the_service() -> None:
    """It runs beside everything else in one group of tasks: its end would be the end of all."""
    service = InProcess().service
    clock, rounds = service.clock, 0

    def broken_once() -> float:
        nonlocal rounds
        rounds += 1
        if rounds == 1:
            raise ZeroDivisionError("a bug")
        return clock()

    async def until_second_round() -> None:
        service.clock = broken_once
        task = asyncio.create_task(service.housekeeping())
        async with asyncio.timeout(60):
            while rounds < 2 and not task.done():
                await asyncio.sleep(0.01)
        assert not task.done()
        task.cancel()

    asyncio.run(until_second_round())

    assert rounds == 2
