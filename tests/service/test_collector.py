"""What lives long is set aside from the cycle collector, and is still freed."""

import asyncio
import gc
import weakref

from kvrouter.service.collector import set_survivors_aside


class Held:
    """Something whose end can be seen."""


async def run_for_a_moment() -> None:
    """Let it act at least once."""
    before = gc.get_freeze_count()
    task = asyncio.create_task(set_survivors_aside(interval_seconds=0.001))
    async with asyncio.timeout(60):
        while gc.get_freeze_count() == before:
            await asyncio.sleep(0.001)
    task.cancel()


def test_survivors_are_set_aside_and_freed_by_their_last_reference() -> None:
    """A full collection no longer looks at them; memory comes back all the same."""
    gc.collect()
    held = [Held() for _ in range(10_000)]
    first = weakref.ref(held[0])
    before = gc.get_freeze_count()
    try:
        asyncio.run(run_for_a_moment())
        aside = gc.get_freeze_count() - before
        del held
    finally:
        gc.unfreeze()

    assert aside >= 10_000
    assert first() is None
