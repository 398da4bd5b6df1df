"""Reads sockets ahead: the next bytes of a busy one are copied out of the kernel while the last ones are applied.

The one thread of the subscribers is the native core's, and knows nothing of what it reads. A reading is asked for only
where much has just come, so that sources that say little cost what they would cost without. `ReadLater` is short Python
and the specification of the core's part; it takes its place where there are no threads.
"""

import errno
import os
import socket
from typing import Final, Protocol

from kvrouter.native_core import native

__all__ = ["ROOM_BEFORE", "ReadAhead", "ReadLater", "Reader", "Reading"]

ROOM_BEFORE: Final = 128 << 10
"""Bytes before what is read, for the beginning of a message that came earlier."""


_HAS_THREADS: Final = hasattr(native, "ReadAhead")


class Reading:
    """What was asked for: `buffer` has what it brings from `ROOM_BEFORE` on."""

    __slots__ = ("buffer", "number")

    def __init__(self, number: int, buffer: bytearray) -> None:
        self.number, self.buffer = number, buffer


class Reader(Protocol):
    """Reads sockets that do not block. For one thread; a socket stays open from `ask` to `fetch` or `drop`."""

    def ask(self, connection: socket.socket, buffer: bytearray, start: int, /) -> int | None:
        """Have `connection` read once into `buffer` from `start` on; the number of the reading, None if that cannot be.

        Nobody changes the buffer meanwhile.
        """
        ...

    def fetch(self, number: int, /) -> int:
        """Return how many bytes came, 0 at the end of the stream; an error is its number, negative."""
        ...

    def drop(self, number: int, /) -> None:
        """End a reading of which nobody wants to know."""
        ...

    def close(self) -> None:
        """Begin no more; what was asked for can still be fetched."""
        ...


class ReadLater:
    """A `Reader` that reads when somebody wants to know what came."""

    def __init__(self) -> None:
        self._asked: dict[int, tuple[socket.socket, memoryview]] = {}
        self._next, self._closed = 0, False

    def ask(self, connection: socket.socket, buffer: bytearray, start: int, /) -> int | None:
        """Note it."""
        if self._closed:
            return None
        self._next += 1
        self._asked[self._next] = (connection, memoryview(buffer)[start:])
        return self._next

    def fetch(self, number: int, /) -> int:
        """Read."""
        connection, space = self._asked.pop(number)
        try:
            return connection.recv_into(space)
        except OSError as error:
            return -(error.errno or errno.EIO)

    def drop(self, number: int, /) -> None:
        """Forget it."""
        del self._asked[number]

    def close(self) -> None:
        """Note nothing any more."""
        self._closed = True


class ReadAhead:
    """Owns a `Reader`, by default one with a thread, and up to `readings_max` buffers for `bytes_max` each."""

    def __init__(self, *, bytes_max: int, readings_max: int, reader: Reader | None = None) -> None:
        if reader is None:
            reader = native.ReadAhead() if _HAS_THREADS else ReadLater()
        self._reader = reader
        self._bytes_max, self._left = bytes_max, readings_max
        self._spare: list[bytearray] = []

    def ask(self, connection: socket.socket) -> Reading | None:
        """Have more read of what has much to say; None where that cannot be now."""
        if not self._spare:
            if not self._left:
                return None
            self._left -= 1
            self._spare.append(bytearray(ROOM_BEFORE + self._bytes_max))
        number = self._reader.ask(connection, self._spare[-1], ROOM_BEFORE)
        return None if number is None else Reading(number, self._spare.pop())

    def fetch(self, reading: Reading) -> int:
        """Return how many bytes came; 0 at the end of the stream. `give_back` is to follow in any case.

        Raises:
            OSError: as `socket.recv`, which does not block.
        """
        received = self._reader.fetch(reading.number)
        if received < 0:
            raise OSError(-received, os.strerror(-received))
        return received

    def drop(self, reading: Reading) -> None:
        """Want nothing of it any more; the socket may be closed then."""
        self._reader.drop(reading.number)
        self.give_back(reading)

    def give_back(self, reading: Reading) -> None:
        """Let others use the buffer."""
        self._spare.append(reading.buffer)

    def close(self) -> None:
        """End the thread; nothing can be asked for any more."""
        self._reader.close()
