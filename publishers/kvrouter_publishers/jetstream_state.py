"""Answers subscribers that want a publisher's whole state, part by part, over plain NATS request and reply.

A request is a msgpack map: `part`, from 0, and for every other part `of`, the snapshot that part 0 began, as its
`incarnation` and `sequence`. The answer is the part's frame, or one word: `empty` (nothing was published yet), `gone`
(begin with part 0 again), `refused` (that is no request), `none` (there are no snapshots).
"""

from collections.abc import Iterator, Sequence
from typing import Final

import msgpack

from kvrouter_publishers.core import PublisherCore

__all__ = ["StateDesk"]

_REQUEST_BYTES_MAX: Final = 1024
_ASKED_MAX: Final = 1024
_KEPT_MAX: Final = 2
_KEPT_SECONDS: Final = 30.0


class _Kept:
    """A snapshot that is being fetched."""

    __slots__ = ("frames", "sequence", "used_at")

    def __init__(self, frames: Sequence[bytes], sequence: int, now: float) -> None:
        self.frames, self.sequence, self.used_at = frames, sequence, now


class _Making:
    """A snapshot that is being made, and who waits for it."""

    __slots__ = ("sequence", "steps", "waiting")

    def __init__(self, steps: Iterator[list[bytes]], sequence: int, waiting: list[str]) -> None:
        self.steps, self.sequence, self.waiting = steps, sequence, waiting


class StateDesk:
    """Takes snapshots and keeps the last two for as long as somebody fetches their parts.

    A snapshot is made a part at a time, so that live batches have their turn between. All who ask before it is begun
    share it; who asks later may have missed what it does not have.
    """

    def __init__(self, core: PublisherCore, *, part_bytes_max: int, offered: bool) -> None:
        self._core, self._part_bytes_max, self._offered = core, part_bytes_max, offered
        self._asked: list[tuple[str, bytes]] = []
        self._waiting: list[str] = []
        self._making: _Making | None = None
        self._kept: list[_Kept] = []
        self.parts_served = self.requests_refused = 0

    @property
    def busy(self) -> bool:
        """Whether `advance` has something to do."""
        return bool(self._asked or self._waiting or self._making)

    def ask(self, reply: str, request: bytes) -> None:
        """Take a request; beyond a bound it is forgotten, and comes again."""
        if len(self._asked) + len(self._waiting) < _ASKED_MAX:
            self._asked.append((reply, request))

    def advance(self, now: float) -> list[tuple[str, bytes]]:
        """Return the answers that are ready, each with where it goes; `now` is monotonic seconds."""
        if self._kept:
            self._kept = [kept for kept in self._kept if now - kept.used_at < _KEPT_SECONDS]
        answers = []
        asked, self._asked = self._asked, []
        for reply, request in asked:
            answer = self._answer(request, now)
            if answer is None:
                self._waiting.append(reply)
            else:
                answers.append((reply, answer))
        if self._making is None and self._waiting:
            steps = self._core.prepare_snapshot(part_bytes_max=self._part_bytes_max)
            self._making = _Making(steps, self._core.next_sequence - 1, self._waiting)
            self._waiting = []
        if self._making is not None:
            answers += self._make(self._making, now)
        return answers

    def _answer(self, request: bytes, now: float) -> bytes | None:
        """Return what can be answered at once, None if a snapshot must be made for it."""
        read = _read(request)
        if read is None:
            self.requests_refused += 1
            return b"refused"
        if not self._offered:
            return b"none"
        part, of = read
        kept = self._begun(of) if part else self._newest()
        if kept is None:
            return b"gone" if part else None
        if part >= len(kept.frames):
            self.requests_refused += 1
            return b"refused"
        kept.used_at = now
        self.parts_served += 1
        return kept.frames[part]

    def _make(self, making: _Making, now: float) -> list[tuple[str, bytes]]:
        """Make one more part; answers those who wait when it was the last."""
        frames = next(making.steps, None)
        if frames is not None and not frames:
            return []
        self._making = None
        if frames is None:
            return [(reply, b"empty") for reply in making.waiting]
        self._kept = [*self._kept[1 - _KEPT_MAX :], _Kept(frames, making.sequence, now)]
        self.parts_served += len(making.waiting)
        return [(reply, frames[0]) for reply in making.waiting]

    def _begun(self, of: tuple[int, int] | None) -> _Kept | None:
        if of is None or of[0] != self._core.incarnation:
            return None
        return next((kept for kept in self._kept if kept.sequence == of[1]), None)

    def _newest(self) -> _Kept | None:
        """Return a snapshot to which nothing was added since."""
        newest = self._core.next_sequence - 1
        return self._kept[-1] if self._kept and self._kept[-1].sequence == newest else None


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
