"""Heads that were read before, found again by their bytes: clients and engines repeat themselves.

As a rule only the number of Content-Length differs from one head of the same client or worker to the next, so heads
are remembered without that line. Nothing is judged here: what is found was read, strictly, when it came first.
"""

import re
from collections.abc import Callable
from typing import Any, Final, Generic, Protocol, TypeVar

from kvrouter import native_core

__all__ = ["FramedHead", "HeadMemory", "recall_head", "recall_whole", "split_length"]

_HEADS_KEPT: Final = 512
_HEAD_BYTES_KEPT: Final = 2048
_LENGTH_LINE: Final = re.compile(rb"\r\n[Cc]ontent-[Ll]ength:[ \t]*([0-9]{1,18})[ \t]*(?=\r\n|\Z)")


class FramedHead(Protocol):
    """What a memory must know of a head: whether it says where its body ends, beside a plain Content-Length."""

    chunked: bool
    odd_length: int
    """Content-Length in a spelling that `split_length` leaves alone; -1: none."""
    framed: bool
    """Either of them."""


Head = TypeVar("Head", bound=FramedHead)


class HeadMemory(Generic[Head]):
    """Heads of at most 2 KiB, 512 of each kind, by their bytes without a plain Content-Length."""

    __slots__ = ("framed", "plain", "recall", "recall_whole")

    def __init__(self) -> None:
        self.plain: dict[bytes, Head] = {}
        """Heads that leave it to a plain Content-Length where their body ends, or have none."""
        self.framed: dict[bytes, Head] = {}
        """Heads that are `framed`: with a plain Content-Length too they would be ambiguous."""
        # Hot paths look among `plain` heads by themselves, and ask the rest of this when nothing is found.
        self.recall: Callable[[bytes | memoryview, int, dict[bytes, Head]], tuple[Head, int, int] | None] = _recall
        self.recall_whole: Callable[[bytes | memoryview, int, dict[bytes, Head]], tuple[Head, int, bytes] | None]
        self.recall_whole = _recall_whole

    def find(self, data: "bytes | memoryview", size: int) -> tuple[Head, int, int] | None:
        """Look for a remembered head at the beginning of `data[:size]`.

        Returns:
            The head, its Content-Length or -1, and where it ends in `data`; None for a head that is not whole, not
            remembered, or ambiguous about its body.
        """
        return self.recall(data, size, self.plain) or self.find_framed(data, size)

    def keep(self, block: bytes, head: Head) -> None:
        """Remember a head by its bytes without a plain Content-Length."""
        known = self.framed if head.framed else self.plain
        if len(block) <= _HEAD_BYTES_KEPT:
            if len(known) >= _HEADS_KEPT:
                known.clear()
            known[block] = head

    def find_framed(self, data: "bytes | memoryview", size: int) -> tuple[Head, int, int] | None:
        """As `find`, among the heads alone that are `framed`."""
        found = self.recall(data, size, self.framed) if self.framed else None
        if found is None or found[1] >= 0:
            return None
        head, _, end = found
        return head, head.odd_length, end


def split_length(block: bytes) -> tuple[bytes, int]:
    """Return a head without its first plain Content-Length line, and the number in it; as it is and -1 without one."""
    match = _LENGTH_LINE.search(block)
    if match is None:
        return block, -1
    start, end = match.span()
    return block[:start] + block[end:], int(match[1])


def recall_head(data: "bytes | memoryview", size: int, known: dict[bytes, Any]) -> tuple[Any, int, int] | None:
    """Return the head among `known` that `data[:size]` begins with, its length and its end; the reference."""
    received = bytes(data[:size])
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return None
    block, length = split_length(received[:end])
    head = known.get(block)
    return None if head is None else (head, length, end + 4)


def recall_whole(data: "bytes | memoryview", size: int, known: dict[bytes, Any]) -> tuple[Any, int, bytes] | None:
    """Return the head as `recall_head` does, and the body if that is all the rest of `data[:size]`; the reference."""
    found = recall_head(data, size, known)
    if found is None or size - found[2] != max(found[1], 0):
        return None
    head, length, end = found
    return head, length, bytes(data[end:size])


_recall_whole = native_core.native.recall_whole if native_core.present else recall_whole
_recall = native_core.native.recall_head if native_core.present else recall_head
