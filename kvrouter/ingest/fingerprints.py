"""What the last batches of a life looked like, so that a number that comes again can be told from another life's.

Only for wires that name no lives: there the same number with the same bytes is a duplicate, with other bytes a restart.
"""

import sys
from array import array
from collections.abc import Sequence
from typing import Final, Literal

from xxhash import xxh3_64_intdigest

from kvrouter import native_core
from kvrouter.events import peek_timestamp

__all__ = ["CLOCK_STEP_SECONDS", "REACH", "Fingerprints"]

CLOCK_STEP_SECONDS: Final = 1.0
"""Engines stamp with the wall clock, which may be set back a little."""

REACH: Final = 4096
"""Batches that are remembered."""

_SKIPPED: Final = 0  # In place of a digest: this number was given up, whatever it carried.
_COVERED: Final = 1  # In place of a digest: a snapshot says what this number and those before it brought about.

Verdict = Literal["same", "other", "skipped", "unknown"]


class Fingerprints:
    """Digests of the last `REACH` batches; all numbers asked about are below the next one."""

    __slots__ = ("_covered_at", "_digests")

    def __init__(self) -> None:
        self._digests = array("Q", bytes(8 * REACH))
        self._covered_at: float | None = None  # When the last snapshot was made.

    def note(self, sequence: int, payload: bytes) -> None:
        """Remember a batch."""
        self._digests[sequence % REACH] = _digest(payload)

    def note_run(self, first: int, payloads: Sequence[bytes]) -> None:
        """Remember batches with numbers from `first` on."""
        if native_core.present:
            native_core.native.note_digests(self._digests, first % REACH, payloads, _COVERED + 1)
            return
        for sequence, payload in enumerate(payloads, first):
            self.note(sequence, payload)

    def skip(self, start: int, end: int) -> None:
        """Numbers from `start` to below `end` are given up."""
        self._fill(start, end, _SKIPPED)

    def cover(self, start: int, end: int, stamp: float | None) -> None:
        """A snapshot that was made at `stamp` includes numbers from `start` to below `end`."""
        self._fill(start, end, _COVERED)
        self._covered_at = stamp

    def judge(self, sequence: int, payload: bytes, *, expected: int) -> Verdict:
        """Compare a batch with what came under its number; `expected` is the next number."""
        if sequence < expected - REACH:
            return "unknown"
        known = self._digests[sequence % REACH]
        if known == _SKIPPED:
            return "skipped"
        if known == _COVERED:
            return "other" if self._is_newer(payload) else "same"
        return "same" if known == _digest(payload) else "other"

    def dump(self, expected: int) -> tuple[bytes, float | None]:
        """What `load` takes to know the same, in little-endian order from the oldest number on."""
        kept = array("Q", (self._digests[number % REACH] for number in range(max(0, expected - REACH), expected)))
        return _little_endian(kept).tobytes(), self._covered_at

    def load(self, expected: int, digests: bytes, covered_at: float | None) -> None:
        """Know what was dumped; digests are as many as there are numbers below `expected`, at most `REACH`."""
        kept = array("Q", digests)
        _little_endian(kept)
        for number, digest in enumerate(kept, expected - len(kept)):
            self._digests[number % REACH] = digest
        self._covered_at = covered_at

    def _is_newer(self, payload: bytes) -> bool:
        """Whether a batch is newer than the snapshot that covers its number, as one of another life is."""
        stamp = peek_timestamp(payload)
        return stamp is not None and self._covered_at is not None and stamp > self._covered_at + CLOCK_STEP_SECONDS

    def _fill(self, start: int, end: int, digest: int) -> None:
        for sequence in range(max(start, end - REACH), end):
            self._digests[sequence % REACH] = digest


def _digest(payload: bytes) -> int:
    return max(int(xxh3_64_intdigest(payload)), _COVERED + 1)


def _little_endian(values: "array[int]") -> "array[int]":
    if sys.byteorder == "big":
        values.byteswap()
    return values
