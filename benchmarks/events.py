"""Event ingest beside Dynamo's indexer, on the same bytes from the same publishers: `python -m benchmarks.events`.

Ours is the router's own subscriber, ingest and index in one process; theirs is `dynamo.indexer`. Over ZeroMQ both
follow the same publishers, which speak vLLM's wire. They have said everything when a subscriber that stood still goes
on, or they would be slower than it: blocks per second are those stored and removed from then until the last batch
counts, and the CPU time is that of the whole process, all threads. A name ends with `PxB` for P publishers and B blocks
in each event; without it, 8x8. Both sides hear the same bytes, on any core. Figures are medians of the rounds, in which
the sides take turns in going first; `conditions` have every round's, as a busy machine makes them differ by half.

Over the other transports, which theirs does not have, our own publishers speak, and real brokers carry it: all of them
are on one machine, so blocks per second are those of the slowest.

Staleness is the time from a batch's publication until it counts, under 100 000 blocks per second. In our process every
batch is timed. Theirs can only be asked over HTTP: marked blocks are looked up again and again until they are found.
"""

import argparse
import contextlib
import http.client
import json
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import zmq

from benchmarks import events_side
from benchmarks.brokers import broker, missing_broker
from benchmarks.events_side import BLOCK_SIZE, MARK_EVERY, PUBLISHERS, mark_tokens
from benchmarks.peers import PeerEnvironment, add_peers_option
from benchmarks.processes import Child, Children, NotReadyError, free_port, free_ports
from benchmarks.report import Report, argument_parser
from kvrouter import native_core

__all__ = ["main"]

_PEER: Final = "dynamo.indexer"
_PACKAGE: Final = "ai-dynamo-runtime"
_PACED_BLOCKS: Final = 100_000
_ANSWER_SECONDS: Final = 60
_POLL_SECONDS: Final = 0.001
_USUAL: Final = (8, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is published. `paced` is in blocks per second; 0: as fast as possible."""

    transport: str
    publishers: int
    blocks_per_event: int
    batches: int
    paced: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What one side did with a load."""

    blocks_per_second: float
    cpu_microseconds: float
    ages: dict[int, float]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argument_parser("events", __doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=None, help="measurements of each figure (default: 3; quick: 1)")
    parser.add_argument("--transport", choices=sorted(PUBLISHERS), action="append", help="default: all of them")
    add_peers_option(parser)
    options = parser.parse_args(arguments)
    report = Report("events", packages=("pyzmq", "uvloop", "msgpack", "xxhash"))
    peers = PeerEnvironment.find(options.peers_python)
    report.versions |= {_PACKAGE: peers.versions[_PACKAGE]} if _PACKAGE in peers.versions else {}
    rounds = options.rounds or (1 if options.quick else 3)
    report.conditions |= {"rounds": rounds, "implementation": native_core.implementation}
    for transport in options.transport or sorted(PUBLISHERS):
        _measure_transport(report, options, peers, transport, rounds)
    report.emit(options.json)
    return 0


def _measure_transport(
    report: Report, options: argparse.Namespace, peers: PeerEnvironment, transport: str, rounds: int
) -> None:
    missing = missing_broker(transport)
    if missing is not None:
        report.row(
            f"{transport}-blocks-per-second", "blocks/s", None, None, _PEER, reason=missing, less_is_better=False
        )
        return
    has_peer = transport == "zmq" and _PACKAGE in peers.versions
    reason = None if has_peer else peers.missing(_PACKAGE) if transport == "zmq" else f"{_PEER} has no {transport}"
    sides = ("ours", _PEER) if has_peer else ("ours",)
    samples: dict[tuple[Load, str], list[Sample]] = defaultdict(list)
    loads = [*_loads(transport, quick=options.quick), _paced(transport, quick=options.quick)]
    for number in range(rounds):
        for load in loads:
            for side in sides if number % 2 == 0 else reversed(sides):
                samples[load, side].append(_measure(load, side, peers))
    for load in loads:
        _report(report, load, samples[load, "ours"], samples.get((load, _PEER), []), reason)
    report.conditions[f"{transport}_samples"] = {
        f"{load.publishers}x{load.blocks_per_event}": {
            side: [round(each.blocks_per_second) for each in samples[load, side]] for side in sides
        }
        for load in loads
        if not load.paced
    }


def _loads(transport: str, *, quick: bool) -> list[Load]:
    shapes = [(8, 8), (8, 1), (8, 64), (1, 8)]
    shapes += [] if quick else [(1, 1), (1, 64)]
    if transport != "zmq":
        shapes = [(8, 8), (1, 8)]  # What is measured of these is their publishers and brokers as much as us.
    batches = {1: 16_000, 8: 12_000, 64: 3_200} if quick else {1: 80_000, 8: 48_000, 64: 16_000}
    if quick and transport == "zmq":  # Over the others most of the time is theirs.
        batches = {1: 24_000, 8: 32_000, 64: 6_400}
    return [
        Load(transport=transport, publishers=publishers, blocks_per_event=blocks, batches=batches[blocks])
        for publishers, blocks in shapes
    ]


def _paced(transport: str, *, quick: bool) -> Load:
    publishers, blocks = _USUAL
    seconds = 2 if quick else 6
    batches = _PACED_BLOCKS * seconds // blocks
    return Load(
        transport=transport, publishers=publishers, blocks_per_event=blocks, batches=batches, paced=_PACED_BLOCKS
    )


def _report(report: Report, load: Load, ours: list[Sample], theirs: list[Sample], reason: str | None) -> None:
    def row(name: str, unit: str, key: str, *, less: bool) -> None:
        figures = [statistics.median(getattr(each, key) for each in side) if side else None for side in (ours, theirs)]
        report.row(name, unit, figures[0], figures[1], _PEER, reason=reason, less_is_better=less)

    if load.paced:
        prefix = "" if load.transport == "zmq" else f"{load.transport}-"
        for share in (50, 99):
            name = f"{prefix}staleness-p{share}"
            figures = [
                statistics.median(each.ages[share] for each in side) * 1e3 if side else None for side in (ours, theirs)
            ]
            report.row(name, "ms", figures[0], figures[1], _PEER, reason=reason, less_is_better=True)
        return
    shape = (load.publishers, load.blocks_per_event)
    suffix = "" if shape == _USUAL else f"-{shape[0]}x{shape[1]}"
    row(f"{load.transport}-blocks-per-second{suffix}", "blocks/s", "blocks_per_second", less=False)
    row(f"{load.transport}-cpu-per-block{suffix}", "µs", "cpu_microseconds", less=True)


def _measure(load: Load, side: str, peers: PeerEnvironment) -> Sample:
    with Children() as children, contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stream = stack.enter_context(broker(load.transport, children, folder))
        scheme = "http" if load.transport == "http" else "tcp"
        own = [f"{scheme}://127.0.0.1:{port}" for port in free_ports(load.publishers)]
        addresses = own if stream is None else [stream] * load.publishers
        settings: dict[str, Any] = {
            "transport": load.transport,
            "addresses": addresses,
            "blocks_per_event": load.blocks_per_event,
            "batches": load.batches,
            "paced": load.paced,
        }
        publisher = stack.enter_context(_Control(children, "publish", settings))
        if side == "ours":
            subscriber: _Ours | _Dynamo = stack.enter_context(_Ours(children, settings))
        else:
            subscriber = stack.enter_context(_Dynamo(children, peers, load, addresses))
        subscriber.connect()
        said = publisher.ask()
        before = subscriber.child.cpu_seconds()
        if load.paced:
            subscriber.watch()
        began, sent = _publish_all(publisher, subscriber.child, held_back=load.transport == "zmq" and not load.paced)
        finished = subscriber.finish()
        used = subscriber.child.cpu_seconds() - before
        return Sample(
            blocks_per_second=said["blocks"] / (finished - began),
            cpu_microseconds=used / said["blocks"] * 1e6,
            ages=subscriber.ages(sent["marks_sent"]) if load.paced else {},
        )


def _publish_all(publisher: "_Control", subscriber: Child, *, held_back: bool) -> tuple[float, dict[str, Any]]:
    """Have everything published; returns when it began to be heard, and what the publisher says.

    `held_back`: the subscriber stands still meanwhile, so that no publisher can be the slower one.
    """
    if not held_back:
        sent = publisher.ask()
        return sent["began"], sent
    subscriber.process.send_signal(signal.SIGSTOP)
    try:
        sent = publisher.ask()
        return time.monotonic(), sent
    finally:
        subscriber.process.send_signal(signal.SIGCONT)


class _Control:
    """One of our processes, and its control socket."""

    def __init__(self, children: Children, name: str, settings: dict[str, Any]) -> None:
        address = f"tcp://127.0.0.1:{free_port()}"
        self.child = children.start(
            name, [sys.executable, "-m", events_side.__name__, name, json.dumps(settings | {"control": address})]
        )
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.REQ)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(address)

    def __enter__(self) -> "_Control":
        return self

    def __exit__(self, *error: object) -> None:
        self._context.destroy()

    def ask(self) -> dict[str, Any]:
        """Let it go on to its next answer."""
        self._socket.send(b"")
        self.child.wait(lambda: bool(self._socket.poll(20)), "answers", seconds=_ANSWER_SECONDS)
        answer: dict[str, Any] = json.loads(self._socket.recv())
        return answer


class _Ours:
    """Our subscriber, ingest and index."""

    def __init__(self, children: Children, settings: dict[str, Any]) -> None:
        self._control = _Control(children, "receive", settings)
        self.child: Child = self._control.child
        self._answer: dict[str, Any] = {}

    def __enter__(self) -> "_Ours":
        return self

    def __exit__(self, *error: object) -> None:
        self._control.__exit__(*error)

    def connect(self) -> None:
        """Wait until it listens to everybody."""
        self._control.ask()

    def watch(self) -> None:
        """Nothing to do: it times every batch."""

    def finish(self) -> float:
        """Wait until everything counts; returns when it did."""
        self._answer = self._control.ask()
        if self._answer["lost"]:
            raise NotReadyError(f"ours lost or ignored {self._answer['lost']} batches")
        return float(self._answer["finished"])

    def ages(self, _marks_sent: Sequence[float]) -> dict[int, float]:
        """Return percentiles of staleness, in seconds."""
        return {int(share): age for share, age in self._answer["ages"].items()}


class _Dynamo:
    """Dynamo's indexer; it has everything when it finds the last block of every publisher."""

    def __init__(self, children: Children, peers: PeerEnvironment, load: Load, addresses: Sequence[str]) -> None:
        self._port = free_port()
        workers = ",".join(f"{number + 1}={address}" for number, address in enumerate(addresses))
        command = [str(peers.python), "-m", _PEER, "--port", str(self._port), "--block-size", str(BLOCK_SIZE)]
        self.child = children.start(_PEER, [*command, "--workers", workers], environment={"DYN_LOG": "error"})
        self.child.wait_for_port(self._port)
        self._publishers = load.publishers
        self._each = load.batches // load.publishers
        self._found: list[float] = []
        self._watching = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "_Dynamo":
        return self

    def __exit__(self, *error: object) -> None:
        if self._watching.is_alive():
            self._watching.join(_ANSWER_SECONDS)

    def connect(self) -> None:
        """It does not say; publishers wait until they are heard."""

    def watch(self) -> None:
        """Look for the marks of the first publisher as they come."""
        self._watching.start()

    def finish(self) -> float:
        """Wait until everything counts; returns when it did."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_ANSWER_SECONDS)
        last = -(-self._each // MARK_EVERY) - 1
        finished = [self._wait_for(connection, publisher, last) for publisher in range(self._publishers)]
        return max(finished)

    def ages(self, marks_sent: Sequence[float]) -> dict[int, float]:
        """Return percentiles of staleness, in seconds."""
        self._watching.join(_ANSWER_SECONDS)
        ages = sorted(found - sent for found, sent in zip(self._found, marks_sent, strict=True))
        return {share: ages[int(len(ages) * share / 100)] for share in (50, 99)}

    def _watch(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_ANSWER_SECONDS)
        self._found = [self._wait_for(connection, 0, number) for number in range(self._each // MARK_EVERY)]

    def _wait_for(self, connection: http.client.HTTPConnection, publisher: int, number: int) -> float:
        body = json.dumps({"token_ids": mark_tokens(publisher, number), "model_name": "default"})
        deadline = time.monotonic() + _ANSWER_SECONDS
        while time.monotonic() < deadline:
            connection.request("POST", "/query", body, {"Content-Type": "application/json"})
            if json.load(connection.getresponse())["scores"]:
                return time.monotonic()
            time.sleep(_POLL_SECONDS)
        raise NotReadyError(f"{_PEER} never found block {number} of publisher {publisher}")


if __name__ == "__main__":
    sys.exit(main())
