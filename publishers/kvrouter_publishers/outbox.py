"""The hand-over between the engine's thread and the publisher's: bounded, without locks, losses visible.

Not a queue to wait on: whoever takes looks again after it was woken.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from kvrouter.events import Event

__all__ = ["Outbox", "Parcel"]


class Parcel(NamedTuple):
    """One batch of the engine, and what was lost immediately before it."""

    timestamp: float
    events: Sequence[Event]
    lost_batches: int
    lost_events: int


class Outbox:
    """Keeps the newest `batches_max` batches.

    A full outbox forgets its oldest batch: `deque(maxlen)` does that in one atomic step, so that `put` needs no
    lock and a stuck taker cannot delay the engine. Each batch carries how many batches and events were put
    before it; a jump of these numbers is how `take` sees a loss, and exactly where in the stream it happened.
    """

    __slots__ = ("_batches", "_put_batches", "_put_events", "_taken_batches", "_taken_events")

    def __init__(self, batches_max: int) -> None:
        self._batches: deque[tuple[int, int, float, Sequence[Event]]] = deque(maxlen=batches_max)
        self._put_batches = self._put_events = 0
        self._taken_batches = self._taken_events = 0

    def __len__(self) -> int:
        return len(self._batches)

    def put(self, timestamp: float, events: Sequence[Event]) -> None:
        """Add a batch; never waits."""
        self._batches.append((self._put_batches, self._put_events, timestamp, events))
        self._put_batches += 1
        self._put_events += len(events)

    def take(self) -> Parcel | None:
        """Return the oldest batch, or None if there is none.

        When the parcel reports a loss, the older half of the backlog is forgotten with it. A taker that cannot
        keep up would otherwise lose one batch for each that it takes, and have to say so each time.
        """
        parcel = self._next()
        if parcel is None or not parcel.lost_batches:
            return parcel
        lost_batches, lost_events = parcel.lost_batches, parcel.lost_events
        for _ in range(len(self._batches) // 2):
            newer = self._next()
            if newer is None:
                break
            lost_batches += 1 + newer.lost_batches
            lost_events += len(parcel.events) + newer.lost_events
            parcel = newer
        return parcel._replace(lost_batches=lost_batches, lost_events=lost_events)

    def _next(self) -> Parcel | None:
        try:
            batches_before, events_before, timestamp, events = self._batches.popleft()
        except IndexError:
            return None
        parcel = Parcel(timestamp, events, batches_before - self._taken_batches, events_before - self._taken_events)
        self._taken_batches, self._taken_events = batches_before + 1, events_before + len(events)
        return parcel
