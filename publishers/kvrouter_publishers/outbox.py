"""The hand-over between the engine's thread and the publisher's: bounded, and complete in meaning.

Not a queue to wait on: whoever takes looks again after it was woken.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from kvrouter.events import Event
from kvrouter_publishers.net_changes import NetChanges

__all__ = ["Outbox"]

_FOLDS_MAX: Final = 16
"""Steps that one `put` may sum up: enough to come back below the bound, few enough not to be felt."""
_EXCESS_MAX: Final = 256
_HAND_OVER_SECONDS: Final = 0.0005
"""Whoever holds the lock needs a moment in which we do not hold the interpreter's."""


class Outbox:
    """Keeps the newest `batches_max` steps one by one, and of those before them what they changed in sum.

    The lock keeps the order where steps are summed up: `take` needs it, and holds it while it follows what it took.
    `put` does not wait for it: if it is held just then the step is added beyond the bound, and the next `put` catches
    up. Only far beyond the bound it lets the other thread run, for half a millisecond at most.

    Args:
        batches_max: the bound.
        sum_up: makes an empty sum that follows on what was taken last; called with the lock.
    """

    __slots__ = ("_batches_max", "_steps", "_sum", "_sum_timestamp", "_sum_up", "lock")

    def __init__(self, batches_max: int, sum_up: Callable[[], NetChanges]) -> None:
        self.lock = threading.Lock()
        self._batches_max, self._sum_up = batches_max, sum_up
        self._steps: deque[tuple[float, Sequence[Event]]] = deque()
        self._sum: NetChanges | None = None
        self._sum_timestamp = 0.0

    def __len__(self) -> int:
        return len(self._steps) + (self._sum is not None)

    def put(self, timestamp: float, events: Sequence[Event]) -> None:
        """Add a step."""
        self._steps.append((timestamp, events))
        excess = len(self._steps) - self._batches_max
        if excess > 0 and self.lock.acquire(timeout=_HAND_OVER_SECONDS if excess > _EXCESS_MAX else 0):
            try:
                self._fold()
            finally:
                self.lock.release()

    def take(self) -> tuple[float, Sequence[Event] | NetChanges] | None:
        """Return the oldest step, or the sum of the oldest steps; None if there is nothing. Needs the lock."""
        changes = self._sum
        if changes is not None:
            self._sum = None
            return self._sum_timestamp, changes
        try:
            return self._steps.popleft()
        except IndexError:
            return None

    def _fold(self) -> None:
        for _ in range(min(_FOLDS_MAX, len(self._steps) - self._batches_max)):
            if self._sum is None:
                self._sum = self._sum_up()
            self._sum_timestamp, events = self._steps.popleft()
            self._sum.add(events)
