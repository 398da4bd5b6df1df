"""Keeps Python's cycle collector from pausing the event loop while the caches' maps grow.

A full collection looks at every container that exists, tens of milliseconds for 65 k known blocks; nothing that lives
long here is in a cycle, so all that work finds nothing. What has outlived the young collections is therefore set
aside now and then. Set aside, an object is still freed by its last reference; only a cycle that dies later is not,
and a routed request makes none (`tests/service` holds it to that).
"""

import asyncio
import gc
from typing import Final

__all__ = ["COLLECTOR_SECONDS", "set_survivors_aside"]

COLLECTOR_SECONDS: Final = 10.0


async def set_survivors_aside(*, interval_seconds: float = COLLECTOR_SECONDS) -> None:
    """Collect the young and set the survivors aside, for ever."""
    while True:
        await asyncio.sleep(interval_seconds)
        gc.collect(1)
        gc.freeze()
