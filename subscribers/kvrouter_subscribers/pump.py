"""Reads many sockets, ZeroMQ's and the system's, on one event loop, without starving what else runs there.

ZeroMQ's file descriptor is edge-triggered: it becomes readable when *something* happened inside the socket, and
stays silent until the socket was read to exhaustion. A socket that was interrupted by its turn's end therefore
stays in our queue; only one that answered "nothing left" goes back to waiting for its descriptor.

Not `zmq.asyncio`: a future and a callback per message cost more than decoding a small batch.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

__all__ = ["Pump", "Readable"]


class Readable(Protocol):
    """A socket of ZeroMQ or of the system; it is compared by identity."""

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when there is something to read."""
        ...


class _Reader:
    __slots__ = ("descriptors", "drain", "queued", "watched")

    def __init__(self, drain: Callable[[float], bool], descriptors: tuple[int, ...]) -> None:
        self.drain, self.descriptors = drain, descriptors
        self.queued, self.watched = False, True


class Pump:
    """Gives every readable socket short turns, and the event loop its own turn every `turn_seconds`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, turn_seconds: float) -> None:
        self._loop, self._turn_seconds = loop, turn_seconds
        self._readers: dict[Readable, _Reader] = {}
        self._queue: deque[_Reader] = deque()
        self._scheduled = False

    def watch(self, *sockets: Readable, drain: Callable[[float], bool]) -> None:
        """Call `drain` whenever one of `sockets` may have something to read.

        `drain` reads a bounded number of messages, at least one and none after the time that it is given (of
        `time.perf_counter`), and returns whether it stopped before the sockets were empty. It must not raise.
        `unwatch(sockets[0])` ends it; that is needed before the sockets are closed.
        """
        reader = _Reader(drain, tuple(socket.fileno() for socket in sockets))
        self._readers[sockets[0]] = reader
        for descriptor in reader.descriptors:
            self._loop.add_reader(descriptor, self._wake, reader)
        self._wake(reader)  # The edge may be behind us already.

    def unwatch(self, socket: Readable) -> None:
        """Stop reading what was watched under `socket`."""
        reader = self._readers.pop(socket, None)
        if reader is None:
            return
        reader.watched = False
        for descriptor in reader.descriptors:
            self._loop.remove_reader(descriptor)
        if reader.queued:
            self._queue.remove(reader)

    def _wake(self, reader: _Reader) -> None:
        if reader.queued:
            return
        reader.queued = True
        self._queue.append(reader)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        deadline = time.perf_counter() + self._turn_seconds
        try:
            while self._queue:
                self._read(self._queue.popleft(), deadline)
                if time.perf_counter() >= deadline:
                    break
        finally:
            if self._queue:
                self._schedule()

    def _read(self, reader: _Reader, deadline: float) -> None:
        reader.queued = False
        if reader.drain(deadline) and reader.watched and not reader.queued:
            reader.queued = True
            self._queue.append(reader)
