"""A bad network on loopback: a TCP proxy that delays, stalls, cuts anywhere, and goes silent; for tests of any wire.

For ZeroMQ it can also lose, repeat and swap whole messages on their way to the subscriber, as its queues do when they
overflow, and worse: it reads the frames of ZMTP 3 (https://rfc.zeromq.org/spec/23/), whose connections stay intact.
"""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

__all__ = ["BadNetwork", "bad_network"]

_GREETING_BYTES: Final = 64
_MORE, _LONG, _COMMAND = 1, 2, 4
_SWAP_SECONDS: Final = 0.05
_READ_BYTES: Final = 4096
_Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class BadNetwork:
    """What passes between clients and a port, treated as it is told until it is healed.

    `counts` says what was done to it: `cuts`, `refusals`, `lost`, `repeated`, `swapped`.
    """

    def __init__(self, target: int, chance: random.Random, *, messages: bool = False) -> None:
        self.target, self.chance, self.messages = target, chance, messages
        self.counts: Counter[str] = Counter()
        self.delay_seconds = 0.0
        """Each piece waits up to so long."""
        self.cut_share = 0.0
        """Of the pieces so many end their connection, in their middle."""
        self.lost_share = self.repeated_share = self.swapped_share = 0.0
        """Of the messages; only with `messages`."""
        self.refusing = False
        """New connections end at once."""
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._pairs: set[asyncio.Task[None]] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._dead: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        """Where clients connect."""
        assert self._server is not None, "the network is not open"
        return int(self._server.sockets[0].getsockname()[1])

    async def open(self) -> None:
        """Begin to listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def close(self) -> None:
        """End everything."""
        if self._server is not None:
            self._server.close()
        self.cut()
        await asyncio.gather(*self._pairs, *self._closing)

    def heal(self) -> None:
        """Carry everything from now on. What was half open is found to be closed."""
        self.delay_seconds = self.cut_share = 0.0
        self.lost_share = self.repeated_share = self.swapped_share = 0.0
        self.refusing = False
        self._flowing.set()
        for pair in self._dead:
            pair.cancel()

    def cut(self) -> None:
        """End every connection now."""
        self.counts["cuts"] += len(self._pairs)
        for pair in self._pairs:
            pair.cancel()

    def stall(self) -> None:
        """Carry nothing until `flow`; nothing is lost."""
        self._flowing.clear()

    def flow(self) -> None:
        """End a stall."""
        self._flowing.set()

    def forget(self) -> None:
        """Leave every connection open, and carry nothing over it ever again; new ones are as good as any."""
        self._dead |= self._pairs

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pair = asyncio.current_task()
        assert pair is not None
        ends = [writer]
        self._pairs.add(pair)
        try:
            if self.refusing:
                self.counts["refusals"] += 1
            else:
                far, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
                ends.append(far_writer)
                await self._carry_both_ways((reader, writer), (far, far_writer), pair)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._pairs.discard(pair)
            self._dead.discard(pair)
            self._closing.add(pair)
            for end in ends:
                end.transport.abort()
                with contextlib.suppress(OSError):
                    await end.wait_closed()
            self._closing.discard(pair)

    async def _carry_both_ways(self, near: _Stream, far: _Stream, pair: asyncio.Task[None]) -> None:
        answers = self._carry_messages if self.messages else self._carry
        ways = [
            asyncio.create_task(self._carry(near[0], far[1], pair)),
            asyncio.create_task(answers(far[0], near[1], pair)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pair: asyncio.Task[None]
    ) -> None:
        """Carry bytes one way."""
        with contextlib.suppress(OSError):
            while piece := await reader.read(_READ_BYTES):
                await self._send(writer, piece, pair)

    async def _carry_messages(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pair: asyncio.Task[None]
    ) -> None:
        """Carry whole messages of ZMTP one way."""
        waiting = b""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            greeting = _GREETING_BYTES  # Each side sends the rest of its own when it has seen the other's beginning.
            while greeting and (piece := await reader.read(greeting)):
                await self._send(writer, piece, pair)
                greeting -= len(piece)
            while True:
                first = await self._first_byte(reader, _SWAP_SECONDS if waiting else None)
                if first is None:
                    await self._send(writer, waiting, pair)
                    waiting = b""
                    continue
                message = await self._message(reader, first)
                copies = 1 if first[0] & _COMMAND else self._copies()
                if not waiting and copies and not first[0] & _COMMAND and self._happens("swapped"):
                    waiting = message
                    continue
                await self._send(writer, copies * message + waiting, pair)
                waiting = b""

    async def _send(self, writer: asyncio.StreamWriter, piece: bytes, pair: asyncio.Task[None]) -> None:
        if self.delay_seconds:
            await asyncio.sleep(self.chance.random() * self.delay_seconds)
        await self._flowing.wait()
        if pair in self._dead:
            return
        if piece and self.chance.random() < self.cut_share:
            self.counts["cuts"] += 1
            writer.write(piece[: self.chance.randrange(len(piece))])
            raise ConnectionAbortedError
        writer.write(piece)
        await writer.drain()

    def _copies(self) -> int:
        if self._happens("lost"):
            return 0
        return 1 + self._happens("repeated")

    def _happens(self, what: str) -> bool:
        share: float = getattr(self, f"{what}_share")
        happens = self.chance.random() < share
        self.counts[what] += happens
        return happens

    @staticmethod
    async def _first_byte(reader: asyncio.StreamReader, seconds: float | None) -> bytes | None:
        """The flags of the next frame, or None if nothing comes in time."""
        try:
            async with asyncio.timeout(seconds):
                return await reader.readexactly(1)
        except TimeoutError:
            return None

    @staticmethod
    async def _message(reader: asyncio.StreamReader, first: bytes) -> bytes:
        """All frames of the message that begins with these flags."""
        parts, flags = [], first
        while True:
            size = await reader.readexactly(8 if flags[0] & _LONG else 1)
            parts += [flags, size, await reader.readexactly(int.from_bytes(size))]
            if not flags[0] & _MORE:
                return b"".join(parts)
            flags = await reader.readexactly(1)


@asynccontextmanager
async def bad_network(target: int, chance: random.Random, *, messages: bool = False) -> AsyncIterator[BadNetwork]:
    """A bad network in front of a port, until the end of the block."""
    network = BadNetwork(target, chance, messages=messages)
    await network.open()
    try:
        yield network
    finally:
        await network.close()
