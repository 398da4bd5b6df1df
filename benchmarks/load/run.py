"""Run one load against one port and return what came back."""

import contextlib
import http.client
import json
import socket
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.load import wrk
from benchmarks.load.workload import Workload
from benchmarks.peers import system_program
from benchmarks.processes import Children

__all__ = ["Full", "LoadError", "Paced", "Runner", "answer_header", "answers_ok"]


class LoadError(Exception):
    """A load generator failed, or too many of its requests did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Full:
    """What came of full load."""

    requests: int
    bytes: int
    failed: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Paced:
    """Seconds until the end of the answer, and until its first byte, at a fixed rate."""

    p50: float
    p99: float
    first_byte_p50: float
    first_byte_p99: float
    failed: int


class Runner:
    """Generates load on its own cores; uses wrk for full load if it is installed."""

    def __init__(self, children: Children, cores: Sequence[int]) -> None:
        self._children, self._cores = children, cores
        self._wrk = system_program("wrk")
        self._seed = int(time.time())
        self._saved: dict[str, Path] = {}

    @property
    def software(self) -> str:
        """Name what generates full load."""
        return "wrk" if self._wrk else "own asyncio generator"

    def full(self, workload: Workload, port: int, *, seconds: float, connections: int) -> Full:
        """Keep `connections` busy for about `seconds`."""
        self._seed += 1
        if self._wrk is None or seconds < 1:  # wrk measures whole seconds
            result = self._own("closed", workload, port, seconds, ["--connections", str(connections)])
        else:
            path = self._children.folder / "load.lua"
            host = f"127.0.0.1:{port}"
            path.write_text(wrk.script(workload, host, self._seed), encoding="utf-8")
            command = wrk.command(
                self._wrk,
                path,
                f"http://{host}",
                threads=max(1, len(self._cores)),
                connections=connections,
                seconds=seconds,
            )
            result = wrk.summary(self._children.run("wrk", command, cores=self._cores, seconds=seconds + 30))
        return Full(
            requests=int(result["requests"]),
            bytes=int(result["bytes"]),
            failed=int(result["failed"]),
            seconds=result["microseconds"] / 1e6,
        )

    def answer_bytes(self, workload: Workload, port: int) -> int:
        """Return how many bytes one streamed answer has, framing included."""
        received = bytearray()
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(workload.request(0, self._seed, f"127.0.0.1:{port}"))
            while not received.endswith(b"\r\n0\r\n\r\n"):
                more = connection.recv(1 << 16)
                received += more
                if not more or not received.startswith(b"HTTP/1.1 200"):
                    raise LoadError(f"no complete stream but {bytes(received[-200:])!r}")
        return len(received)

    def paced(self, workload: Workload, port: int, *, seconds: float, rate: float) -> Paced:
        """Send `rate` requests a second."""
        self._seed += 1
        result = self._own("paced", workload, port, seconds, ["--rate", str(rate)])
        if not result["seconds"]:
            raise LoadError(f"none of {result['failed']} requests was answered with 200")
        answered, began = result["seconds"], result["first_byte_seconds"]
        return Paced(
            p50=statistics.median(answered),
            p99=answered[int(len(answered) * 0.99)],
            first_byte_p50=statistics.median(began),
            first_byte_p99=began[int(len(began) * 0.99)],
            failed=int(result["failed"]),
        )

    def _own(self, mode: str, workload: Workload, port: int, seconds: float, options: list[str]) -> dict[str, Any]:
        if workload.name not in self._saved:
            self._saved[workload.name] = self._children.folder / f"{workload.name}.json"
            workload.save(self._saved[workload.name])
        command: list[str | Path] = [sys.executable, "-m", "benchmarks.load.generate", mode]
        command += ["--workload", self._saved[workload.name], "--port", str(port), "--seed", str(self._seed)]
        command += ["--seconds", str(seconds), *options]
        output = self._children.run("generator", command, cores=self._cores, seconds=seconds + 30)
        result: dict[str, Any] = json.loads(output.splitlines()[-1])
        return result


def answers_ok(port: int, path: str) -> bool:
    """Return whether GET `path` is answered with 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with contextlib.closing(connection), contextlib.suppress(OSError):
        connection.request("GET", path)
        return connection.getresponse().status == 200
    return False


def answer_header(workload: Workload, port: int, name: str, *, seed: int) -> int:
    """Send one request and return a header of its answer as a number; 0 if it has none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        connection.request("POST", workload.path, workload.body(0, seed), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        return int(answer.getheader(name) or 0)
