"""Reads one source's live messages from a TCP connection of our own, cut by the native core.

libzmq hands messages over one at a time, from a thread of its own that copies and locks for each. An engine that
publishes as fast as it can says some hundred messages in what one read of a socket brings: here they cost one call.
Nothing is read before what was read is handed over, so that the kernel's buffers, and then the publisher's bound, hold
what we cannot take.
"""

import asyncio
import logging
import random
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from kvrouter.native_core import native
from kvrouter_subscribers.link import LOAD_TOPIC, Link
from kvrouter_subscribers.read_ahead import ROOM_BEFORE, Reading
from kvrouter_subscribers.workplace import Workplace
from kvrouter_subscribers.zmtp_frames import AROUND_BYTES_MAX, FAULTS, Item, ping_answer
from kvrouter_subscribers.zmtp_handshake import Connected, HandshakeError, LeftToLibzmqError, connect, split_endpoint

__all__ = ["LiveStream"]

_log = logging.getLogger("kvrouter_subscribers")

_RUN_MAX: Final = 64
_MUCH_BYTES: Final = 64 << 10
"""Who said so much at once probably has more to say already."""
_RECONNECT_SECONDS: Final = 0.1


class LiveStream:
    """A `Live` on a connection of our own. `leave` is called when the publisher speaks what only libzmq does."""

    def __init__(self, link: Link, workplace: Workplace, *, leave: Callable[[Link], None]) -> None:
        self._link, self._work, self._leave = link, workplace, leave
        self._task: asyncio.Task[None] | None = None
        self._socket: socket.socket | None = None
        self._lost: asyncio.Event = asyncio.Event()
        self._items: deque[Item] = deque()
        self._kept = 0  # Bytes of a message that is not whole: they are
        self._rest = b""  # here while they are few,
        self._large: bytearray | None = None  # and else here, where the message goes on.
        self._reading: Reading | None = None  # What is read of it while something else is done.
        self._fault = 0

    @staticmethod
    def can_read(link: Link, workplace: Workplace) -> bool:
        """Whether this source is of the usual kind: we connect to it over TCP, and nothing is secret."""
        address = link.address
        plain = not address.bind and workplace.curve is None and split_endpoint(address.endpoint) is not None
        return plain and native is not None

    def open(self) -> None:
        """Begin to connect."""
        self._task = self._work.tasks.create_task(self._keep_connected(), name="zmq-live")

    def tick(self, now: float) -> None:
        """Do nothing: the task tries again by itself."""

    def close(self) -> None:
        """Close the connection at once."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._hang_up()
        self._link.gone()

    # -- connecting ---------------------------------------------------------------------------------------------------

    async def _keep_connected(self) -> None:
        failures = 0
        while True:
            try:
                connected = await self._connect()
            except LeftToLibzmqError as reason:
                self._leave_to_libzmq(reason)
                return
            if connected is None:
                failures += 1
            else:
                failures = 0
                self._begin(connected)
                await self._lost.wait()
            await asyncio.sleep(self._pause(failures))

    async def _connect(self) -> Connected | None:
        """Try once; what fails is kept in `last_error`."""
        link, limits = self._link, self._work.limits
        endpoint = link.address.endpoint
        host, port = split_endpoint(endpoint) or ("", 0)
        try:
            async with asyncio.timeout(limits.handshake_seconds_max):
                return await connect(host, port, six="[" in endpoint, subscriptions=link.subscriptions)
        except HandshakeError as error:
            link.handshake_failed(str(error))
        except TimeoutError:
            link.handshake_failed(f"no answer in {limits.handshake_seconds_max:g} s")
        except (OSError, UnicodeError) as error:  # A name with a label that no name can have is a UnicodeError.
            link.last_error = f"{endpoint}: {error}"
        return None

    def _pause(self, failures: int) -> float:
        """Return when to try again: like libzmq, doubled up to a bound and spread by chance."""
        longest = self._work.limits.reconnect_seconds_max
        return min(_RECONNECT_SECONDS * 2.0 ** min(failures, 16), longest) * random.uniform(0.5, 1.0)

    def _leave_to_libzmq(self, reason: LeftToLibzmqError) -> None:
        _log.warning(
            "zmtp_left_to_libzmq",
            extra={"source": tuple(self._link.source), "endpoint": self._link.address.endpoint, "reason": str(reason)},
        )
        self._task = None
        self._leave(self._link)

    def _begin(self, connected: Connected) -> None:
        self._socket, self._lost = connected.socket, asyncio.Event()
        self._link.connection_made()
        if self._socket is not None:  # The sink may have removed the source.
            self._cut(connected.rest, len(connected.rest))
            self._work.pump.watch(self._socket, drain=self._drain)

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._work.pump.unwatch(self._socket)
            if self._reading is not None:
                self._work.ahead.drop(self._reading)
                self._reading = None
            self._socket.close()
        self._socket, self._fault = None, 0
        self._kept, self._rest, self._large = 0, b"", None
        self._items.clear()
        self._lost.set()

    def _lose(self, why: str | None = None) -> None:
        """Close a connection that cannot be read any more, and tell so."""
        if why is not None:
            self._link.last_error = f"{self._link.address.endpoint}: {why}"
        self._hang_up()
        self._link.connection_lost()

    # -- reading ------------------------------------------------------------------------------------------------------

    def _drain(self, deadline: float) -> bool:
        """Hand over what was read, or else what one read brings; returns whether there may be more. Never raises."""
        items = self._items
        more = bool(items) or self._fault != 0 or self._read()
        while items:
            self._take(items.popleft())
            if time.perf_counter() >= deadline:  # batches may be large: a burst of them would hold up requests
                return True
        if self._fault:
            self._lose(FAULTS[self._fault].format(bound=self._work.limits.frame_bytes_max))
            return False
        return more

    def _take(self, item: Item) -> None:
        link = self._link
        if isinstance(item, tuple):
            link.take_run(*item)
        elif isinstance(item, bytes):
            self._answer(item)
        elif item[0].startswith(link.subscriptions):  # Who sends more than was asked for is not listened to.
            link.take(item)

    def _answer(self, command: bytes) -> None:
        """Answer a heartbeat; a publisher that does not read its answers gets none."""
        answer = ping_answer(command)
        if answer is None or self._socket is None:
            return
        try:
            sent = self._socket.send(answer)
        except BlockingIOError:
            return
        except OSError:
            sent = 0
        if sent != len(answer):
            self._lose("a heartbeat could not be answered")

    def _read(self) -> bool:
        """Read once; returns whether there may be more."""
        connection, reading = self._socket, self._reading
        if connection is None:
            return False
        self._reading = None
        try:
            return self._receive(connection) if reading is None else self._fetch(connection, reading)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self._lose(str(error))
            return False

    def _receive(self, connection: socket.socket) -> bool:
        """Read now."""
        kept, target = self._kept, self._large
        if target is None:
            target = self._work.buffer
            target[:kept] = self._rest
        return self._take_in(connection, target, connection.recv_into(memoryview(target)[kept:]))

    def _fetch(self, connection: socket.socket, reading: Reading) -> bool:
        """Take what was read ahead, behind what is kept."""
        ahead, kept, large = self._work.ahead, self._kept, self._large
        try:
            received = ahead.fetch(reading)
            if large is None:
                start = ROOM_BEFORE - kept
                reading.buffer[start:ROOM_BEFORE] = self._rest
                return self._take_in(connection, memoryview(reading.buffer)[start:], received)
            large[kept:] = memoryview(reading.buffer)[ROOM_BEFORE : ROOM_BEFORE + received]
            return self._take_in(connection, large, received)
        finally:
            ahead.give_back(reading)

    def _take_in(self, connection: socket.socket, data: bytearray | memoryview, received: int) -> bool:
        """Cut what is kept and what came behind it; meanwhile more is read of who says much."""
        if not received:
            self._lose()
            return False
        if received >= _MUCH_BYTES:
            self._reading = self._work.ahead.ask(connection)
        end = self._kept + received
        more = self._reading is not None or end == len(data)
        self._cut(data, end)
        return more

    def _cut(self, data: bytes | bytearray | memoryview, end: int) -> None:
        assert native is not None
        run_max = _RUN_MAX if self._link.takes_runs else 1
        bound = self._work.limits.frame_bytes_max
        items, used, self._fault = native.cut_messages(data, end, self._link.topic, LOAD_TOPIC, bound, run_max)
        self._items.extend(items)
        self._keep(data, used, end)

    def _keep(self, data: bytes | bytearray | memoryview, used: int, end: int) -> None:
        """Keep the message that is not whole: beside the buffer that all share, unless it would fill much of that."""
        self._kept = kept = end - used
        if 2 * kept <= len(self._work.buffer):
            self._rest, self._large = bytes(data[used:end]), None
        elif data is not self._large or used:
            self._rest, self._large = b"", bytearray(self._large_bytes(kept))
            self._large[:kept] = data[used:end]
        elif kept == len(self._large):
            self._large.extend(bytes(self._large_bytes(kept) - kept))

    def _large_bytes(self, kept: int) -> int:
        """Twice what is there, but no more than a message may have: the cutter has refused larger ones."""
        return min(2 * kept, self._work.limits.frame_bytes_max + 2 * AROUND_BYTES_MAX)
