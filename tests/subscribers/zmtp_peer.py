"""A publisher that says byte for byte what a test wants, right or wrong, over plain TCP."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

from kvrouter_subscribers import zmtp_frames
from tests.subscribers.scene import listening

__all__ = ["GREETING", "READY", "Peer", "batch", "message", "zmtp_peer"]

GREETING = zmtp_frames.GREETING
READY = zmtp_frames.ready(b"PUB")


def message(*frames: bytes) -> bytes:
    """The bytes of a message; frames of 256 bytes and more take the long form."""
    parts = []
    for number, body in enumerate(frames):
        long = len(body) > 255
        flags = (number < len(frames) - 1) | 2 * long
        parts.append(bytes([flags]) + len(body).to_bytes(8 if long else 1, "big") + body)
    return b"".join(parts)


def batch(sequence: int, payload: bytes, *, topic: bytes = b"") -> bytes:
    """The message of one batch."""
    return message(topic, sequence.to_bytes(8, "big"), payload)


class Peer:
    """One connection of a subscriber to us."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def shake_hands(self, *, ready: bytes = READY, subscriptions: int = 1) -> list[bytes]:
        """Be an ordinary publisher up to the subscriptions, which are returned."""
        self.writer.write(GREETING)
        await self.reader.readexactly(len(GREETING))
        self.writer.write(ready)
        assert (await self.frame())[0] == 4
        return [(await self.frame())[1] for _ in range(subscriptions)]

    async def frame(self) -> tuple[int, bytes]:
        """The flags and the body of what the subscriber says next, which is short."""
        flags, size = await self.reader.readexactly(2)
        return flags, await self.reader.readexactly(size)

    async def until_closed(self) -> None:
        """Wait until the subscriber has hung up."""
        with suppress(ConnectionError):
            while await self.reader.read(4096):
                pass


@asynccontextmanager
async def zmtp_peer(story: Callable[[Peer], Coroutine[Any, Any, None]]) -> AsyncIterator[str]:
    """A server that tells `story` to whoever connects, and hangs up then; gives its endpoint."""
    async with listening(lambda reader, writer: story(Peer(reader, writer))) as port:
        yield f"tcp://127.0.0.1:{port}"
