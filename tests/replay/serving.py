"""Helpers for tests of the engine over HTTP: an engine inside the test's loop, and one as a real process."""

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import httpx

from kvrouter.replay.engine.options import parse_options
from kvrouter.replay.engine.simulated import SimulatedEngine

T = TypeVar("T")

DEADLINE_SECONDS = 60.0
INSTANT = ("--prefill-tokens-per-second", "1e9", "--step-seconds", "0", "--decode-seconds", "0")
"""An engine that waits for nothing."""


def run(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a test's coroutine with a deadline."""

    async def bounded() -> T:
        async with asyncio.timeout(DEADLINE_SECONDS):
            return await work()

    return asyncio.run(bounded())


@asynccontextmanager
async def engine(*arguments: str) -> AsyncIterator[tuple[httpx.AsyncClient, SimulatedEngine]]:
    """Serve an engine on a free port, and give a client of it."""
    options = parse_options([*INSTANT, "--decode-seconds-per-request", "0", *arguments])
    simulated = SimulatedEngine(options)
    await simulated.start()
    running = asyncio.ensure_future(simulated.run())
    client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{simulated.port}", timeout=DEADLINE_SECONDS)
    try:
        yield client, simulated
    finally:
        await client.aclose()
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        simulated.close()


async def eventually(holds: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait until something holds; the deadline is the test's."""
    while True:
        result = holds()
        if result if isinstance(result, bool) else await result:
            return
        await asyncio.sleep(0.01)


@contextmanager
def engine_process(*arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, Any]]]:
    """Start an engine as a real process, and end it by its id."""
    command = [sys.executable, "-m", "kvrouter.replay.engine", "--exit-with-parent", *INSTANT, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


def within_deadline(holds: Callable[[], bool]) -> None:
    """Wait, outside of any loop, until something holds."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)
