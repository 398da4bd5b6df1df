"""The processes behind one port ask each other: for their figures, and for answers to keys that are another one's.

Each listens on a Unix socket in a folder that they share; a question and its answer are msgpack, each behind its
length.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import xxhash

from kvrouter.errors import DisconnectedError, TransportError, UnreachableError

__all__ = ["Answering", "Siblings"]

Answering = Callable[[str, Any], Awaitable[Any]]
"""Answers a question of a kind."""

FIGURES_SECONDS = 2.0
_MESSAGE_BYTES_MAX = 1 << 31
_LENGTH_BYTES = 4


class Siblings:
    """One of several processes; `number` is its own."""

    def __init__(self, folder: Path | None, number: int, count: int, answer: Answering) -> None:
        """With `folder` None there is nobody else."""
        self._folder, self._number, self.count, self._answer = folder, number, count, answer
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Begin to answer the others."""
        if self._folder is not None:
            path = self._path(self._number)
            path.unlink(missing_ok=True)  # Of one that died.
            self._server = await asyncio.start_unix_server(self._asked, path)

    async def close(self) -> None:
        """Answer nobody any more."""
        if self._server is not None:
            self._server.close()

    def owner_of(self, key: str) -> int | None:
        """Return the other process that looks after a key; None if we do."""
        if self._folder is None:
            return None
        owner = int(xxhash.xxh3_64_intdigest(key.encode()) % self.count)
        return None if owner == self._number else owner

    async def ask_all(self, kind: str) -> list[Any]:
        """Return what each process says, our own first; those that say nothing in time are left out."""
        others = () if self._folder is None else (n for n in range(self.count) if n != self._number)
        asked = (self.ask(number, kind, None, seconds=FIGURES_SECONDS) for number in others)
        answers = await asyncio.gather(*asked, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, TransportError):
                raise answer
        return [
            await self._answer(kind, None),
            *(answer for answer in answers if not isinstance(answer, TransportError)),
        ]

    async def ask(self, number: int, kind: str, question: Any, *, seconds: float) -> Any:
        """Return what one process says.

        Raises:
            UnreachableError: it is not there, so it knows of nothing.
            DisconnectedError: it did not answer; what it was asked for may have been done.
        """
        try:
            reader, writer = await asyncio.open_unix_connection(self._path(number))
        except OSError as error:
            raise UnreachableError(f"process {number}: {error}") from None
        try:
            async with asyncio.timeout(seconds):
                await _write(writer, [kind, question])
                return await _read(reader)
        except (OSError, TimeoutError, EOFError, msgspec.DecodeError) as error:
            raise DisconnectedError(f"process {number} said nothing: {type(error).__name__}") from None
        finally:
            writer.close()

    async def _asked(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, EOFError, msgspec.DecodeError):
            kind, question = await _read(reader)
            await _write(writer, await self._answer(kind, question))
        writer.close()

    def _path(self, number: int) -> Path:
        assert self._folder is not None, "there is nobody else"
        return self._folder / f"{number}.sock"


async def _write(writer: asyncio.StreamWriter, value: Any) -> None:
    data = msgspec.msgpack.encode(value)
    writer.write(len(data).to_bytes(_LENGTH_BYTES) + data)
    await writer.drain()


async def _read(reader: asyncio.StreamReader) -> Any:
    length = int.from_bytes(await reader.readexactly(_LENGTH_BYTES))
    if length > _MESSAGE_BYTES_MAX:
        raise EOFError(f"a message of {length} bytes")
    return msgspec.msgpack.decode(await reader.readexactly(length))
