"""The processes behind one port tell each other their figures, so that whichever is asked can answer for all.

Each listens on a Unix socket in a folder that they share; whoever connects is told once, as JSON. One that does not
answer in time is left out, and the answer says that it is.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

__all__ = ["Siblings"]

_ANSWER_SECONDS = 2.0
_ANSWER_BYTES_MAX = 64 << 20


class Siblings:
    """One of several processes; `number` is its own."""

    def __init__(self, folder: Path | None, number: int, count: int, tell: Callable[[], Any]) -> None:
        """`tell` returns this process's figures; with `folder` None there is nobody else."""
        self._folder, self._number, self.count, self._tell = folder, number, count, tell
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Begin to tell the others."""
        if self._folder is not None:
            path = self._path(self._number)
            path.unlink(missing_ok=True)  # Of one that died.
            self._server = await asyncio.start_unix_server(self._told, path)

    async def close(self) -> None:
        """Tell nobody any more."""
        if self._server is not None:
            self._server.close()

    async def ask(self) -> list[Any]:
        """Return what each process says that answers, our own first."""
        others = () if self._folder is None else (n for n in range(self.count) if n != self._number)
        answers = await asyncio.gather(*(self._ask(number) for number in others))
        return [self._tell(), *(answer for answer in answers if answer is not None)]

    async def _told(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            writer.write(msgspec.json.encode(self._tell()))
            await writer.drain()
        writer.close()

    async def _ask(self, number: int) -> Any:
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                reader, writer = await asyncio.open_unix_connection(self._path(number), limit=_ANSWER_BYTES_MAX)
                try:
                    return msgspec.json.decode(await reader.read())
                finally:
                    writer.close()
        except (OSError, TimeoutError, msgspec.DecodeError):
            return None

    def _path(self, number: int) -> Path:
        assert self._folder is not None, "there is nobody else"
        return self._folder / f"{number}.sock"
