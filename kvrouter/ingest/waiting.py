"""Batches that came before their turn, and batches that may have to be applied once more. Both are bounded.

Here is the keeping; `sequencer` and `followed` decide what comes in and what happens at the bounds.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from math import inf
from typing import NamedTuple, TypeAlias

from kvrouter.events import peek_timestamp
from kvrouter.events.digest import DigestRow
from kvrouter.ingest.limits import IngestLimits

__all__ = ["Batch", "DigestRows", "Journal", "Waiting"]

DigestRows: TypeAlias = Sequence[DigestRow]
"""What a publisher holds, in few numbers."""


class Batch(NamedTuple):
    """One batch as it came, and what its publisher holds after it, if it said so."""

    payload: bytes
    digest: DigestRows | None = None


class Waiting:
    """Batches by number, for those before them."""

    __slots__ = ("_batches", "_bytes", "_limits", "_since")

    def __init__(self, limits: IngestLimits) -> None:
        self._batches: dict[int, Batch] = {}
        self._bytes = 0
        self._limits = limits
        self._since = inf  # No batch that waits has an earlier stamp.

    def __len__(self) -> int:
        return len(self._batches)

    def __contains__(self, sequence: int) -> bool:
        return sequence in self._batches

    @property
    def lowest(self) -> int:
        """The first number; there must be one."""
        return min(self._batches)

    @property
    def highest(self) -> int:
        """The last number; there must be one."""
        return max(self._batches)

    @property
    def full(self) -> bool:
        """Whether a bound is passed."""
        limits = self._limits
        return len(self._batches) > limits.buffered_batches_max or self._bytes > limits.buffered_bytes_max

    def add(self, sequence: int, batch: Batch) -> None:
        """Keep a batch, unless one of that number is there."""
        if sequence in self._batches:
            return
        self._batches[sequence] = batch
        self._bytes += len(batch.payload)
        stamp = peek_timestamp(batch.payload)
        if stamp is not None and stamp < self._since:
            self._since = stamp

    def take(self, sequence: int) -> Batch | None:
        """Return the batch of that number, and keep it no longer."""
        batch = self._batches.pop(sequence, None)
        if batch is not None:
            self._bytes -= len(batch.payload)
        return batch

    def first_missing(self, sequence: int) -> int:
        """The first number from `sequence` on that is not there."""
        while sequence in self._batches:
            sequence += 1
        return sequence

    def clear(self) -> None:
        """Keep nothing."""
        self._batches.clear()
        self._bytes = 0
        self._since = inf

    def forget_below(self, sequence: int) -> None:
        """Drop lower numbers."""
        for number in [number for number in self._batches if number < sequence]:
            self.take(number)

    def forget_before_run(self, sequence: int) -> None:
        """Drop what comes before the unbroken run of numbers that ends with `sequence`."""
        while sequence - 1 in self._batches:
            sequence -= 1
        self.forget_below(sequence)

    def forget_before(self, stamp: float) -> None:
        """Drop batches of an earlier time."""
        if self._since >= stamp:
            return  # Looking at each one again for every batch of a long replay would take longer than the replay.
        self._since = inf
        for sequence, batch in list(self._batches.items()):
            since = peek_timestamp(batch.payload)
            if since is not None and since < stamp:
                self.take(sequence)
            elif since is not None and since < self._since:
                self._since = since


class Journal:
    """The last batches that were applied, so that a snapshot which is a little older can be brought up to date."""

    __slots__ = ("_batches", "_bytes", "_limits", "_start")

    def __init__(self, limits: IngestLimits, start: int) -> None:
        self._batches: deque[bytes] = deque()
        self._bytes = 0
        self._limits = limits
        self._start = start

    @property
    def start(self) -> int:
        """Batches from this number on are here, without a hole."""
        return self._start

    def add(self, sequence: int, payload: bytes) -> None:
        """Keep a batch that was applied; a number that was skipped makes those before it useless."""
        if sequence != self._start + len(self._batches):
            self._batches.clear()
            self._bytes, self._start = 0, sequence
        self._batches.append(payload)
        self._bytes += len(payload)
        limits = self._limits
        while len(self._batches) > limits.buffered_batches_max or self._bytes > limits.buffered_bytes_max:
            self._bytes -= len(self._batches.popleft())
            self._start += 1

    def after(self, sequence: int) -> Iterator[bytes]:
        """The batches after that number, which is not before `start` - 1."""
        for number, payload in enumerate(self._batches, self._start):
            if number > sequence:
                yield payload
