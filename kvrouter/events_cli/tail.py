"""`kvrouter events tail`: see what an engine publishes about its KV cache, as it arrives.

A tool for people and scripts that ask "does anything come, and what?". It prints counts and hashes, never token
ids, salts or sessions, and keeps no index.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from kvrouter.errors import SettingsError, WireError
from kvrouter.events import AllBlocksCleared, BlockRemoved, BlockStored, Event, Source, decode_batch
from kvrouter.events.digest import DigestRow
from kvrouter.events.endpoints import check_source, transport_of

__all__ = ["Tail", "add_parser", "run"]

_ANY_WORKER = "tail"
_SILENT_SECONDS = 5.0
_HASHES_SHOWN = 2
_HELD_MAX = 10_000


def add_parser(commands: Any) -> None:
    """Add `tail` to the commands of `events`."""
    tail = commands.add_parser(
        "tail",
        help="print the events of one publisher as they arrive",
        description="Print the KV-cache events that arrive from ENDPOINT. Shows counts and hashes, never token ids.",
    )
    tail.add_argument(
        "endpoint",
        metavar="ENDPOINT",
        help="where events are published: tcp://10.0.0.5:5557, http://10.0.0.5:8100, nats://broker:4222/stream, "
        "redis://broker:6379/0/stream",
    )
    tail.add_argument("--worker", metavar="ID", help="whose events; needed where one address carries many workers'")
    tail.add_argument("--rank", type=_whole_number(0), default=0, metavar="N", help="with --worker (default: 0)")
    tail.add_argument(
        "--api-key",
        default=os.environ.get("KVROUTER_EVENTS_KEY"),
        metavar="KEY",
        help="for http:// endpoints that want one (default: KVROUTER_EVENTS_KEY)",
    )
    tail.add_argument(
        "--replay", metavar="ENDPOINT", help="where missed events are replayed, such as tcp://10.0.0.5:5657"
    )
    tail.add_argument(
        "--start", type=_whole_number(0), metavar="N", help="with --replay: begin at sequence N (default: 0)"
    )
    tail.add_argument("--topic", default="", help="prefix of the topics to show (default: all)")
    tail.add_argument("--count", type=_whole_number(1), metavar="N", help="stop after N batches")
    tail.add_argument("--seconds", type=float, metavar="S", help="stop after S seconds; exit code 1 if nothing came")
    tail.add_argument("--json", action="store_true", help="print one JSON object per line")
    tail.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print events until the count, the time or an interrupt; returns 1 if a time was given and nothing came.

    Raises:
        SettingsError: an endpoint is malformed, or `--start` was given without `--replay`.
    """
    if arguments.start is not None and arguments.replay is None:
        raise SettingsError("--start needs --replay: only replayed events can begin earlier")
    transport = transport_of(check_source(arguments.endpoint))
    if transport != "zmq":
        if arguments.worker is None:
            raise SettingsError(f"{transport} endpoints carry the events of many workers; say whose with --worker ID")
        if arguments.replay is not None or arguments.topic:
            raise SettingsError("--replay, --start and --topic are ZeroMQ's; other transports repeat what they have")
    return asyncio.run(_tail(arguments))


def _whole_number(least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text!r}")
        return int(text)

    return read


class _Answer(NamedTuple):
    outcome: str
    replay_from: int | None = None
    snapshot_wanted: bool = False


class _Arrived(NamedTuple):
    sequence: int
    payload: bytes
    digest: Sequence[DigestRow] | None


class Tail:
    """An event sink that describes what arrives instead of keeping it. Records go to `emit`, one mapping each.

    Batches beyond `count` are passed over: more may come in the same read as the last one that was asked for.
    """

    def __init__(
        self,
        emit: Callable[[Mapping[str, Any]], None],
        *,
        replay: bool = False,
        start: int = 0,
        count: int | None = None,
    ) -> None:
        self._emit, self._replay, self._next, self._count_max = emit, replay, start, count
        self._seen_any = self._may_restart = False
        self._held: list[_Arrived] | None = None
        self._incarnation: int | None = None
        self.batches = self.events = self.blocks_stored = self.blocks_removed = self.clears = 0
        self.gaps = self.duplicates = self.quarantined = self.restarts = 0

    def connected(self, source: Source, *, now: float) -> _Answer:  # noqa: ARG002 - the sink's signature
        """Say so; ask for what was published before, and hold what comes live until that has come."""
        self._emit({"kind": "connected"})
        self._may_restart = self._seen_any
        if not self._replay:
            return _Answer("connected")
        self._held = self._held or []
        return _Answer("connected", self._next)

    def disconnected(self, source: Source, *, now: float) -> None:  # noqa: ARG002 - as above
        """Say so."""
        self._emit({"kind": "disconnected"})

    def replay_finished(self, source: Source, *, now: float, complete: bool) -> _Answer:  # noqa: ARG002 - as above
        """Say so, if somebody wanted it, and show what was held."""
        if self._replay:
            self._emit({"kind": "replayed", "complete": complete})
        self._release()
        return _Answer("resolved")

    def receive(
        self,
        source: Source,  # noqa: ARG002 - as above
        sequence: int,
        payload: bytes,
        *,
        now: float,  # noqa: ARG002 - as above
        replayed: bool = False,
        incarnation: int | None = None,
        digest: Sequence[DigestRow] | None = None,
    ) -> _Answer:
        """Describe one batch, and what its number says about those before it."""
        if incarnation is not None and incarnation != self._incarnation:
            if self._incarnation is not None:
                self.restarts += 1
                self._emit({"kind": "restarted"})
                self._seen_any = False
            self._incarnation = incarnation
        arrived = _Arrived(sequence, payload, digest)
        if self._held is None or replayed:
            return self._take(arrived, replayed=replayed)
        self._held.append(arrived)
        if len(self._held) >= _HELD_MAX:
            self._release()
        return _Answer("buffered")

    def snapshot(
        self,
        source: Source,  # noqa: ARG002 - as above
        batches: Sequence[bytes],
        *,
        sequence: int,
        incarnation: int | None,  # noqa: ARG002 - as above
        now: float,  # noqa: ARG002 - as above
    ) -> _Answer:
        """Say that one came; nobody asks for them here."""
        self._emit({"kind": "snapshot", "sequence": sequence, "batches": len(batches)})
        return _Answer("applied")

    def snapshot_failed(self, source: Source, *, now: float) -> None:  # noqa: ARG002 - as above
        """Say so."""
        self._emit({"kind": "snapshot failed"})

    def _release(self) -> None:
        held, self._held = self._held or [], None
        for arrived in held:
            self._take(arrived, replayed=False)

    def _take(self, arrived: _Arrived, *, replayed: bool) -> _Answer:
        sequence = arrived.sequence
        if self._seen_any and sequence < self._next:
            # A live batch may have come in the replay before; only after a new connection is it a new life.
            if replayed or not (sequence == 0 or self._may_restart):
                self.duplicates += 1
                return _Answer("duplicate")
            self.restarts += 1
            self._emit({"kind": "restarted"})
        elif self._seen_any and sequence > self._next:
            self.gaps += 1
            self._emit({"kind": "gap", "expected": self._next, "received": sequence})
        self._seen_any, self._may_restart, self._next = True, False, sequence + 1
        if self.batches == self._count_max:
            return _Answer("applied")
        self._describe(arrived, replayed=replayed)
        return _Answer("applied")

    def summary(self) -> dict[str, Any]:
        """Return the counts so far."""
        return {
            "kind": "summary",
            "batches": self.batches,
            "events": self.events,
            "blocks_stored": self.blocks_stored,
            "blocks_removed": self.blocks_removed,
            "clears": self.clears,
            "gaps": self.gaps,
            "duplicates": self.duplicates,
            "restarts": self.restarts,
            "quarantined": self.quarantined,
        }

    def _describe(self, arrived: _Arrived, *, replayed: bool) -> None:
        sequence, payload, digest = arrived
        self.batches += 1
        record: dict[str, Any] = {"kind": "batch", "sequence": sequence, "replayed": replayed, "bytes": len(payload)}
        try:
            batch = decode_batch(payload)
        except WireError as error:
            self.quarantined += 1
            self._emit({**record, "kind": "quarantined", "reason": str(error)})
            return
        for event in batch.events:
            self._count(event)
        record |= {"timestamp": batch.timestamp, "rank": batch.data_parallel_rank}
        record |= {"events": [_described(event) for event in batch.events], "skipped": dict(batch.skipped)}
        if digest is not None:
            record["digest"] = [
                {"medium": row.medium, "group": row.group, "blocks": row.count, "xor": _hex(row.xor)} for row in digest
            ]
        self._emit(record)

    def _count(self, event: Event) -> None:
        self.events += 1
        match event:
            case BlockStored():
                self.blocks_stored += len(event.block_hashes)
            case BlockRemoved():
                self.blocks_removed += len(event.block_hashes)
            case AllBlocksCleared():
                self.clears += 1


def _described(event: Event) -> dict[str, Any]:
    match event:
        case BlockStored():
            optional = {
                "parent": None if event.parent_block_hash is None else _hex(event.parent_block_hash),
                "medium": event.medium,
                "group": event.group_idx,
                "lora": event.lora_name,
            }
            return {
                "type": "stored",
                "blocks": len(event.block_hashes),
                "block_size": event.block_size,
                "tokens": len(event.token_ids),
                "hashes": [_hex(block_hash) for block_hash in event.block_hashes],
                **{name: value for name, value in optional.items() if value is not None},
            }
        case BlockRemoved():
            removed = {"type": "removed", "blocks": len(event.block_hashes)}
            optional = {"medium": event.medium, "group": event.group_idx}
            return {
                **removed,
                "hashes": [_hex(block_hash) for block_hash in event.block_hashes],
                **{name: value for name, value in optional.items() if value is not None},
            }
        case AllBlocksCleared():
            return {"type": "cleared"}


def _hex(block_hash: int) -> str:
    return f"{block_hash:016x}"


def _line(record: Mapping[str, Any]) -> str:
    """Return a record as a line, or lines, for people."""
    match record["kind"]:
        case "batch":
            head = f"{record['sequence']:>8}{' replayed' if record['replayed'] else ''}"
            head += "" if record["rank"] is None else f" rank {record['rank']}"
            lines = [_event_line(event) for event in record["events"]]
            lines += [f"skipped {count}: {reason}" for reason, count in record["skipped"].items()]
            if not lines and record["sequence"] == 0:
                lines = ["first of a life, nothing is cached yet"]
            if "digest" in record:
                lines.append(_digest_line(record["digest"]))
            return "\n".join(f"{head}  {line}" for line in lines or ["empty"])
        case "quarantined":
            return f"{record['sequence']:>8}  not understood, {record['bytes']} bytes: {record['reason']}"
        case "gap":
            return f"     gap  expected {record['expected']}, received {record['received']}"
        case "replayed":
            return f"  replay  {'complete' if record['complete'] else 'not answered to its end'}"
        case "summary":
            counts = ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in record.items() if name != "kind")
            return f"   total  {counts}"
        case kind:
            return f"          {kind}"


def _digest_line(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say what the publisher holds, which the router compares with what it knows."""
    places = [f"{row['blocks']} in {row['medium'] or 'no medium'} group {row['group']}" for row in rows]
    return f"digest: holds {', '.join(places) or 'nothing'}"


def _event_line(event: Mapping[str, Any]) -> str:
    words = [event["type"]]
    if "blocks" in event:
        words.append(f"{event['blocks']} block{'' if event['blocks'] == 1 else 's'}")
    if "tokens" in event:
        words.append(f"of {event['block_size']} ({event['tokens']} tokens)")
    words += [f"{name} {event[name]}" for name in ("medium", "group", "lora", "parent") if name in event]
    hashes = event.get("hashes", [])
    if hashes:
        more = f" and {len(hashes) - _HASHES_SHOWN} more" if len(hashes) > _HASHES_SHOWN else ""
        words.append(f"hashes {' '.join(hashes[:_HASHES_SHOWN])}{more}")
    return " ".join(words)


async def _tail(arguments: argparse.Namespace) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)

    def emit(record: Mapping[str, Any]) -> None:
        if stop.is_set() and record["kind"] != "summary":
            return
        _write(json.dumps(record) if arguments.json else _line(record), stop)
        if record["kind"] in ("batch", "quarantined") and tail.batches == arguments.count:
            stop.set()

    source = Source(arguments.worker or _ANY_WORKER, arguments.rank)
    replays = arguments.replay is not None or transport_of(arguments.endpoint) != "zmq"
    tail = Tail(emit, replay=replays, start=arguments.start or 0, count=arguments.count)
    subscriber = _subscriber(tail, arguments.endpoint, arguments.api_key)
    subscriber.add(source, arguments.endpoint, replay_endpoint=arguments.replay, topic=arguments.topic)
    async with subscriber, asyncio.TaskGroup() as tasks:
        nagging = tasks.create_task(_tell_if_silent(lambda: subscriber.status(source), tail))
        try:
            async with asyncio.timeout(arguments.seconds):
                await stop.wait()
        except TimeoutError:
            pass
        nagging.cancel()
        if arguments.seconds is not None and arguments.seconds <= _SILENT_SECONDS and not tail.batches:
            _tell_silence(subscriber.status(source))
    emit(tail.summary())
    return 1 if arguments.seconds is not None and not tail.batches else 0


def _subscriber(tail: Tail, endpoint: str, api_key: str | None) -> Any:
    import kvrouter_subscribers as subscribers  # noqa: PLC0415 - other commands need not load pyzmq

    match transport_of(endpoint):
        case "zmq":
            return subscribers.ZmqEventSubscriber(tail)
        case "http":
            return subscribers.HttpEventSubscriber(tail, token_of=lambda _: api_key)
        case "jetstream":
            return subscribers.JetStreamEventSubscriber(tail)
        case "redis":
            return subscribers.RedisEventSubscriber(tail)


async def _tell_if_silent(status: Callable[[], Any], tail: Tail) -> None:
    """Tell on standard error why nothing comes: that is what this command is for."""
    while True:
        await asyncio.sleep(_SILENT_SECONDS)
        if tail.batches:
            return
        _tell_silence(status())


def _tell_silence(now: Any) -> None:
    state = "connected, but no events yet; is the engine busy, and the topic right?"
    if not now.connected:
        state = f"not connected ({now.last_error or 'no answer'})"
    sys.stderr.write(f"{now.endpoint}: {state}\n")


def _write(line: str, stop: asyncio.Event) -> None:
    """Write a line; a reader that went away, such as `head`, ends the command quietly."""
    try:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        stop.set()
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
