"""Child processes of a benchmark: on which cores they run, when they are ready, what CPU time they used, how they end.

Every child is stopped when the block ends, also after an error or Ctrl-C, and only by its own process id. Pinning is
done where the system can do it (Linux); elsewhere the result says that nothing was pinned.
"""

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psutil

__all__ = ["Child", "Children", "Cores", "NotReadyError", "free_port", "free_ports", "wait_until"]

_READY_SECONDS = 30.0
_STOP_SECONDS = 3.0
_LOOK_SECONDS = 0.3


class NotReadyError(Exception):
    """A child died or did not become ready in time; the text ends with the last lines it wrote."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cores:
    """Which cores do what: the measured process alone on one, so that its figures are per core."""

    router: tuple[int, ...]
    backend: tuple[int, ...]
    load: tuple[int, ...]
    pinned: bool

    @classmethod
    def divide(cls) -> "Cores":
        """Divide the cores this process may use: the idlest is the router's, then the load's, then the backends'."""
        if not hasattr(os, "sched_getaffinity"):
            return cls(router=(), backend=(), load=(), pinned=False)
        busy = psutil.cpu_percent(interval=_LOOK_SECONDS, percpu=True)
        usable = sorted(os.sched_getaffinity(0), key=lambda core: busy[core] if core < len(busy) else 0.0)
        if len(usable) < 3:
            return cls(router=tuple(usable[:1]), backend=tuple(usable[-1:]), load=tuple(usable[-1:]), pinned=True)
        return cls(router=(usable[0],), backend=tuple(usable[2:4]), load=(usable[1],), pinned=True)


class Child:
    """One running process and what it started."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], output: Path) -> None:
        self.name, self.process, self._output = name, process, output

    def cpu_seconds(self) -> float:
        """Return user and system time of the process and its descendants so far."""
        parent = psutil.Process(self.process.pid)
        total = 0.0
        for process in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += _precise_cpu_seconds(process)
        return total

    def memory_bytes(self) -> int:
        """Return the resident memory of the process and its descendants."""
        parent = psutil.Process(self.process.pid)
        return sum(process.memory_info().rss for process in (parent, *parent.children(recursive=True)))

    def last_line(self) -> str:
        """Return the end of what the process wrote, where programs say why they failed."""
        lines = self.output().split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")

    def output(self) -> str:
        """Return all that the process wrote."""
        return self._output.read_text(encoding="utf-8", errors="replace")

    def wait_for_port(self, port: int, *, seconds: float = _READY_SECONDS) -> None:
        """Wait until something listens on `port` of loopback."""
        self.wait(lambda: _listens(port), f"listens on port {port}", seconds=seconds)

    def wait(self, condition: Callable[[], bool], what: str, *, seconds: float = _READY_SECONDS) -> None:
        """Wait until `condition` holds while the process lives."""
        deadline = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None:
                raise NotReadyError(f"{self.name} ended with {self.process.returncode}: {self.last_line()}")
            if time.monotonic() > deadline:
                raise NotReadyError(f"{self.name}: not true after {seconds} s: {what}: {self.last_line()}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End the process and its descendants."""
        stop([self])


class Children:
    """Starts processes and ends all of them on exit; owns the folder for their files."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="kvrouter-benchmark-")
        self.folder = Path(self._folder.name)
        self._running: list[Child] = []
        self._numbers = itertools.count()

    def __enter__(self) -> "Children":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stop(self._running)
        self._folder.cleanup()

    def start(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        cores: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
    ) -> Child:
        """Start `command` on `cores` (any, if empty); its output goes to a file of ours."""
        output = self.folder / f"{next(self._numbers)}-{name.replace(' ', '-')}.log"
        with output.open("wb") as log, _affinity(cores):
            process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
            )
        child = Child(name, process, output)
        self._running.append(child)
        return child

    def run(self, name: str, command: Sequence[str | Path], *, cores: Sequence[int], seconds: float) -> str:
        """Run `command` to its end, within `seconds`, and return what it wrote."""
        child = self.start(name, command, cores=cores)
        try:
            code = child.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise NotReadyError(f"{name} did not end within {seconds} s: {child.last_line()}") from None
        finally:
            self._running.remove(child)
            child.stop()
        if code != 0:
            raise NotReadyError(f"{name} ended with {code}: {child.last_line()}")
        return child.output()


def stop(children: Sequence[Child]) -> None:
    """End processes and their descendants: all asked politely at once, those that stay are killed."""
    family = [process for child in children for process in _family(child.process.pid)]
    for child in children:
        if child.process.poll() is None:
            child.process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(family, timeout=_STOP_SECONDS)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    for child in children:
        child.process.wait()


def free_port() -> int:
    """Return a loopback port that was free just now."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Return `count` different loopback ports that were free just now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def wait_until(condition: Callable[[], bool], what: str, *, seconds: float = _READY_SECONDS) -> None:
    """Wait until `condition` holds; a `NotReadyError` says `what` did not."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise NotReadyError(f"not true after {seconds} s: {what}")
        time.sleep(0.02)


@contextlib.contextmanager
def _affinity(cores: Sequence[int]) -> Iterator[None]:
    """Let children of this block inherit `cores`: set before the fork, so that no thread of theirs escapes."""
    if not cores or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _precise_cpu_seconds(process: psutil.Process) -> float:
    """Read the process's CPU clock in nanoseconds where there is one; the usual figure moves in steps of 10 ms."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            # What clock_getcpuclockid(3) returns: the clock of all threads of a process, also those that have ended.
            return time.clock_gettime(~process.pid << 3 | 2)
    times = process.cpu_times()
    return float(times.user + times.system)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _family(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [*parent.children(recursive=True), parent]
    except psutil.NoSuchProcess:
        return []
