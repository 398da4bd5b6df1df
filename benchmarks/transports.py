"""Requests and answers over every transport, beside plain NATS and plain gRPC: `python -m benchmarks.transports`.

Every worker is a process of its own that echoes 1 KiB, or streams items of 64 bytes; the asking side is this process.
All of them are measured in one run, in turns: the time of a request and its whole answer with one in flight, requests
per second with 32 in flight and the CPU time of both sides for each, and items per second of one stream. What is
compared with plain gRPC has no broker; what is compared with plain NATS has one, whose CPU time is not counted. Figures
are medians of the rounds, so that one in which the machine did something else counts as little as it should.

`pool-...` are answers over call-home with the pool, and without: a connection for each. `order-...` compare transports
with each other: multiplexed TCP should be faster than call-home with a pool, and that faster than HTTP/2.
"""

import argparse
import asyncio
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import psutil

from benchmarks import event_loop, transports_side
from benchmarks.brokers import broker, missing_broker
from benchmarks.processes import Child, Children, NotReadyError
from benchmarks.report import Report, argument_parser
from benchmarks.transports_callers import CALLERS, Caller

__all__ = ["main"]

_BODY = bytes(1024)
_IN_FLIGHT = 32
_WARM_UP_REQUESTS = 200
_NEEDS_NATS = frozenset({"nats", "call-home-nats", "plain-nats"})
_PLAIN = ("plain-nats", "plain-grpc")
_OURS = tuple(transports_side.WORKERS)
_ORDER = ("tcp", "call-home", "http")


@dataclass(slots=True, kw_only=True)
class Samples:
    """What was measured of one transport, by round; seconds. Latencies are of each request."""

    alone: list[list[float]] = field(default_factory=list)
    crowded: list[list[float]] = field(default_factory=list)
    per_second: list[float] = field(default_factory=list)
    items_per_second: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    sockets: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A worker and its caller."""

    name: str
    child: Child
    caller: Caller


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argument_parser("transports", __doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=None, help="measurements of each figure (default: 5; quick: 3)")
    parser.add_argument("--transport", choices=_OURS, action="append", help="default: all of them")
    options = parser.parse_args(arguments)
    report = Report("transports", packages=("pyzmq", "uvloop", "msgspec", "nats-py", "grpcio", "h2"))
    samples, missing = event_loop.run(_measure_all(options))
    _report(report, samples, missing, options.transport or _OURS)
    report.emit(options.json)
    return 0


async def _measure_all(options: argparse.Namespace) -> tuple[dict[str, Samples], dict[str, str]]:
    rounds = options.rounds or (3 if options.quick else 5)
    seconds = 0.35 if options.quick else 2.0
    samples: dict[str, Samples] = {}
    missing: dict[str, str] = {}
    with Children() as children, contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        no_nats = missing_broker("jetstream")
        stream = stack.enter_context(broker("jetstream", children, folder)) if no_nats is None else None
        server = "" if stream is None else stream.removesuffix("/bench")
        running: list[Running] = []
        for name in (*(options.transport or _OURS), *_PLAIN):
            if name in _NEEDS_NATS and no_nats is not None:
                missing[name] = no_nats
                continue
            try:
                running.append(await _start(children, name, server))
            except (NotReadyError, ImportError) as error:
                missing[name] = str(error)
        for number in range(rounds):
            for each in running if number % 2 == 0 else reversed(running):
                await _measure(each, samples.setdefault(each.name, Samples()), seconds)
        for each in running:
            await each.caller.aclose()
    return samples, missing


async def _start(children: Children, name: str, server: str) -> Running:
    child = children.start(name, [sys.executable, "-m", transports_side.__name__, name, server])
    child.wait(lambda: bool(_address(child)), "tells its address")
    caller = await CALLERS[name](_address(child), server)
    for _ in range(_WARM_UP_REQUESTS):
        await caller.unary(_BODY)
    return Running(name=name, child=child, caller=caller)


def _address(child: Child) -> str:
    """What it has told; nothing before that."""
    lines = child.output().splitlines(keepends=True)
    return next((line[8:].strip() for line in lines if line.startswith("address ") and line.endswith("\n")), "")


async def _measure(each: Running, samples: Samples, seconds: float) -> None:
    samples.alone.append(await _ask_for(each.caller, seconds))
    before, began = each.child.cpu_seconds() + time.process_time(), time.perf_counter()
    crowded = await asyncio.gather(*(_ask_for(each.caller, seconds) for _ in range(_IN_FLIGHT)))
    took = time.perf_counter() - began
    used = each.child.cpu_seconds() + time.process_time() - before
    times = [single for several in crowded for single in several]
    samples.crowded.append(times)
    samples.per_second.append(len(times) / took)
    samples.cpu_seconds.append(used / len(times))
    samples.sockets = max(samples.sockets, _sockets(each.child))
    samples.items_per_second.append(await _stream_for(each.caller, seconds))


async def _ask_for(caller: Caller, seconds: float) -> list[float]:
    """One request after the other; the time of each."""
    times: list[float] = []
    now = time.perf_counter()
    until = now + seconds
    while now < until:
        await caller.unary(_BODY)
        began, now = now, time.perf_counter()
        times.append(now - began)
    return times


async def _stream_for(caller: Caller, seconds: float) -> float:
    """One stream after the other, each long enough that its beginning does not count; items per second."""
    count, items = 2_000, 0
    began = now = time.perf_counter()
    while now < began + seconds:
        await caller.items(count)
        items += count
        now = time.perf_counter()
    return items / (now - began)


def _sockets(child: Child) -> int:
    """Connections that the worker holds."""
    connections = psutil.Process(child.process.pid).net_connections(kind="tcp")
    return sum(connection.status == psutil.CONN_ESTABLISHED for connection in connections)


def _report(report: Report, samples: dict[str, Samples], missing: dict[str, str], names: Sequence[str]) -> None:
    for name in names:
        if name == "call-home-unpooled":
            continue
        peer = "plain-nats" if name in _NEEDS_NATS else "plain-grpc"
        ours, theirs = samples.get(name), samples.get(peer)
        reason = missing.get(name) or missing.get(peer)
        for figure, unit, less, read in _FIGURES:
            mine, plain = (None if each is None else read(each) for each in (ours, theirs))
            report.row(f"{name}-{figure}", unit, mine, plain, peer, reason=reason, less_is_better=less)
    _report_pool(report, samples, missing)
    _report_order(report, samples, missing)


def _report_pool(report: Report, samples: dict[str, Samples], missing: dict[str, str]) -> None:
    pooled, unpooled = samples.get("call-home"), samples.get("call-home-unpooled")
    reason = missing.get("call-home") or missing.get("call-home-unpooled") or _not_asked_for(pooled, unpooled)
    for share in (50, 99):
        for crowded, suffix in ((False, ""), (True, "-32")):
            with_pool, without = (
                None if each is None else _percentile(each.crowded if crowded else each.alone, share)
                for each in (pooled, unpooled)
            )
            name = f"pool{suffix}-p{share}"
            report.row(name, "ms", with_pool, without, "without a pool", reason=reason, less_is_better=True)


def _report_order(report: Report, samples: dict[str, Samples], missing: dict[str, str]) -> None:
    """Each transport beside the one that should come after it."""
    for faster, slower in pairwise(_ORDER):
        pair = samples.get(faster), samples.get(slower)
        one, other = (None if each is None else _percentile(each.alone, 50) for each in pair)
        reason = missing.get(faster) or missing.get(slower) or _not_asked_for(*pair)
        report.row(f"order-{faster}-before-{slower}", "ms", one, other, slower, reason=reason, less_is_better=True)
    known = [name for name in _ORDER if name in samples]
    by_time = sorted(known, key=lambda name: _percentile(samples[name].alone, 50))
    report.conditions["order"] = {"expected": known, "measured": by_time, "holds": known == by_time}


def _not_asked_for(*each: Samples | None) -> str | None:
    return "not asked for" if None in each else None


def _percentile(rounds: Sequence[Sequence[float]], share: int) -> float:
    """The median of the rounds' percentiles, in milliseconds."""
    each = (sorted(seconds) for seconds in rounds)
    return statistics.median(times[min(len(times) - 1, len(times) * share // 100)] for times in each) * 1e3


_FIGURES: tuple[tuple[str, str, bool, Callable[[Samples], float]], ...] = (
    ("unary-p50", "ms", True, lambda each: _percentile(each.alone, 50)),
    ("unary-p99", "ms", True, lambda each: _percentile(each.alone, 99)),
    ("unary-32-per-second", "requests/s", False, lambda each: statistics.median(each.per_second)),
    ("unary-32-p99", "ms", True, lambda each: _percentile(each.crowded, 99)),
    ("cpu-per-request", "µs", True, lambda each: statistics.median(each.cpu_seconds) * 1e6),
    ("items-per-second", "items/s", False, lambda each: statistics.median(each.items_per_second)),
    ("sockets", "sockets", True, lambda each: float(each.sockets)),
)


if __name__ == "__main__":
    sys.exit(main())
