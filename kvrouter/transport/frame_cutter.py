"""Cuts a stream of bytes into frames whose length is told by a head of fixed size. No sockets here.

Every framing in this package is of that shape: two-part and N-part messages, frames of the multiplexed connection.
"""

from collections.abc import Callable, Iterator

__all__ = ["FrameCutter"]

LengthOf = Callable[[bytes | memoryview, int], int]


class FrameCutter:
    """Takes bytes as they arrive and gives back whole frames, head included.

    `length_of(data, at)` is asked as soon as the `head_bytes` bytes of a head are there, and before more is waited for;
    it returns the length of the whole frame, and raises where that is out of bounds. After it has raised the stream has
    lost its framing: nothing more can be read from it. If it returns the length negated, the head is given back alone
    and the rest is skipped as it arrives, whatever its length.

    What arrives whole is not copied; what arrives in pieces is copied once.
    """

    __slots__ = ("_head_bytes", "_length_of", "_missing", "_pieces", "_skipped")

    def __init__(self, head_bytes: int, length_of: LengthOf) -> None:
        self._head_bytes, self._length_of = head_bytes, length_of
        self._pieces: list[bytes] = []
        self._missing = 0  # bytes still needed before the pieces are worth joining
        self._skipped = 0  # bytes still to be skipped

    @property
    def waiting_bytes(self) -> int:
        """Bytes of a frame that is not whole yet."""
        return sum(map(len, self._pieces))

    def feed(self, data: bytes) -> Iterator[memoryview]:
        """Yield every frame that is whole now; must be read to its end before it is called again."""
        if self._pieces:
            self._pieces.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return
            data = b"".join(self._pieces)
            self._pieces.clear()
        view, end = memoryview(data), len(data)
        at = min(self._skipped, end)
        self._skipped -= at
        missing = 0
        while at < end:
            left = end - at
            if left < self._head_bytes:
                missing = self._head_bytes - left
                break
            length = self._length_of(view, at)
            if length < 0:
                yield view[at : at + self._head_bytes]
                at -= length
                continue
            if left < length:
                missing = length - left
                break
            yield view[at : at + length]
            at += length
        if at > end:
            self._skipped = at - end
        elif missing:
            self._pieces.append(data[at:] if at else data)
            self._missing = missing
