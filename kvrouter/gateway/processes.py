"""`--processes N`: several gateway processes behind one port, each with a listening socket of its own.

The first process only looks after the others: it holds their sockets, so that connections to one that died wait for the
next one, starts it, passes signals on, and ends when they have ended. With one process there is nobody to look after.

Everything here is plain blocking code: processes are forked from it, which no event loop and no thread survives.
"""

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import uvloop

from kvrouter.errors import KvrouterError, SettingsError
from kvrouter.gateway.composition import Gateway, Place
from kvrouter.gateway.nats_settings import nats_credentials
from kvrouter.gateway.process import run_gateway
from kvrouter.service.auth import refuse_open_bind
from kvrouter.service.listening import listen, raise_descriptor_limit
from kvrouter.service.logs import configure_logging, log_event
from kvrouter.settings import Settings

__all__ = ["run_processes"]

_AGAIN_SECONDS = (0.1, 0.5, 2.0, 5.0)
_LONG_LIFE_SECONDS = 30.0
_FOLDER_BYTES_MAX = 60
_READY = b"ready"
_WATCHED = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGUSR1, signal.SIGALRM})

_log = logging.getLogger("kvrouter.gateway")


def run_processes(settings: Settings, environment: Mapping[str, str]) -> int:
    """Run the gateway until it is told to stop; returns the exit code. Raises as `run_gateway`."""
    ours = settings.gateway
    configure_logging(level=settings.log.level, style=settings.log.format)
    refuse_open_bind(ours.host, api_keys=settings.auth.api_keys, insecure=settings.auth.insecure)
    raise_descriptor_limit()
    credentials = nats_credentials(ours, environment)
    listener = listen(ours.host, ours.port)
    if ours.processes == 1:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(run_gateway(settings, listener, credentials=credentials, place=Place()))
    Gateway(settings, credentials=credentials, place=Place())  # What is wrong with the settings is said once.
    port = listener.getsockname()[1]
    listener.close()  # It has shown that nobody else is there, which sockets that share a port do not.
    with tempfile.TemporaryDirectory(prefix="kvrouter-gateway-", dir=_short_folder()) as folder:
        listeners = [listen(ours.host, port, shared=True) for _ in range(ours.processes)]
        if ours.store == "memory:":  # Each process would have one of its own.
            settings = replace(settings, gateway=replace(ours, store=f"file://{folder}/store"))
        return _Family(settings, listeners, Path(folder), credentials).run()


@dataclass(slots=True)
class _Child:
    """One process: who it is, and what it says of itself once."""

    number: int
    pid: int = 0
    news: int = -1
    """Where it writes: that it is ready, or why it cannot be."""
    said: bytes = b""
    began: float = 0.0
    failures: int = 0
    start_at: float | None = None
    """When it is to be started again."""

    @property
    def is_ready(self) -> bool:
        """Whether it accepts connections."""
        return self.said == _READY

    def listen(self) -> None:
        """Read what it has said since."""
        with suppress(BlockingIOError):
            self.said += os.read(self.news, 4096)


class _Family:
    """The processes, from the first to the last."""

    def __init__(
        self, settings: Settings, listeners: list[socket.socket], folder: Path, credentials: Mapping[str, Any]
    ) -> None:
        self._settings, self._listeners, self._folder = settings, listeners, folder
        self._credentials = credentials
        self._children = [_Child(number) for number in range(len(listeners))]
        self._life = os.pipe()
        """Nobody writes to it. It closes with this process, however that ends, and the others see it."""
        self._began = self._stopping = False
        self._code = 0
        self._problem: KvrouterError | None = None

    def run(self) -> int:
        """Start all, look after them, and return when the last has ended."""
        signal.signal(signal.SIGUSR1, lambda *_: None)
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
        for child in self._children:
            self._start(child)
        while any(child.pid for child in self._children) or not self._stopping:
            self._set_alarm()
            match signal.sigwait(_WATCHED):
                case signal.SIGTERM | signal.SIGINT as number:
                    self._stop(number)
                case signal.SIGCHLD:
                    self._bury()
                case _:
                    self._listen()
            self._start_again()
        if self._problem is not None:
            raise self._problem
        return self._code

    def _start(self, child: _Child) -> None:
        child.start_at, child.said, child.began = None, b"", time.monotonic()
        child.news, writing = os.pipe()
        os.set_blocking(child.news, False)
        sys.stdout.flush()
        child.pid = os.fork()
        if not child.pid:
            self._be(child, writing)
        os.close(writing)

    def _be(self, child: _Child, writing: int) -> NoReturn:
        """Be the process `child` until its end."""
        code = 1
        try:
            os.setpgrp()  # Ctrl-C is for the first process, which passes it on.
            os.close(self._life[1])
            for other in self._children:
                if other.news >= 0:
                    os.close(other.news)
            for number, listener in enumerate(self._listeners):
                if number != child.number:
                    listener.close()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
            code = _live(self._settings, self._listeners[child.number], self._place(child), self._credentials,
                         parent_life=self._life[0], writing=writing)  # fmt: skip
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _place(self, child: _Child) -> Place:
        return Place(number=child.number, count=len(self._children), folder=self._folder)

    def _listen(self) -> None:
        """Read what children say: that they are ready, or why they are not."""
        for child in self._children:
            if child.pid:
                child.listen()
        if not self._began and all(child.is_ready for child in self._children):
            self._began = True
            ours = self._settings.gateway
            port = self._listeners[0].getsockname()[1]
            log_event(_log, logging.INFO, "all_listening", host=ours.host, port=port, processes=ours.processes)

    def _stop(self, number: int) -> None:
        self._stopping = True
        for child in self._children:
            child.start_at = None
            if child.pid:
                os.kill(child.pid, number)

    def _bury(self) -> None:
        """Look which children have ended, and what follows from it."""
        self._listen()
        for child in self._children:
            if not child.pid:
                continue
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if not pid:
                continue
            child.pid = 0
            child.listen()
            os.close(child.news)
            child.news = -1
            self._ended(child, os.waitstatus_to_exitcode(status))

    def _ended(self, child: _Child, code: int) -> None:
        if self._stopping:
            self._code = self._code or max(code, 0)
            return
        if not self._began:
            self._problem = _problem_of(child.said) or KvrouterError(f"process {child.number} ended with {code}")
            self._stop(signal.SIGTERM)
            return
        child.failures = 0 if time.monotonic() - child.began > _LONG_LIFE_SECONDS else child.failures + 1
        wait = _AGAIN_SECONDS[min(child.failures, len(_AGAIN_SECONDS) - 1)]
        child.start_at = time.monotonic() + wait
        log_event(_log, logging.ERROR, "process_died", number=child.number, code=code, again_seconds=wait)

    def _set_alarm(self) -> None:
        """Be woken when the next child is to be started again."""
        due = [child.start_at for child in self._children if child.start_at is not None]
        signal.setitimer(signal.ITIMER_REAL, max(0.001, min(due) - time.monotonic()) if due else 0)

    def _start_again(self) -> None:
        for child in self._children:
            if child.start_at is not None and child.start_at <= time.monotonic():
                self._start(child)


def _live(
    settings: Settings,
    listener: socket.socket,
    place: Place,
    credentials: Mapping[str, Any],
    *,
    parent_life: int,
    writing: int,
) -> int:
    """Serve; what prevents it is written for the first process to say."""

    def ready() -> None:
        os.write(writing, _READY)
        os.kill(os.getppid(), signal.SIGUSR1)

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(
                run_gateway(
                    settings, listener, credentials=credentials, place=place, parent_life=parent_life, ready=ready
                )
            )
    except KvrouterError as error:
        os.write(writing, json.dumps([isinstance(error, SettingsError), str(error)]).encode())
        return 1


def _short_folder() -> str:
    """Where a socket's path is short enough: systems allow about a hundred bytes, and TMPDIR may be longer."""
    folder = tempfile.gettempdir()
    return folder if len(os.fsencode(folder)) <= _FOLDER_BYTES_MAX else "/tmp"  # noqa: S108 - a private one in it


def _problem_of(said: bytes) -> KvrouterError | None:
    try:
        is_setting, text = json.loads(said)
    except ValueError:
        return None
    make: Callable[[str], KvrouterError] = SettingsError if is_setting else KvrouterError
    return make(text)
