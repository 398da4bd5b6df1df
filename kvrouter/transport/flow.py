"""Flow control of one direction of one stream, by credit. Pure: no sockets, nothing waits.

The receiver grants a window of bytes; the sender spends it with every piece and waits when it is spent; what the
application has taken is granted again. So a slow reader holds up its own stream, and no other. Each piece costs its
length and `PIECE_COST`, so that empty items are not free.
"""

from collections import deque
from collections.abc import Iterator

from kvrouter.errors import ProtocolError, RefusedError, TransportError
from kvrouter.transport.two_part import MESSAGE_BYTES_MAX

__all__ = ["PIECE_COST", "WINDOW_BYTES", "CreditError", "Inbound", "Outbound"]

PIECE_COST = 24
WINDOW_BYTES = 256 << 10


class CreditError(ProtocolError):
    """The sender has no credit for what it sends: it has lost count, of other streams perhaps too."""


class Inbound:
    """Items as they arrive, until the application takes them.

    An item may come in several pieces. Once nothing waits before it, the pieces of an item that is not whole are
    credited at once, or one longer than the window could never arrive. So at most a window and one longest item are
    held. Not `enforced` is for transports with a flow control of their own, which count what they are granted.
    """

    __slots__ = (
        "_credit",
        "_due",
        "_enforced",
        "_item_bytes_max",
        "_items",
        "_pieces",
        "_pieces_bytes",
        "_pieces_cost",
        "_window_bytes",
        "ended",
        "error",
    )

    def __init__(
        self, *, window_bytes: int = WINDOW_BYTES, item_bytes_max: int = MESSAGE_BYTES_MAX, enforced: bool = True
    ) -> None:
        self._enforced = enforced
        self._credit = self._window_bytes = window_bytes
        self._due = 0
        self._item_bytes_max = item_bytes_max
        self._items: deque[tuple[bytes, int]] = deque()
        self._pieces: list[bytes] = []
        self._pieces_bytes = self._pieces_cost = 0
        self.ended = False
        """Whether nothing more will arrive."""
        self.error: TransportError | None = None
        """Why it ended, if not as it should."""

    def __len__(self) -> int:
        """Whole items that wait."""
        return len(self._items)

    @property
    def waiting_bytes(self) -> int:
        """Bytes held for the application."""
        return self._pieces_bytes + sum(len(item) for item, _ in self._items)

    def put(self, piece: bytes, *, more: bool = False) -> None:
        """Take in a piece of an item, or with `more` False its last one.

        Raises:
            ProtocolError: the stream had ended.
            CreditError: the sender had no credit for this.
            RefusedError: the item is too long; code `RESOURCE_EXHAUSTED`.
        """
        if self.ended:
            raise ProtocolError("data after the end of the stream")
        cost = len(piece) + PIECE_COST
        self._credit -= cost
        if self._credit < 0 and self._enforced:
            raise CreditError(f"data beyond the window of {self._window_bytes} bytes")
        if not more and not self._pieces:
            self._items.append((piece, cost))
            return
        self._pieces_bytes += len(piece)
        if self._pieces_bytes > self._item_bytes_max:
            message = f"an item of {self._pieces_bytes} bytes or more exceeds the limit of {self._item_bytes_max}"
            raise RefusedError(message, code="RESOURCE_EXHAUSTED", retryable=False)
        self._pieces.append(piece)
        self._pieces_cost += cost
        if not more:
            self._items.append((b"".join(self._pieces), self._pieces_cost))
            self._pieces.clear()
            self._pieces_bytes = self._pieces_cost = 0

    def end(self, error: TransportError | None = None) -> None:
        """Nothing more will arrive; items that did can still be taken. The first end counts."""
        if not self.ended:
            self.ended = True
            if error is None and self._pieces:
                error = ProtocolError("the stream ended within an item")
            self.error = error
            self._pieces.clear()
            self._pieces_bytes = 0

    def drop(self) -> None:
        """Throw away what waits: nobody will take it."""
        self._items.clear()
        self._pieces.clear()
        self._pieces_bytes = 0

    def take(self) -> bytes:
        """The next item; there must be one (`len`)."""
        item, cost = self._items.popleft()
        self._due += cost
        return item

    def grant(self) -> int:
        """Credit that is worth telling the sender now, 0 for none: half a window at a time, so that telling is rare."""
        if not self._items:
            self._due += self._pieces_cost
            self._pieces_cost = 0
        if self._due * 2 < self._window_bytes or self.ended:
            return 0
        due, self._due = self._due, 0
        self._credit += due
        return due


class Outbound:
    """Credit for what is sent, and how items are cut."""

    __slots__ = ("_piece_bytes", "credit", "ended")

    def __init__(self, *, window_bytes: int = WINDOW_BYTES, frame_bytes_max: int = 1 << 20) -> None:
        self.credit = window_bytes
        self.ended = False
        # A quarter of the window each: the next piece can leave before the credit of the first is back.
        self._piece_bytes = max(1, min(frame_bytes_max, window_bytes // 4) - PIECE_COST)

    def pieces(self, item: bytes | memoryview) -> Iterator[tuple[bytes | memoryview, bool]]:
        """Cut an item: each piece, and whether more follow."""
        if len(item) <= self._piece_bytes:
            yield item, False
            return
        view, last = memoryview(item), len(item) - self._piece_bytes
        for at in range(0, len(item), self._piece_bytes):
            yield view[at : at + self._piece_bytes], at < last

    def spend(self, piece: bytes | memoryview) -> bool:
        """Pay for a piece; False if there is not enough credit yet."""
        cost = len(piece) + PIECE_COST
        if cost > self.credit:
            return False
        self.credit -= cost
        return True
