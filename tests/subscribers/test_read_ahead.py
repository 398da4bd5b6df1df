"""Readings that are asked for ahead bring what `recv` would, by whomever they are done, and end with who asked."""

import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from kvrouter import native_core
from kvrouter_subscribers.read_ahead import ROOM_BEFORE, ReadAhead, Reader, Reading, ReadLater

BYTES_MAX, READINGS_MAX = 4096, 3
PATIENCE_SECONDS = 30.0
READERS: list[type[Reader]] = [ReadLater]
if native_core.present and hasattr(native_core.native, "ReadAhead"):
    READERS.append(native_core.native.ReadAhead)


@pytest.fixture(params=READERS)
def ahead(request: pytest.FixtureRequest) -> Iterator[ReadAhead]:
    """A small one, with a thread or without."""
    ahead = ReadAhead(bytes_max=BYTES_MAX, readings_max=READINGS_MAX, reader=request.param())
    yield ahead
    ahead.close()


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection; ours does not block."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


def asked(ahead: ReadAhead, connection: socket.socket) -> Reading:
    """A reading, which can be had."""
    reading = ahead.ask(connection)
    assert reading is not None
    return reading


def brought(ahead: ReadAhead, reading: Reading) -> bytes:
    """What it brings."""
    try:
        received = ahead.fetch(reading)
    finally:
        ahead.give_back(reading)
    return bytes(reading.buffer[ROOM_BEFORE : ROOM_BEFORE + received])


def has_bytes(connection: socket.socket) -> bool:
    """Whether there is something to read."""
    try:
        return connection.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return False


def test_a_reading_brings_what_was_said(ahead: ReadAhead, ends: tuple[socket.socket, socket.socket]) -> None:
    """It is behind the room for what came earlier."""
    ours, theirs = ends
    theirs.sendall(b"hello")

    assert brought(ahead, asked(ahead, ours)) == b"hello"


@pytest.mark.parametrize("reader", READERS)
def test_a_thread_reads_while_we_do_other_things(
    reader: type[Reader], ends: tuple[socket.socket, socket.socket]
) -> None:
    """What it has read is no longer in the socket; without a thread, it is there until somebody wants it."""
    ours, theirs = ends
    ahead = ReadAhead(bytes_max=BYTES_MAX, readings_max=1, reader=reader())
    theirs.sendall(b"hello")

    reading = asked(ahead, ours)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while reader is not ReadLater and has_bytes(ours) and time.monotonic() < deadline:
        time.sleep(0.001)

    assert has_bytes(ours) == (reader is ReadLater)
    assert brought(ahead, reading) == b"hello"
    ahead.close()


def test_a_silent_socket_brings_nothing(ahead: ReadAhead, ends: tuple[socket.socket, socket.socket]) -> None:
    """Nobody waits for it."""
    with pytest.raises(BlockingIOError):
        brought(ahead, asked(ahead, ends[0]))


def test_the_end_of_a_stream_is_no_bytes(ahead: ReadAhead, ends: tuple[socket.socket, socket.socket]) -> None:
    """As with `recv`."""
    ours, theirs = ends
    theirs.close()

    assert brought(ahead, asked(ahead, ours)) == b""


def test_a_broken_connection_is_an_error(ahead: ReadAhead) -> None:
    """The same one that `recv` raises."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as ours:
        theirs, _ = server.accept()
        ours.sendall(b"unread")
        assert theirs.recv(1, socket.MSG_PEEK) == b"u"
        ours.setblocking(False)
        theirs.close()  # With bytes that were not read, this is a reset.

        with pytest.raises(ConnectionResetError):
            _read_on(ahead, ours)


def test_there_are_so_many_readings_at_once_and_no_more(
    ahead: ReadAhead, ends: tuple[socket.socket, socket.socket]
) -> None:
    """Their buffers are what reading ahead costs; one that is given back serves the next."""
    ours, _ = ends
    readings = [asked(ahead, ours) for _ in range(READINGS_MAX)]

    assert ahead.ask(ours) is None
    ahead.drop(readings.pop())
    readings.append(asked(ahead, ours))
    assert ahead.ask(ours) is None

    for reading in readings:
        ahead.drop(reading)


def test_more_than_a_buffer_comes_in_parts(ahead: ReadAhead, ends: tuple[socket.socket, socket.socket]) -> None:
    """Nothing is lost between two readings."""
    ours, theirs = ends
    said = random.Random(1).randbytes(3 * BYTES_MAX // 2)
    theirs.sendall(said)

    assert brought(ahead, asked(ahead, ours)) + brought(ahead, asked(ahead, ours)) == said


def test_a_dropped_reading_lets_its_socket_be_closed(ahead: ReadAhead) -> None:
    """Nobody reads a descriptor that belongs to somebody else by then."""
    for number in range(200):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            theirs.sendall(bytes([number]))
            ahead.drop(asked(ahead, ours))

        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.sendall(b"whole")
            assert ours.recv(10) == b"whole"


def test_after_the_end_nothing_is_read_ahead(ahead: ReadAhead, ends: tuple[socket.socket, socket.socket]) -> None:
    """What was asked for before can be fetched, and the end may be told twice."""
    ours, theirs = ends
    theirs.sendall(b"last")
    reading = asked(ahead, ours)

    ahead.close()
    ahead.close()

    assert ahead.ask(ours) is None
    assert brought(ahead, reading) == b"last"


@pytest.mark.parametrize("seed", range(3))
def test_streams_come_whole_and_in_order(ahead: ReadAhead, seed: int) -> None:
    """Whatever is asked for and fetched, and whatever is said in between."""
    choose = random.Random(seed)
    pairs = [socket.socketpair() for _ in range(5)]
    said, heard = [bytearray() for _ in pairs], [bytearray() for _ in pairs]
    readings: dict[int, Reading] = {}
    for end in (end for pair in pairs for end in pair):
        end.setblocking(False)
    for _ in range(3000):
        number = choose.randrange(len(pairs))
        ours, theirs = pairs[number]
        if choose.random() < 0.5:
            said[number] += _say(theirs, choose.randbytes(choose.randrange(1, 3000)))
        elif number in readings:
            heard[number] += _heard(ahead, readings.pop(number))
        elif (reading := ahead.ask(ours)) is not None:
            readings[number] = reading
    for number, reading in readings.items():
        heard[number] += _heard(ahead, reading)
    for number, (ours, theirs) in enumerate(pairs):
        theirs.close()
        heard[number] += _read_on(ahead, ours)
        ours.close()

    assert heard == said


@pytest.mark.parametrize("reader", READERS)
def test_what_was_asked_for_keeps_its_space_until_the_reader_is_gone(reader: type[Reader]) -> None:
    """A reader that is forgotten writes nowhere afterwards."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        for _ in range(50):
            forgotten, space = reader(), bytearray(64)
            for _ in range(4):
                forgotten.ask(ours, space, 0)
            theirs.sendall(bytes(64))
            del forgotten  # Nothing else refers to it: it goes at once.
            space.extend(b"is free again")


@pytest.mark.parametrize("reader", READERS)
def test_numbers_that_nobody_was_given_are_refused(
    reader: type[Reader], ends: tuple[socket.socket, socket.socket]
) -> None:
    """Nothing is fetched twice."""
    readings = reader()
    number = readings.ask(ends[0], bytearray(9), 0)
    assert number is not None
    readings.fetch(number)

    for wrong in (number, 15, 10**9, -1):
        with pytest.raises((KeyError, ValueError)):
            readings.fetch(wrong)
        with pytest.raises((KeyError, ValueError)):
            readings.drop(wrong)


def test_no_thread_is_left() -> None:
    """Neither after the end, nor when it is forgotten; and a forked process, which has none, is not held up by that."""
    script = """
import os, select, socket, time, psutil
from kvrouter_subscribers.read_ahead import ReadAhead, _HAS_THREADS

def threads(wanted):  # The system still counts one that has ended for a moment.
    deadline = time.monotonic() + 30
    while psutil.Process().num_threads() != wanted and time.monotonic() < deadline:
        time.sleep(0.001)
    assert psutil.Process().num_threads() == wanted

ours, theirs = socket.socketpair()
ours.setblocking(False)
before, more = psutil.Process().num_threads(), int(_HAS_THREADS)
ahead = ReadAhead(bytes_max=9, readings_max=2)
threads(before)
ahead.drop(ahead.ask(ours))
threads(before + more)
ahead.close()
threads(before)
ahead = ReadAhead(bytes_max=9, readings_max=2)
theirs.send(b"x")
reading = ahead.ask(ours)
threads(before + more)
while more and select.select([ours], [], [], 0)[0]:
    time.sleep(0.001)
if os.fork() == 0:
    ahead.close()
    del ahead
    os._exit(7)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 7
del ahead
threads(before)
ahead = ReadAhead(bytes_max=9, readings_max=2)
reading = ahead.ask(ours)
"""

    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=120, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")


def _say(theirs: socket.socket, data: bytes) -> bytes:
    """Say as much as can be said; returns that."""
    try:
        return data[: theirs.send(data)]
    except BlockingIOError:
        return b""


def _heard(ahead: ReadAhead, reading: Reading) -> bytes:
    try:
        return brought(ahead, reading)
    except BlockingIOError:
        return b""


def _read_on(ahead: ReadAhead, ours: socket.socket) -> bytes:
    """Read to the end of a stream, which comes."""
    heard, deadline = b"", time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            more = brought(ahead, asked(ahead, ours))
        except BlockingIOError:
            time.sleep(0.001)
            continue
        if not more:
            return heard
        heard += more
    raise TimeoutError("the stream does not end")
