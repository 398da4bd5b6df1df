"""What all connections of one data plane share: dispatcher, limits, counts, pool, parsers and a coarse clock."""

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine
from email.utils import formatdate
from typing import Final

from kvrouter.errors import KvrouterError

from .limits import ProxyLimits, ProxyStatistics
from .messages import Dispatcher, Outcome, Route, Usage
from .pool import UpstreamPool
from .request_head import RequestHeads
from .response_head import ResponseHeads

__all__ = ["DataPlane", "ErrorHook"]

ErrorHook = Callable[[str, Exception], None]
"""Told of exceptions that the dispatcher should not have raised: where, and what."""

_ROUTE_LINES_KEPT: Final = 4096
_ID_ENDINGS: Final = [f"{number:03x}" for number in range(4096)]
_RECEIVE_BYTES: Final = 256 * 1024


class DataPlane:
    """The shared part; everything in it lives on one event loop."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        limits: ProxyLimits,
        *,
        pool: UpstreamPool,
        on_error: ErrorHook | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.dispatcher, self.limits, self.pool, self.clock = dispatcher, limits, pool, clock
        self.statistics = ProxyStatistics()
        self.request_heads, self.response_heads = RequestHeads(limits), ResponseHeads()
        self.receive_buffer = memoryview(bytearray(_RECEIVE_BYTES))
        """What clients send arrives here, and is taken out before anything else is read: one memory for all of them."""
        self.draining = False
        self.now = clock()
        """The clock as of the last `tick`; good enough for deadlines."""
        self.date = b""
        self._on_error = on_error
        self._tasks: set[asyncio.Task[None]] = set()
        self.route_lines: dict[str, bytes] = {}
        """What `route_line` returned, by worker."""
        self._id_prefix, self._id_count = secrets.token_hex(8), -1
        self._id_stem = ""
        self.tick()

    def tick(self) -> None:
        """Advance the coarse clock."""
        self.now = self.clock()
        self.date = formatdate(usegmt=True).encode()

    def new_request_id(self) -> str:
        """Return an id that no other request has, in this process or another."""
        self._id_count += 1
        low = self._id_count & 0xFFF
        if not low:
            self._id_stem = f"{self._id_prefix}{self._id_count >> 12:09x}"
        return self._id_stem + _ID_ENDINGS[low]

    def spawn(self, work: Coroutine[object, object, None]) -> "asyncio.Task[None]":
        """Run what has to wait; it is cancelled when the data plane closes."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def cancel_tasks(self) -> None:
        """Cancel what still waits, and see it end."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def failed(self, where: str, error: Exception) -> KvrouterError:
        """Turn what the dispatcher raised into an error to reply with; what it should not have raised is counted."""
        if isinstance(error, KvrouterError):
            return error
        self.statistics.internal_errors += 1
        if self._on_error is not None:
            self._on_error(where, error)
        return KvrouterError("internal error")

    def first_token(self, route: Route) -> None:
        """Tell the dispatcher of the first body byte of a successful answer."""
        try:
            self.dispatcher.first_token(route)
        except Exception as error:  # noqa: BLE001 - supervised edge: counted and reported
            self.failed("first_token", error)

    def finished(self, route: Route, outcome: Outcome, usage: Usage | None) -> None:
        """Count the end of an attempt and tell the dispatcher."""
        outcomes = self.statistics.outcomes
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        try:
            self.dispatcher.finished(route, outcome, usage)
        except Exception as error:  # noqa: BLE001 - supervised edge: counted and reported
            self.failed("finished", error)

    def route_line(self, route: Route) -> bytes:
        """Return the header lines that tell where a request went, up to the overlap; none where it was no worker's."""
        if not self.limits.route_headers or not route.worker_id:
            return b""
        if len(self.route_lines) >= _ROUTE_LINES_KEPT:
            self.route_lines.clear()
        safe = "".join(each if "!" <= each <= "~" else "?" for each in route.worker_id)
        line = b"\r\nx-kvrouter-worker: %b\r\nx-kvrouter-overlap-tokens: " % safe.encode()
        self.route_lines[route.worker_id] = line
        return line

    def _ended(self, task: "asyncio.Task[None]") -> None:
        """A task that died of a bug is loud; its request ends at its deadline."""
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            self.failed("task", error)
