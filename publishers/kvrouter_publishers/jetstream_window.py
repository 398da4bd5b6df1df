"""Which frames a server has: those sent and not acknowledged yet, those it lost again. No network here."""

from collections import deque
from collections.abc import Iterable

from kvrouter_publishers.core import Frame, PublisherCore

__all__ = ["Window"]


class Window:
    """Frames between the core and the server, in order, bounded in number and bytes.

    A frame is *unsent*, then *outstanding*, then acknowledged and forgotten here. What is taken from the core stays
    here until the server has it, so an outage loses nothing: it only fills the core's own bounded queue.

    `stored_max` acknowledged frames are remembered by their place in the stream, to see which of them a server lost
    that comes back without its newest data.
    """

    def __init__(self, core: PublisherCore, *, frames_max: int, bytes_max: int, stored_max: int) -> None:
        self.outstanding: dict[int, Frame] = {}
        self.highest_place = 0
        self._core, self._frames_max, self._bytes_max = core, frames_max, bytes_max
        self._bytes = 0
        self._unsent: deque[Frame] = deque()
        self._taken = -1
        self._stored: deque[tuple[int, int]] = deque(maxlen=stored_max)

    def __len__(self) -> int:
        return len(self._unsent) + len(self.outstanding)

    @property
    def full(self) -> bool:
        """Whether the server must acknowledge something before more is sent."""
        return len(self.outstanding) >= self._frames_max or (self._bytes >= self._bytes_max and bool(self.outstanding))

    def next(self, now: float) -> Frame | None:
        """Return the next frame to send, which is outstanding from now on; None if there is none, or no room."""
        if self.full:
            return None
        frame = self._unsent.popleft() if self._unsent else self._core.take(now)
        if frame is not None:
            self._taken = max(self._taken, frame.sequence)
            self.outstanding[frame.sequence] = frame
            self._bytes += len(frame.payload)
        return frame

    def forget(self, sequence: int) -> bool:
        """A frame needs no acknowledgement any more; returns whether it was outstanding."""
        frame = self.outstanding.pop(sequence, None)
        if frame is None:
            return False
        self._bytes -= len(frame.payload)
        return True

    def acknowledge(self, sequence: int, place: int) -> bool:
        """The server has a frame, at `place` of the stream; returns whether that is news."""
        if not self.forget(sequence):
            return False
        self._stored.append((place, sequence))
        self.highest_place = max(self.highest_place, place)
        return True

    def send_again(self) -> int:
        """Send everything again that is outstanding, before anything else; returns how many frames that are."""
        again = len(self.outstanding)
        self._unsent.extendleft(reversed(self.outstanding.values()))
        self.outstanding.clear()
        self._bytes = 0
        return again

    def lost_behind(self, place: int) -> int:
        """The server lost what it had behind `place` of the stream: send again what the core still has of it.

        Returns how many acknowledged frames are sent again.
        """
        lost = [sequence for at, sequence in self._stored if at > place]
        self.highest_place = place
        if not lost:
            return 0
        self.send_again()
        known = len(self._unsent)
        frames = (Frame(number, payload, 0) for number, payload in self._core.since(min(lost)))
        self._unsent = deque(_ordered([*self._unsent, *(frame for frame in frames if frame.sequence <= self._taken)]))
        kept = [(at, sequence) for at, sequence in self._stored if at <= place]
        self._stored.clear()
        self._stored.extend(kept)
        return len(self._unsent) - known


def _ordered(frames: Iterable[Frame]) -> list[Frame]:
    return [frame for _, frame in sorted({frame.sequence: frame for frame in frames}.items())]
