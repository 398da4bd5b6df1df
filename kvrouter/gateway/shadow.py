"""Shadow traffic: the other side gets a copy of a request, and its answer is compared with the one that was given.

Never in the client's way: copies are sent after its answer is known, a few at a time, and those that are too many are
dropped and counted. What differs is kept as a sample, without contents.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from kvrouter.errors import GatewayError
from kvrouter.gateway.answers import Answer, error_answer
from kvrouter.gateway.calls import Call
from kvrouter.gateway.differences import compared
from kvrouter.gateway.quiet_log import QuietLog
from kvrouter.gateway.sides import Side, SideName

__all__ = ["IGNORED", "Shadow"]

IGNORED = ("meta", "generation_id")
"""Never compared: they differ by nature. A route adds its own."""
_QUICK_BYTES_MAX = 16 << 10


class Shadow:
    """Sends copies and compares. Lives on one event loop."""

    def __init__(
        self, *, requests_max: int, samples_max: int, count: Callable[[str, str], None], log: QuietLog
    ) -> None:
        """`count` is told the route and what came of a copy: match, diff, error or dropped."""
        self._requests_max, self._count, self._log = requests_max, count, log
        self._tasks: set[asyncio.Task[None]] = set()
        self._samples: deque[dict[str, Any]] = deque(maxlen=samples_max)

    def submit(self, call: Call, other: Side, *, primary: SideName, given: Answer) -> None:
        """Compare what the client was given with what the other side says. Returns at once."""
        if len(self._tasks) >= self._requests_max:
            self._count(call.route.name, "dropped")
            return
        task = asyncio.create_task(self._compare(call, other, primary, given), name=f"shadow {call.request_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def samples(self) -> list[dict[str, Any]]:
        """Return the kept differences, the newest first."""
        return list(reversed(self._samples))

    async def idle(self) -> None:
        """Wait until no copy is under way."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def close(self) -> None:
        """Give up the copies that are under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _compare(self, call: Call, other: Side, primary: SideName, given: Answer) -> None:
        name = call.route.name
        try:
            result, found = await self._result(call, other, given)
        except Exception as bug:  # noqa: BLE001 - supervised edge: a copy must never be more than a number
            result, found = "error", [{"problem": f"the comparison failed: {type(bug).__name__}"}]
        self._count(name, result)
        if result == "match":
            return
        sample = {
            "time": time.time(),
            "route": name,
            "request_id": call.request_id,
            "primary": primary,
            "result": result,
            "differences": found,
        }
        self._samples.append(sample)
        paths = [each["path"] for each in found if "path" in each]
        self._log.tell(logging.INFO, "shadow_difference", name, result=result, paths=paths)

    async def _result(self, call: Call, other: Side, given: Answer) -> tuple[str, list[dict[str, Any]]]:
        try:
            answer = await other.answer(call, is_copy=True)
        except GatewayError as error:
            answer = error_answer(error)
        if answer.status >= 500:
            return "error", [{"problem": f"the other side answered {answer.status}"}]
        if answer.status != given.status:
            return "diff", [{"path": "status", "primary": given.status, "secondary": answer.status}]
        if answer.status >= 400:
            return "match", []  # Both refuse for the same reason; how they say it is not compared.
        if max(len(given.body), len(answer.body)) <= _QUICK_BYTES_MAX:
            return compared(given.body, answer.body, (*IGNORED, *call.route.ignored), call.route.shown)
        # Beside the event loop: clients would wait for a tenth of a second otherwise.
        return await asyncio.to_thread(
            compared, given.body, answer.body, (*IGNORED, *call.route.ignored), call.route.shown
        )
