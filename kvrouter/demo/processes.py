"""A child process that announces itself with one JSON line and never outlives us.

It gets our end of a pipe as its standard input and is told `--exit-with-parent`: however we end, that pipe closes,
and the child stops by itself, on Linux and macOS alike. It is in a session of its own, so that Ctrl-C in a terminal
reaches us alone, and we stop our children in order.
"""

import asyncio
import contextlib
import json
import os
import sys
from collections import deque
from collections.abc import Sequence
from typing import Any, Self

from kvrouter.errors import KvrouterError

__all__ = ["ChildProcess", "ProcessFailedError"]

OUTPUT_LINES_KEPT = 40
OUTPUT_LINE_BYTES_MAX = 1024 * 1024
START_SECONDS = 30.0
STOP_SECONDS = 5.0


class ProcessFailedError(KvrouterError):
    """A child process did not start, or ended while it was needed."""


class ChildProcess:
    """One `python -m MODULE …`; made by `start`, ended by `stop`."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name, self._process = name, process
        self._output: deque[str] = deque(maxlen=OUTPUT_LINES_KEPT)
        self._announcements: asyncio.Queue[dict[str, Any]] = asyncio.Queue(maxsize=OUTPUT_LINES_KEPT)
        self._reading = asyncio.get_running_loop().create_task(self._read(), name=f"output of {name}")

    @classmethod
    async def start(cls, name: str, module: str, arguments: Sequence[str]) -> Self:
        """Start a module of ours; it runs with our Python and none of the user's KVROUTER_ variables."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            module,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={name: value for name, value in os.environ.items() if not name.startswith("KVROUTER_")},
            limit=OUTPUT_LINE_BYTES_MAX,
            start_new_session=True,
        )
        return cls(name, process)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def last_words(self) -> str:
        """Return the last lines that the process wrote."""
        return "\n".join(f"  {self.name}: {line}" for line in self._output)

    async def announced(self, event: str) -> dict[str, Any]:
        """Return the JSON line whose `event` is the one given.

        Raises:
            ProcessFailedError: the process ended, or said nothing of the kind in time.
        """
        waiting = asyncio.ensure_future(self._next(event))
        try:
            await asyncio.wait({waiting, self._reading}, timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                raise ProcessFailedError(self._complaint("did not start"))
            return waiting.result()
        finally:
            waiting.cancel()

    async def ended(self) -> None:
        """Wait until the process ends; that it does is an error, until `stop`.

        Raises:
            ProcessFailedError: it has ended.
        """
        code = await self._process.wait()
        await asyncio.wait({self._reading}, timeout=1.0)
        raise ProcessFailedError(self._complaint(f"ended with {code}"))

    async def stop(self) -> None:
        """Ask the process to end, insist after a while, and wait until it has."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await self._process.wait()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
                await self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        await self._reading

    async def _next(self, event: str) -> dict[str, Any]:
        while True:
            announcement = await self._announcements.get()
            if announcement.get("event") == event:
                return announcement

    async def _read(self) -> None:
        """Keep the last lines, so that a failure can say what the process said; and never let its pipe fill up."""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            text = line.decode("utf-8", "replace").rstrip()
            self._output.append(text)
            with contextlib.suppress(json.JSONDecodeError, asyncio.QueueFull):
                value = json.loads(text)
                if isinstance(value, dict):
                    self._announcements.put_nowait(value)

    def _complaint(self, what: str) -> str:
        return f"the {self.name} {what}; its last words:\n{self.last_words()}"
