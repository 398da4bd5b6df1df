"""The wire of a queued request: nobody reads the answer as it comes, so it is collected until it is whole."""

import asyncio
from typing import Final

from kvrouter.errors import TransportError
from kvrouter.transport.duplex import StreamLimits
from kvrouter.transport.messages import Kind, decode_error
from kvrouter.transport.server_stream import ServerStream

__all__ = ["CollectedAnswer"]

_UNBOUNDED: Final = 1 << 62
_ITEM_COST: Final = 8
"""What an item costs beside its bytes, in the message that carries the answer."""


class CollectedAnswer:
    """A `Wire` that keeps the items of one answer, `bytes_max` at most."""

    limits: Final = StreamLimits(peer_window_bytes=_UNBOUNDED, frame_bytes_max=_UNBOUNDED)

    def __init__(self, *, bytes_max: int) -> None:
        self.stream: ServerStream | None = None
        """The side of the handler, once the request was taken."""
        self._bytes_max = bytes_max
        self._size = 0
        self._items: list[bytes] = []
        self._error: TransportError | None = None
        self._over = asyncio.Event()

    @property
    def opened(self) -> bool:
        """Whether the request was taken."""
        return self.stream is not None

    @property
    def succeeded(self) -> bool:
        """Whether the answer is whole."""
        return self._over.is_set() and self._error is None

    async def items(self) -> list[bytes]:
        """Wait for the end of the answer and return it; raises the error that ended it."""
        await self._over.wait()
        if self._error is not None:
            raise self._error
        return self._items

    def abandon(self) -> None:
        """Nobody waits for the answer any more; ends the handler if it still works."""
        if self.stream is not None and not self._over.is_set():
            self._error = TransportError("nobody waits for the answer any more", code="CANCELLED")
            self.stream.on_kill()

    def transmit(self, kind: Kind, payload: bytes | memoryview = b"", *, more: bool = False) -> None:
        """Take what the handler's side says; see `Wire`."""
        if kind is Kind.DATA:
            assert not more, "items come whole, as no frame is too long"
            self._keep(bytes(payload))
        elif payload and kind in (Kind.PROLOGUE, Kind.RESET):
            self._error = decode_error(payload)

    async def writable(self) -> None:
        """Never wait; see `Wire`."""

    def forget(self) -> None:
        """The handler's side is over; see `Wire`."""
        self._over.set()

    def _keep(self, item: bytes) -> None:
        self._size += len(item) + _ITEM_COST
        if self._size <= self._bytes_max:
            self._items.append(item)
        elif self._error is None and self.stream is not None:
            message = f"an answer of more than {self._bytes_max} bytes cannot be queued"
            self._error = TransportError(message, code="OUT_OF_RANGE")
            self._items.clear()
            self.stream.on_error(self._error)
