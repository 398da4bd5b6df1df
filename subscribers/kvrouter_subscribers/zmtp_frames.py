"""ZMTP 3: the bytes of a subscriber's side of a connection without security, and messages out of what it receives.

Pure: no sockets. `cut_messages` is short Python and the specification of the native core's function of that name, which
reads connections where it is present. The protocol is https://rfc.zeromq.org/spec/23 (3.0) and /37 (3.1).
"""

from collections.abc import Sequence
from typing import Final, TypeAlias

__all__ = [
    "AROUND_BYTES_MAX",
    "FAULTS",
    "FRAMES_MAX",
    "GREETING",
    "GREETING_BYTES",
    "RUN_BYTES_MAX",
    "Item",
    "Run",
    "cut_messages",
    "frame",
    "parse_ready",
    "ping_answer",
    "ready",
    "take_command",
]

GREETING_BYTES: Final = 64
GREETING: Final = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
"""Version 3.0, so that subscriptions are messages, which every later publisher takes as well."""

FRAMES_MAX: Final = 16
"""Frames of a message, with the commands among them."""
AROUND_BYTES_MAX: Final = 64 << 10
"""The frames of a message may have so many bytes more than one frame."""
RUN_BYTES_MAX: Final = 32 << 10
"""A run ends with the message that reaches so many bytes."""

FAULTS: Final = {
    1: "a frame of more than {bound} bytes ended the connection",
    2: "bytes that are not ZeroMQ's ended the connection",
    3: f"a message of more than {FRAMES_MAX} frames ended the connection",
}

Run: TypeAlias = tuple[int, int, Sequence[bytes]]
"""Bare batches with consecutive numbers: the first number, the bytes of all frames, and the batches.

These are a list, or what the native core makes of them: a sequence that need not make an object of each.
"""
Item: TypeAlias = Run | list[bytes] | bytes
"""A run, the frames of any other message, or the body of a command."""

_MORE, _LONG, _COMMAND = 1, 2, 4
_MAPS = frozenset(bytes([mark]) for mark in (*range(0x80, 0x90), 0xDE, 0xDF))
_CONTEXT_BYTES_MAX = 16


def frame(body: bytes, *, command: bool = False) -> bytes:
    """Return a frame that ends its message, or that is a command."""
    flags = _COMMAND * command
    if len(body) < 256:
        return bytes([flags, len(body)]) + body
    return bytes([flags | _LONG]) + len(body).to_bytes(8, "big") + body


def ready(socket_type: bytes = b"SUB") -> bytes:
    """Return the command that ends our side of the handshake."""
    name = b"Socket-Type"
    body = b"\x05READY" + bytes([len(name)]) + name + len(socket_type).to_bytes(4, "big") + socket_type
    return frame(body, command=True)


def take_command(data: bytes, bytes_max: int) -> tuple[bytes, bytes] | None:
    """Return the body of the command that `data` begins with, and what follows it; None if it is not whole.

    Raises:
        ValueError: it is something else, or larger than `bytes_max`.
    """
    if not data:
        return None
    start = 9 if data[0] & _LONG else 2
    size = int.from_bytes(data[1:start], "big") if len(data) >= start else 0
    if data[0] & ~_LONG != _COMMAND or size > bytes_max:
        raise ValueError(f"flags {data[0]:#x}, {size} bytes")
    end = start + size
    return (data[start:end], data[end:]) if len(data) >= max(start, end) else None


def parse_ready(body: bytes) -> dict[bytes, bytes] | None:
    """Return the properties in a READY command, by their names in small letters; None if it is none."""
    if not body.startswith(b"\x05READY"):
        return None
    at, found = 6, {}
    while at < len(body):
        name_end = at + 1 + body[at]
        value_end = name_end + 4 + int.from_bytes(body[name_end : name_end + 4], "big")
        if name_end + 4 > len(body) or value_end > len(body):
            return None
        found[body[at + 1 : name_end].lower()] = body[name_end + 4 : value_end]
        at = value_end
    return found


def ping_answer(body: bytes) -> bytes | None:
    """Return the PONG for a PING command, None for any other command."""
    if not body.startswith(b"\x04PING") or not 7 <= len(body) <= 7 + _CONTEXT_BYTES_MAX:
        return None
    return frame(b"\x04PONG" + body[7:], command=True)


def cut_messages(  # noqa: PLR0917 - the signature of the native core
    data: bytes | bytearray | memoryview, end: int, topic: bytes, apart: bytes, frame_bytes_max: int, run_max: int, /
) -> tuple[list[Item], int, int]:
    """Cut `data[:end]` into messages; returns them, where they end, and the number of the fault that is there or 0.

    What is not whole is left, to be cut again when more has come. A message joins a run if it has the three frames of
    a batch, its topic begins with `topic` and is not `apart`, and it is no envelope; a run has at most `run_max`.
    Everything else comes as it is. Commands among the frames of a message come before it.
    """
    items: list[Item] = []
    consumed = 0
    view = bytes(data[:end])
    while True:
        frames, after, fault = _read_message(view, consumed, frame_bytes_max)
        if frames is None:
            return items, consumed, fault
        consumed = after
        said = [body for is_command, body in frames if not is_command]
        items += (body for is_command, body in frames if is_command)
        if len(said) == len(frames) == 3 and _is_batch(said, topic, apart):
            _add_batch(items, said, run_max)
        elif said:
            items.append(said)


def _read_message(data: bytes, at: int, frame_bytes_max: int) -> tuple[list[tuple[bool, bytes]] | None, int, int]:
    """Read a message, or a command before one; None in place of it with the number of the fault, or 0 for a part."""
    frames: list[tuple[bool, bytes]] = []
    total = 0
    while len(frames) < FRAMES_MAX:
        if at == len(data):
            return None, at, 0
        flags = data[at]
        if flags & ~(_MORE | _LONG | _COMMAND) or (flags & _COMMAND and flags & _MORE):
            return None, at, 2
        start = at + (9 if flags & _LONG else 2)
        if start > len(data):
            return None, at, 0
        size = int.from_bytes(data[at + 1 : start], "big")
        total += size
        if size > frame_bytes_max or total > frame_bytes_max + AROUND_BYTES_MAX:
            return None, at, 1
        at = start + size
        if at > len(data):
            return None, at, 0
        frames.append((bool(flags & _COMMAND), data[start:at]))
        if len(frames) == 1 if flags & _COMMAND else not flags & _MORE:
            return frames, at, 0
    return None, at, 3


def _is_batch(frames: Sequence[bytes], topic: bytes, apart: bytes) -> bool:
    named, sequence, payload = frames
    ours = named.startswith(topic) and not (apart and named == apart)
    return ours and len(sequence) == 8 and payload[:1] not in _MAPS


def _add_batch(items: list[Item], frames: Sequence[bytes], run_max: int) -> None:
    sequence, size = int.from_bytes(frames[1], "big"), sum(map(len, frames))
    last = items[-1] if items else None
    if isinstance(last, tuple):
        first, taken, payloads = last
        if first + len(payloads) == sequence and len(payloads) < run_max and taken < RUN_BYTES_MAX:
            items[-1] = (first, taken + size, [*payloads, frames[2]])
            return
    items.append((sequence, size, [frames[2]]))
