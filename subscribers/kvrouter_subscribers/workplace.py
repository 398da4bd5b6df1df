"""What everything that reads for one ZMQ subscriber shares; nothing here reads."""

import asyncio
from typing import Final, Protocol

import zmq

from kvrouter_subscribers.limits import CurveKeys, ZmqLimits
from kvrouter_subscribers.pump import Pump
from kvrouter_subscribers.read_ahead import ReadAhead

__all__ = ["Live", "Workplace"]

_BUFFER_BYTES: Final = 256 << 10
_READINGS_MAX: Final = 8


class Live(Protocol):
    """Reads one source's live messages, between `open` and `close`; nothing that arrives ends it."""

    def open(self) -> None:
        """Begin to connect, and try for as long as it takes."""
        ...

    def tick(self, now: float) -> None:
        """Do what is due: from time to time somebody calls this."""
        ...

    def close(self) -> None:
        """Stop at once."""
        ...


class Workplace:
    """What is shared while a subscriber runs.

    `buffer` is where bytes are received; they are used or moved in the same turn. `ahead` reads busy sockets ahead.
    """

    __slots__ = ("ahead", "buffer", "context", "curve", "limits", "pump", "slots", "tasks")

    def __init__(
        self,
        *,
        context: zmq.Context[zmq.Socket[bytes]],
        pump: Pump,
        tasks: asyncio.TaskGroup,
        limits: ZmqLimits,
        curve: CurveKeys | None,
    ) -> None:
        self.context, self.pump, self.tasks, self.limits, self.curve = context, pump, tasks, limits, curve
        self.buffer = bytearray(_BUFFER_BYTES)
        self.ahead = ReadAhead(bytes_max=_BUFFER_BYTES, readings_max=_READINGS_MAX)
        self.slots = asyncio.Semaphore(limits.replays_max)
