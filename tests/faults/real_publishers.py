"""Real publishers in processes of their own, which can be killed in the middle of whatever they do.

Each follows a scripted cache. Before a frame is handed to the transport it is written to a journal, which survives the
process: so what the journal says is never behind what anybody can have heard.
"""

import asyncio
import functools
import multiprocessing
import os
import signal
import struct
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import kvrouter_publishers
from kvrouter.errors import SettingsError
from kvrouter.events import decode_batch, decode_envelope, is_envelope
from kvrouter_publishers.core import Frame, PublisherCore
from kvrouter_publishers.threaded import ThreadedPublisher
from tests.faults.real_cache import Copies, ScriptedCache, follow

__all__ = ["Journal", "PublisherProcess", "prepare"]

_HEADER: Final = struct.Struct(">QQI")
_STOP_SECONDS: Final = 10.0
_BIND_SECONDS: Final = 5.0
_PROCESSES: Final = multiprocessing.get_context("forkserver")


def prepare() -> None:
    """Have one process load everything once; publishers are forked from it."""
    clients = ["zmq", "nats", "redis.asyncio"]
    modules = [f"kvrouter_publishers.{each}_publisher" for each in ("zmq", "http", "jetstream", "redis")]
    _PROCESSES.set_forkserver_preload([__name__, *clients, *modules])


class Journal:
    """What one life told: its state after each of its batches. Read while the life goes on writing."""

    def __init__(self, path: Path, life: int) -> None:
        self.path, self.life = path, life
        self.steps = 0
        self.incarnation = 0
        self.states: dict[int, Copies] = {}
        self.last = -1
        self._offset = 0
        self._told: Copies = {}

    def read(self) -> None:
        """Take in what was written since the last time."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        for incarnation, sequence, payload in self._records(data):
            self.incarnation = incarnation
            follow(self._told, decode_batch(payload).events)
            self.states[sequence] = dict(self._told)
            self.last = sequence

    def _records(self, data: bytes) -> Iterator[tuple[int, int, bytes]]:
        at = 0
        while at + _HEADER.size <= len(data):
            incarnation, sequence, size = _HEADER.unpack_from(data, at)
            end = at + _HEADER.size + size
            if end > len(data):
                break
            yield incarnation, sequence, data[at + _HEADER.size : end]
            at = end
        self._offset += at


class PublisherProcess:
    """One life of a publisher, from the side of the test."""

    def __init__(self, name: str, options: dict[str, Any], *, journal: Journal, seed: int) -> None:
        self.journal = journal
        self._ours, theirs = _PROCESSES.Pipe()
        arguments = (name, options, theirs, str(journal.path), seed, journal.life)
        self._process = _PROCESSES.Process(target=_live, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    async def steps(self, count: int) -> None:
        """Let the engine do so many steps, without waiting for their end."""
        self._ours.send(("steps", count))

    async def held(self) -> Copies:
        """What the cache holds when all steps are done."""
        return dict(await self._ask("held"))

    async def statistics(self) -> dict[str, int]:
        """The publisher's own counters."""
        return dict(await self._ask("statistics"))

    async def close(self) -> None:
        """End it in good order."""
        await self._ask("close")
        await asyncio.to_thread(self._end)

    def pause(self) -> None:
        """Stop the process where it is."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Go on after `pause`."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it with SIGKILL, whatever it does."""
        self._process.kill()
        self._end()

    def _signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    async def _ask(self, question: str) -> Any:
        self._ours.send((question, 0))
        deadline = time.monotonic() + _STOP_SECONDS
        while True:
            alive = self._process.is_alive()
            if self._ours.poll():
                break
            assert alive, f"the publisher died before it answered {question!r}"
            assert time.monotonic() < deadline, f"the publisher does not answer {question!r}"
            await asyncio.sleep(0.002)
        return self._ours.recv()

    def _end(self) -> None:
        self._process.join(_STOP_SECONDS)
        assert not self._process.is_alive(), "the publisher does not end"
        self._process.close()
        self._ours.close()


def _live(name: str, options: dict[str, Any], commands: Connection, journal: str, seed: int, life: int) -> None:
    """The body of the process."""
    _write_down(os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND))
    publisher = _build(getattr(kvrouter_publishers, name), options)
    cache = ScriptedCache(seed, life)
    while True:
        try:
            question, count = commands.recv()
        except EOFError:  # The test is gone.
            return
        if question == "steps":
            for _ in range(count):
                publisher.publish(cache.step())
        elif question == "held":
            commands.send(cache.copies)
        elif question == "statistics":
            commands.send(publisher.statistics())
        else:
            publisher.close()
            commands.send(None)
            return


def _build(make: Callable[..., ThreadedPublisher], options: dict[str, Any]) -> ThreadedPublisher:
    """Build the publisher; the port of a life that was just killed may need a moment."""
    deadline = time.monotonic() + _BIND_SECONDS
    while True:
        try:
            return make(**options)
        except SettingsError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _write_down(file: int) -> None:
    """Watch the one place through which every frame goes, whichever transport takes it."""
    take = PublisherCore.take

    @functools.wraps(take)
    def watched(core: PublisherCore, now: float) -> Frame | None:
        frame = take(core, now)
        if frame is not None:
            payload = decode_envelope(frame.payload).payload if is_envelope(frame.payload) else frame.payload
            os.write(file, _HEADER.pack(core.incarnation, frame.sequence, len(payload)) + payload)
        return frame

    setattr(PublisherCore, "take", watched)  # noqa: B010 - this process is the publisher's alone, and only looked at
