"""Which frames a Redis stream has: those under way, those that it has lost again. No network here."""

from collections import deque
from collections.abc import Sequence

from kvrouter.events.redis_names import EntryId
from kvrouter_publishers.core import PublisherCore
from kvrouter_publishers.redis_counters import RedisCounters

__all__ = ["Outgoing"]

_FRAMES_MAX = 64
_BYTES_MAX = 4 << 20


class Outgoing:
    """Frames between the core and the stream, in order, bounded in number and bytes.

    What is taken from the core stays here until the stream has it, so an outage loses nothing: it only fills the
    core's own bounded queue. `stored_max` acknowledged frames are remembered by their id, to see which of them a
    server has lost that comes back without its newest data.
    """

    def __init__(self, core: PublisherCore, counters: RedisCounters, *, stored_max: int) -> None:
        self._core, self._counters = core, counters
        self._under_way: list[tuple[int, bytes]] = []
        self._again: deque[tuple[int, bytes]] = deque()
        self._stored: deque[tuple[EntryId, int]] = deque(maxlen=stored_max)

    def __len__(self) -> int:
        return len(self._under_way) + len(self._again)

    def next(self, now: float) -> Sequence[bytes]:
        """Return the frames to send at once; they are under way until `acknowledge` or `send_again`."""
        batch: list[tuple[int, bytes]] = []
        size = 0
        while len(batch) < _FRAMES_MAX and size < _BYTES_MAX:
            if self._again:
                item = self._again.popleft()
            elif (frame := self._core.take(now)) is not None:
                item = (frame.sequence, frame.payload)
            else:
                break
            batch.append(item)
            size += len(item[1])
        self._under_way = batch
        return [payload for _, payload in batch]

    def acknowledge(self, ids: Sequence[EntryId]) -> None:
        """The stream has what was under way, under these ids."""
        self._stored.extend((place, sequence) for place, (sequence, _) in zip(ids, self._under_way, strict=True))
        self._counters.frames_acknowledged += len(ids)
        self._under_way = []

    def send_again(self) -> None:
        """Nobody knows whether the stream has what was under way. Consumers know each batch by its number."""
        self._counters.frames_resent += len(self._under_way)
        self._again.extendleft(reversed(self._under_way))
        self._under_way = []

    def lost_behind(self, last: EntryId) -> None:
        """The stream ends with `last` now: send again what it had behind that, as far as we still have it."""
        if not self._stored or self._stored[-1][0] <= last:
            return
        self._counters.streams_lost += 1
        first = self._stored[-1][1]
        while self._stored and self._stored[-1][0] > last:
            first = min(first, self._stored.pop()[1])
        newer = self._again[0][0] if self._again else self._core.next_sequence
        kept = [item for item in self._core.since(first) if item[0] < newer]
        self._counters.frames_resent += len(kept)
        self._counters.frames_lost += newer - first - len(kept)
        self._again.extendleft(reversed(kept))
