"""Connects to a ZMTP publisher over TCP: the socket and its options, the greetings, the handshake, the subscriptions.

Only without security, and only with ZMTP 3; everything older or safer is for libzmq.
"""

import asyncio
import socket
from collections.abc import Sequence
from typing import NamedTuple

from kvrouter_subscribers import zmtp_frames
from kvrouter_subscribers.zmtp_frames import GREETING, GREETING_BYTES

__all__ = ["Connected", "HandshakeError", "LeftToLibzmqError", "connect", "split_endpoint"]

_READ_BYTES = 4096
_COMMAND_BYTES_MAX = 4096
_SIGNATURE_BYTES = 10
_MECHANISM = slice(12, 32)
_PUBLISHERS = (b"PUB", b"XPUB")


class HandshakeError(Exception):
    """Whoever answered is no publisher, or does not want us; the text says why."""


class LeftToLibzmqError(Exception):
    """The publisher speaks what only libzmq does; the text says what."""


class Connected(NamedTuple):
    """A connection that may be read: `rest` came with the handshake, and is the beginning of what follows."""

    socket: socket.socket
    rest: bytes


def split_endpoint(endpoint: str) -> tuple[str, int] | None:
    """Return the host and port of a plain `tcp://host:port`, None if there is more to it."""
    host, mark, port = endpoint.removeprefix("tcp://").rpartition(":")
    if not endpoint.startswith("tcp://") or not mark or ";" in host or not port.isdecimal():
        return None
    return host.removeprefix("[").removesuffix("]"), int(port)


async def connect(host: str, port: int, *, six: bool, subscriptions: Sequence[bytes]) -> Connected:
    """Connect and subscribe. The caller bounds the time.

    Raises:
        OSError: there is no connection.
        HandshakeError: it was lost, or the peer breaks the protocol, or is no publisher.
        LeftToLibzmqError: the peer speaks an older version, or wants security.
    """
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if six else socket.AF_INET
    found = await loop.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        _configure(connection)
        await loop.sock_connect(connection, found[0][4])
        rest = await _shake_hands(loop, connection, subscriptions)
    except BaseException:
        connection.close()
        raise
    return Connected(connection, rest)


async def _shake_hands(
    loop: asyncio.AbstractEventLoop, connection: socket.socket, subscriptions: Sequence[bytes]
) -> bytes:
    """Greet, say what we are, and subscribe; returns what came after the peer's part of it."""
    try:
        await loop.sock_sendall(connection, GREETING)
        rest = await _read_greeting(loop, connection)
        await loop.sock_sendall(connection, zmtp_frames.ready())
        rest = await _read_ready(loop, connection, rest)
        said = b"".join(zmtp_frames.frame(b"\x01" + topic) for topic in subscriptions)
        await loop.sock_sendall(connection, said)
    except OSError as error:
        raise HandshakeError(f"the connection was lost: {error}") from error
    return rest


def _configure(connection: socket.socket) -> None:
    """Set the options that `live_socket.configure` sets for libzmq, as far as the system has them."""
    connection.settimeout(0)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def _read_greeting(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> bytes:
    """Read the peer's greeting; returns what came after it."""
    data = b""
    while len(data) < GREETING_BYTES:
        data += await _receive(loop, connection)
        _check_greeting(data)
    mechanism = data[_MECHANISM].rstrip(b"\0")
    if mechanism != b"NULL":
        raise LeftToLibzmqError(f"it asks for the security mechanism {mechanism.decode('ascii', 'replace')}")
    return data[GREETING_BYTES:]


def _check_greeting(data: bytes) -> None:
    """Look at what there is of a greeting; who does not speak our version may never send all of one."""
    if data[0] != 0xFF:
        if len(data) > 1 and data[1] == 0:  # An identity, which is how connections began before there were versions.
            raise LeftToLibzmqError("it speaks ZMTP 1")
        if len(data) > 1:
            raise HandshakeError("it does not greet as ZeroMQ")
    elif len(data) >= _SIGNATURE_BYTES and data[9] != 0x7F:
        raise HandshakeError("it does not greet as ZeroMQ")
    elif len(data) > _SIGNATURE_BYTES and data[10] < 3:
        raise LeftToLibzmqError("it speaks ZMTP 2")


async def _read_ready(loop: asyncio.AbstractEventLoop, connection: socket.socket, data: bytes) -> bytes:
    """Read the peer's READY command, which comes before anything else; returns what came after it."""
    while True:
        try:
            taken = zmtp_frames.take_command(data, _COMMAND_BYTES_MAX)
        except ValueError as error:
            raise HandshakeError("it does not answer as ZeroMQ") from error
        if taken is not None:
            body, rest = taken
            _check_ready(body)
            return rest
        data += await _receive(loop, connection)


def _check_ready(command: bytes) -> None:
    if command.startswith(b"\x05ERROR"):
        raise HandshakeError(f"it refuses: {command[7:].decode('ascii', 'replace')}")
    properties = zmtp_frames.parse_ready(command)
    if properties is None:
        raise HandshakeError("it does not answer as ZeroMQ")
    kind = properties.get(b"socket-type", b"")
    if kind not in _PUBLISHERS:
        raise HandshakeError(f"its socket is of type {kind.decode('ascii', 'replace')!r}")


async def _receive(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> bytes:
    data = await loop.sock_recv(connection, _READ_BYTES)
    if not data:
        raise HandshakeError("it closed the connection")
    return data
