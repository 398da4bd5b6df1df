"""The gateway from HTTP to NATS beside a NATS request without it: `python -m benchmarks.gateway`.

One NATS server, two service processes and the gateway on this machine, and whoever asks. `overhead-p50` is the median
time of a request over HTTP less that of the same request over NATS, one in flight, in turns. `requests-per-second-...`
keep many in flight; `cpu-per-request` is the gateway's own CPU time, which a busy machine changes less. The last rows
hold streams open, each of which gets a chunk every second.
"""

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import nats
import psutil

from benchmarks import event_loop, gateway_side
from benchmarks.brokers import broker, missing_broker
from benchmarks.load.client import Answer, Connection, connect
from benchmarks.load.run import Runner
from benchmarks.load.workload import ready_bodies
from benchmarks.processes import Child, Children, Cores, free_port
from benchmarks.report import Report, argument_parser
from kvrouter.gateway.descriptors import Descriptors, load_descriptors

__all__ = ["main"]

_BODY = b'{"purpose": "a quick look", "model_id": "small"}'
_PATH = "/ai/models/small"
_IN_FLIGHT = 32
_WARM_UP_REQUESTS = 300
_SERVICES = 2
_ASKED_FOR = {"overhead": 1.0, "requests-per-second": 10_000.0}


@dataclass(slots=True, kw_only=True)
class Samples:
    """What was measured, by round."""

    gateway: list[float] = field(default_factory=list)
    """Seconds of a request over HTTP: the medians of the rounds."""
    direct: list[float] = field(default_factory=list)
    per_second: dict[int, list[float]] = field(default_factory=dict)
    """By the number of processes."""
    cpu_seconds: dict[int, list[float]] = field(default_factory=dict)
    """Of all gateway processes, by request."""
    direct_per_second: list[float] = field(default_factory=list)
    direct_cpu_seconds: list[float] = field(default_factory=list)
    streams: int = 0
    stream_bytes: float = 0.0
    stream_cpu_seconds: float = 0.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argument_parser("gateway", __doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=4, metavar="N", help="processes behind the port (default: 4)")
    parser.add_argument("--rounds", type=int, default=None, help="measurements of each figure (default: 5; quick: 2)")
    parser.add_argument("--seconds", type=float, default=None, help="time of a measurement (default: 3; quick: 1)")
    parser.add_argument("--streams", type=int, default=None, help="streams to hold (default: 1000; quick: 100)")
    options = parser.parse_args(arguments)
    report = Report("gateway", packages=("fastapi", "uvicorn", "uvloop", "httptools", "nats-py", "protobuf", "msgspec"))
    reason = missing_broker("jetstream")
    samples = Samples()
    if reason is None:
        with Children() as children, tempfile.TemporaryDirectory() as folder:
            samples = _measure(children, Path(folder), report, options)
    _report(report, samples, options.processes, reason)
    report.emit(options.json)
    return 0


def _measure(children: Children, folder: Path, report: Report, options: argparse.Namespace) -> Samples:
    rounds = options.rounds or (2 if options.quick else 5)
    seconds = options.seconds or (1.0 if options.quick else 3.0)
    samples = Samples()
    runner = Runner(children, Cores.divide().load)
    report.conditions["load"] = runner.software
    with broker("jetstream", children, folder) as stream:
        assert stream is not None, "a JetStream server has an address"
        server = stream.removesuffix("/bench")
        for number in range(_SERVICES):
            service = children.start(f"service {number}", [sys.executable, "-m", gateway_side.__name__, server])
            service.wait(lambda child=service: "serving" in child.output(), "serves")  # type: ignore[misc]
        with _gateway(children, server, processes=1) as (one, port):
            event_loop.run(_latencies(samples, server, port, rounds=rounds, seconds=seconds))
            for _ in range(rounds):
                event_loop.run(_direct_load(samples, server, seconds))
                _load(samples, runner, one, port, processes=1, seconds=seconds)
        if options.processes > 1:
            with _gateway(children, server, processes=options.processes) as (several, port):
                for _ in range(rounds):
                    _load(samples, runner, several, port, processes=options.processes, seconds=seconds)
        wanted = options.streams or (100 if options.quick else 1000)
        with _gateway(children, server, processes=1, streams=wanted) as (holding, port):
            event_loop.run(_hold(samples, holding, port, streams=wanted, chunks=3 if options.quick else 8))
    return samples


@contextlib.contextmanager
def _gateway(children: Children, server: str, *, processes: int, streams: int = 100) -> Iterator[tuple[Child, int]]:
    port = free_port()
    options = ["--port", str(port), "--nats-url", server, "--processes", str(processes), "--streams-max", str(streams)]
    child = children.start("gateway", [sys.executable, "-m", "kvrouter", "gateway", *options])
    try:
        child.wait(lambda: _healthy(port), "is healthy")
        yield child, port
    finally:
        child.stop()


def _healthy(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=5.0).status_code == 200
    except httpx.TransportError:
        return False


# -- one request at a time -------------------------------------------------------------------------------------------


async def _latencies(samples: Samples, server: str, port: int, *, rounds: int, seconds: float) -> None:
    client, message = await nats.connect(server), _message()
    done: asyncio.Queue[Answer] = asyncio.Queue()
    connection = await connect("127.0.0.1", port, lambda _, answer: done.put_nowait(answer))
    request = _request(port)

    async def over_http() -> float:
        connection.send(request)
        answer = await done.get()
        assert answer.status == 200, f"the gateway answered {answer.status}"
        return answer.ended - answer.sent

    async def over_nats() -> float:
        began = time.perf_counter()
        await client.request(gateway_side.GET_SUBJECT, message, timeout=10.0)
        return time.perf_counter() - began

    for _ in range(_WARM_UP_REQUESTS):
        await over_http()
        await over_nats()
    for _ in range(rounds):
        times: tuple[list[float], list[float]] = ([], [])
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:  # In turns, so that both meet the same neighbours.
            times[0].append(await over_http())
            times[1].append(await over_nats())
        samples.gateway.append(statistics.median(times[0]))
        samples.direct.append(statistics.median(times[1]))
    connection.close()
    await client.close()


def _message() -> bytes:
    """What the gateway makes of the body."""
    kind = Descriptors.class_of(load_descriptors(None).find("kvrouter.gateway.v1.GetModelRequest"))
    meta = {"request_id": "0" * 36, "trace_id": "0" * 32, "client_id": "http-gateway", "timestamp": {"seconds": 1}}
    encoded: bytes = kind(model_id="small", meta=meta).SerializeToString()
    return encoded


def _request(port: int) -> bytes:
    head = f"POST {_PATH} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(_BODY)}\r\n\r\n".encode() + _BODY


# -- many at a time --------------------------------------------------------------------------------------------------


async def _direct_load(samples: Samples, server: str, seconds: float) -> None:
    """Ask over NATS without the gateway, from this process."""
    client, message = await nats.connect(server), _message()
    asked = 0
    until = time.perf_counter() + seconds

    async def ask() -> None:
        nonlocal asked
        while time.perf_counter() < until:
            await client.request(gateway_side.GET_SUBJECT, message, timeout=10.0)
            asked += 1

    began, before = time.perf_counter(), time.process_time()
    await asyncio.gather(*(ask() for _ in range(_IN_FLIGHT)))
    samples.direct_per_second.append(asked / (time.perf_counter() - began))
    samples.direct_cpu_seconds.append((time.process_time() - before) / asked)
    await client.close()


def _load(samples: Samples, runner: Runner, child: Child, port: int, *, processes: int, seconds: float) -> None:
    body = _BODY.decode()
    workload = ready_bodies("gateway", _PATH, [body])
    before = child.cpu_seconds()
    full = runner.full(workload, port, seconds=seconds, connections=_IN_FLIGHT * min(processes, 4))
    assert not full.failed, f"{full.failed} requests failed"
    samples.per_second.setdefault(processes, []).append(full.requests / full.seconds)
    samples.cpu_seconds.setdefault(processes, []).append((child.cpu_seconds() - before) / full.requests)


# -- streams ---------------------------------------------------------------------------------------------------------


async def _hold(samples: Samples, child: Child, port: int, *, streams: int, chunks: int) -> None:
    """Open streams, and count those that were whole."""
    params = {"stream": True, "max_tokens": chunks, "temperature": 1.0}
    body = json.dumps({"input": {"prompt": "x"}, "params": params}).encode()
    head = f"POST /ai/llm/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    memory, began, before = (
        psutil.Process(child.process.pid).memory_info().rss,
        time.perf_counter(),
        child.cpu_seconds(),
    )
    ends: list[asyncio.Future[Answer]] = []

    def ended(connection: Connection, answer: Answer) -> None:
        waiting[connection].set_result(answer)

    waiting: dict[Connection, asyncio.Future[Answer]] = {}
    for _ in range(streams):
        connection = await connect("127.0.0.1", port, ended)
        waiting[connection] = asyncio.get_running_loop().create_future()
        ends.append(waiting[connection])
        connection.send(head + body)
    grown = psutil.Process(child.process.pid).memory_info().rss - memory
    answers = await asyncio.gather(*ends)
    samples.streams = sum(answer.status == 200 for answer in answers)
    samples.stream_bytes = grown / streams
    samples.stream_cpu_seconds = (child.cpu_seconds() - before) / (time.perf_counter() - began)
    for connection in waiting:
        connection.close()


# -- rows ------------------------------------------------------------------------------------------------------------


def _report(report: Report, samples: Samples, processes: int, reason: str | None) -> None:
    both = list(zip(samples.gateway, samples.direct, strict=True))
    overhead = _median([one - other for one, other in both])
    report.row(
        "overhead-p50", "ms", _scaled(overhead, 1e3), reason=reason, asked_for=_ASKED_FOR["overhead"],
        by_round=[round((one - other) * 1e3, 3) for one, other in both],
    )  # fmt: skip
    peer = "a NATS request without it"
    report.row(
        "request-p50", "ms", _scaled(_median(samples.gateway), 1e3), _scaled(_median(samples.direct), 1e3), peer,
        reason=reason, less_is_better=True,
    )  # fmt: skip
    alone = samples.per_second.get(1, [])
    report.row(
        "requests-per-second-per-process", "requests/s", _median(alone), _median(samples.direct_per_second), peer,
        reason=reason,
    )  # fmt: skip
    report.row(
        "cpu-per-request", "µs", _scaled(_median(samples.cpu_seconds.get(1, [])), 1e6),
        _scaled(_median(samples.direct_cpu_seconds), 1e6), peer, reason=reason, less_is_better=True,
    )  # fmt: skip
    several, cpu = samples.per_second.get(processes, []), samples.cpu_seconds.get(processes, [])
    name = "requests-per-second-4-processes" if processes == 4 else f"requests-per-second-{processes}-processes"
    report.row(
        name, "requests/s", _median(several), reason=reason,
        asked_for=_ASKED_FOR["requests-per-second"], cpu_microseconds=_scaled(_median(cpu), 1e6),
    )  # fmt: skip
    report.row("sse-streams-held", "streams", float(samples.streams) if reason is None else None, reason=reason)
    report.row("sse-bytes-per-stream", "bytes", samples.stream_bytes or None, reason=reason)
    report.row("sse-cpu", "cores", samples.stream_cpu_seconds or None, reason=reason)


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _scaled(value: float | None, by: float) -> float | None:
    return None if value is None else value * by


if __name__ == "__main__":
    sys.exit(main())
