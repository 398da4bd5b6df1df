"""Frames of the multiplexed TCP connection: a head of 24 bytes, then the payload.

docs/planes.md has the whole protocol with vectors. Big-endian:

0   u32  length of the payload
4   u8   kind, see `Kind`
5   u8   flags: bit 0 the request has no further items, bit 1 the item goes on in the next DATA, bit 7 may be ignored
6   u16  0
8   16   id of the stream; zeros where the frame is about the connection
"""

from struct import Struct

__all__ = ["ENDS", "HEAD", "MAY_IGNORE", "MORE", "NO_STREAM", "Hello", "HelloAck", "head_of"]

import msgspec

HEAD = Struct(">IBBH16s")
NO_STREAM = bytes(16)
ENDS, MORE, MAY_IGNORE = 1, 2, 128

PROTOCOL = "kvr-mux"
VERSION = 1


class Hello(msgspec.Struct, omit_defaults=True):
    """What the dialling side says first: what it speaks, who it is, what it will take."""

    proto: str
    versions: list[int]
    instance: str = ""
    max_frame: int = 1 << 20
    window: int = 256 << 10
    token: str | None = None


class HelloAck(msgspec.Struct, omit_defaults=True):
    """The answer: the version of both, and what the accepting side will take."""

    version: int
    instance: str = ""
    max_frame: int = 1 << 20
    window: int = 256 << 10
    streams_max: int = 4096


def head_of(kind: int, payload_bytes: int, stream: bytes, flags: int = 0) -> bytes:
    """Return the 24 bytes before a payload."""
    return HEAD.pack(payload_bytes, kind, flags, 0, stream)
