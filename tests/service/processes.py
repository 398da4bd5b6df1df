"""Real routers and engines for tests: started as processes, found by what they print, stopped by their id."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx

from tests.servers import free_port

DEADLINE_SECONDS = 60.0

Value = TypeVar("Value")
Started = TypeVar("Started", bound="Process")


def eventually(probe: Callable[[], Value | None], *, seconds: float = DEADLINE_SECONDS) -> Value:
    """Return the first true value of `probe`; the last false one fails the test when the time is over."""
    deadline = time.monotonic() + seconds
    while True:
        value = probe()
        if value:
            return value
        assert time.monotonic() < deadline, f"still {value!r} after {seconds} s"
        time.sleep(0.02)


class Process:
    """A program whose standard output is a file of JSON lines."""

    def __init__(self, folder: Path, name: str, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self.output = folder / f"{name}-{time.monotonic_ns()}.log"
        self.errors = self.output.with_suffix(".err")
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("KVROUTER_")}
        with self.output.open("wb") as output, self.errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=errors,
                env={**inherited, **(environment or {})},
            )
        self.pid = self._process.pid

    def lines(self) -> list[dict[str, Any]]:
        """Return the whole lines printed so far."""
        *lines, _ = self.output.read_text().split("\n")
        return [json.loads(line) for line in lines if line.startswith("{")]

    def event(self, name: str) -> dict[str, Any]:
        """Wait for the line of an event."""

        def find() -> dict[str, Any] | None:
            if self._process.poll() is not None:
                self.stop()
                raise AssertionError(self.errors.read_text())
            return next((line for line in self.lines() if line.get("event") == name), None)

        return eventually(find)

    def signal(self, number: int) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def close_input(self) -> None:
        """Do what the death of a parent does."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def wait(self, seconds: float = DEADLINE_SECONDS) -> int:
        """Wait for the end and return the exit code."""
        return self._process.wait(seconds)

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def stop(self) -> None:
        """End it, however it is."""
        if self.running:
            self._process.kill()
            self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()


class Engine(Process):
    """A simulated engine; `again` starts another one on the same ports."""

    def __init__(self, folder: Path, *options: str) -> None:
        options = options if "--port" in options else ("--port", str(free_port()), *options)  # Its own when it is dead.
        super().__init__(folder, "engine", "kvrouter.replay.engine", *options)
        self.options = options
        self.ready = self.event("engine_ready")
        self.url: str = self.ready["url"]
        self.spec = f"{self.url},events={self.ready['events']},replay={self.ready['replay']}"

    def again(self, folder: Path) -> "Engine":
        """Start a new life at the same addresses."""
        ports = {
            "--port": self.url.rpartition(":")[2],
            "--events-port": self.ready["events"].rpartition(":")[2],
            "--replay-port": self.ready["replay"].rpartition(":")[2],
        }
        return Engine(folder, *self.options, *[each for pair in ports.items() for each in pair])


class Router(Process):
    """A `kvrouter serve` process."""

    def __init__(self, folder: Path, *options: str, environment: dict[str, str] | None = None) -> None:
        super().__init__(folder, "router", "kvrouter", "serve", "--port", "0", *options, environment=environment)
        listening = self.event("listening")
        self.port = int(listening["port"])
        self.url = f"{listening['scheme']}://127.0.0.1:{self.port}"

    def get(self, path: str) -> Any:
        """Return the JSON of a GET, whatever its status."""
        return httpx.get(self.url + path, timeout=60).json()

    def post(self, path: str, payload: object, *, headers: dict[str, str] | None = None) -> httpx.Response:
        """Return the answer of a POST."""
        return httpx.post(self.url + path, json=payload, headers=headers, timeout=60)

    def schedulable(self, workers: int) -> bool:
        """Whether exactly so many workers take requests."""
        return bool(self.get("/readyz")["schedulable_workers"] == workers)


class Processes:
    """Starts processes and stops all of them at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: list[Process] = []

    def engine(self, *options: str) -> Engine:
        """Start an engine and wait until it is ready."""
        return self._kept(Engine(self.folder, *options))

    def again(self, engine: Engine) -> Engine:
        """Start an engine where another one was."""
        return self._kept(engine.again(self.folder))

    def router(self, *options: str, environment: dict[str, str] | None = None, workers: int = 0) -> Router:
        """Start a router and wait until it listens and so many workers are schedulable."""
        router = self._kept(Router(self.folder, *options, environment=environment))
        if workers:
            eventually(lambda: router.schedulable(workers))
        return router

    def stop(self) -> None:
        """End everything that was started."""
        for process in self._started:
            process.stop()

    def _kept(self, process: Started) -> Started:
        self._started.append(process)
        return process


def until_cut(lines: Iterator[str]) -> list[str]:
    """Return the lines that came before the connection was cut; a whole answer fails the test."""
    read = []
    try:
        for line in lines:
            read.append(line)
    except httpx.RemoteProtocolError:
        return [line for line in read if line]
    raise AssertionError("the answer was not cut")


@contextmanager
def stopped(process: Process) -> Iterator[None]:
    """Hold a process still, as a machine without time for it would."""
    process.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.signal(signal.SIGCONT)


@contextmanager
def raw_server(answer: bytes | Callable[[bytes], bytes]) -> Iterator[int]:
    """Listen on a port whose every connection gets `answer`: always the same, or made from what was asked."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.05)
    ended = threading.Event()

    def serve() -> None:
        while not ended.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            with connection:
                connection.settimeout(1)
                try:
                    asked = connection.recv(65_536)
                    connection.sendall(answer if isinstance(answer, bytes) else answer(asked))
                except OSError:
                    continue

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        ended.set()
        thread.join()
        listener.close()
