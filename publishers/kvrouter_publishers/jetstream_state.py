"""Answers subscribers that want a publisher's whole state, part by part, over plain NATS request and reply.

A request is a msgpack map: `part`, from 0, and for every other part `of`, the snapshot that part 0 began, as its
`incarnation` and `sequence`. The answer is the part's frame, or one word: `empty` (nothing was published yet), `gone`
(begin with part 0 again), `refused` (that is no request), `none` (there are no snapshots).
"""

import time
from collections.abc import Sequence
from typing import Final

import msgpack

from kvrouter_publishers.core import PublisherCore

__all__ = ["StateDesk"]

_REQUEST_BYTES_MAX: Final = 1024
_KEPT_MAX: Final = 2
_KEPT_SECONDS: Final = 30.0


class _Kept:
    """A snapshot that is being fetched."""

    __slots__ = ("frames", "sequence", "used_at")

    def __init__(self, frames: Sequence[bytes], sequence: int, now: float) -> None:
        self.frames, self.sequence, self.used_at = frames, sequence, now


class StateDesk:
    """Takes snapshots and keeps the last two for as long as somebody fetches their parts."""

    def __init__(self, core: PublisherCore, *, part_bytes_max: int, offered: bool) -> None:
        self._core, self._part_bytes_max, self._offered = core, part_bytes_max, offered
        self._kept: list[_Kept] = []
        self.parts_served = self.requests_refused = 0

    def answer(self, request: bytes) -> bytes:
        """Return the answer to one request; never raises, whatever its bytes."""
        read = _read(request)
        if read is None:
            self.requests_refused += 1
            return b"refused"
        if not self._offered:
            return b"none"
        part, of = read
        now = time.monotonic()
        self.tidy(now)
        kept = self._begun(of) if part else self._begin(now)
        if kept is None:
            return b"gone" if part else b"empty"
        if part >= len(kept.frames):
            self.requests_refused += 1
            return b"refused"
        kept.used_at = now
        self.parts_served += 1
        return kept.frames[part]

    def tidy(self, now: float) -> None:
        """Forget snapshots that nobody fetches any more; `now` is monotonic seconds."""
        if self._kept:
            self._kept = [kept for kept in self._kept if now - kept.used_at < _KEPT_SECONDS]

    def _begun(self, of: tuple[int, int] | None) -> _Kept | None:
        if of is None or of[0] != self._core.incarnation:
            return None
        return next((kept for kept in self._kept if kept.sequence == of[1]), None)

    def _begin(self, now: float) -> _Kept | None:
        """Return a snapshot of this moment: whoever asks may have missed anything up to it."""
        newest = self._core.next_sequence - 1
        if self._kept and self._kept[-1].sequence == newest:
            return self._kept[-1]
        frames = self._core.snapshot(part_bytes_max=self._part_bytes_max)
        if not frames:
            return None
        self._kept = [*self._kept[1 - _KEPT_MAX :], _Kept(frames, newest, now)]
        return self._kept[-1]


def _read(request: bytes) -> tuple[int, tuple[int, int] | None] | None:
    if len(request) > _REQUEST_BYTES_MAX:
        return None
    try:
        fields = msgpack.unpackb(request)
    except (ValueError, TypeError, msgpack.UnpackException):
        return None
    match fields:
        case {"part": int(part), **rest} if not isinstance(part, bool) and part >= 0:
            return part, _life(rest.get("of"))
        case _:
            return None


def _life(value: object) -> tuple[int, int] | None:
    match value:
        case {"incarnation": int(incarnation), "sequence": int(sequence)}:
            return incarnation, sequence
        case _:
            return None
