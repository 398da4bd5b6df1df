"""The last batches that were sent, kept for subscribers that missed some."""

from collections import deque
from itertools import takewhile

__all__ = ["ReplayRing"]


class ReplayRing:
    """Keeps the newest sent batches, bounded both in number and in bytes."""

    __slots__ = ("_batches", "_batches_max", "_bytes_max", "bytes")

    def __init__(self, *, batches_max: int, bytes_max: int) -> None:
        self._batches: deque[tuple[int, bytes]] = deque()
        self._batches_max, self._bytes_max = batches_max, bytes_max
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._batches)

    def add(self, sequence: int, payload: bytes) -> None:
        """Remember a batch; the oldest ones leave when a bound is reached."""
        self._batches.append((sequence, payload))
        self.bytes += len(payload)
        while len(self._batches) > self._batches_max or self.bytes > self._bytes_max:
            self.bytes -= len(self._batches.popleft()[1])

    def oldest_sequence(self) -> int | None:
        """Return the number of the oldest kept batch, None if there is none."""
        return self._batches[0][0] if self._batches else None

    def since(self, sequence: int) -> list[tuple[int, bytes]]:
        """Return the kept batches from `sequence` on, oldest first; it may begin above what was asked for."""
        newest_first = list(takewhile(lambda batch: batch[0] >= sequence, reversed(self._batches)))
        newest_first.reverse()
        return newest_first
