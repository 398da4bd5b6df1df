"""`kvrouter events relay`: publish an engine's events again, over another transport and with our guarantees."""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kvrouter.errors import SettingsError
from kvrouter.events import Event, Source
from kvrouter.events.endpoints import check_endpoint, rank_endpoint, transport_of

__all__ = ["add_parser", "run"]

_RANKS_MAX = 256
_INTERVAL_SECONDS_MAX = 60.0
_REPORT_SECONDS = 10.0


def add_parser(commands: Any) -> None:
    """Add `relay` to the commands of `events`."""
    relay = commands.add_parser(
        "relay",
        help="publish an engine's events again: over HTTP, NATS, Redis, or ZeroMQ with snapshots",
        description=(
            "Read the KV-cache events of one worker at SOURCE and publish them at DESTINATION, numbered without gaps, "
            "with the engine's life, digests and snapshots. SOURCE is where vLLM or SGLang publish, tcp://HOST:5557, "
            "or a TensorRT-LLM server, http://HOST:8000, whose JSON events are drained: nobody else may read them."
        ),
    )
    relay.add_argument("source", metavar="SOURCE", help="tcp://HOST:PORT, or with --trtllm http://HOST:PORT")
    relay.add_argument(
        "destination",
        metavar="DESTINATION",
        help="tcp://*:PORT, http://127.0.0.1:PORT, nats://HOST:4222/STREAM or redis://HOST:6379/0/STREAM",
    )
    relay.add_argument("--worker", required=True, metavar="ID", help="the worker's id, as the router knows it")
    relay.add_argument("--ranks", type=int, default=1, metavar="N", help="data-parallel ranks, ports counting up")
    relay.add_argument("--replay", metavar="ENDPOINT", help="where the engine replays, such as tcp://HOST:5657")
    relay.add_argument("--topic", default="", help="prefix of the engine's topics (default: all)")
    relay.add_argument("--trtllm", action="store_true", help="SOURCE is a TensorRT-LLM server")
    relay.add_argument(
        "--block-size", type=int, metavar="N", help="with --trtllm: tokens per block (default: learnt from the events)"
    )
    relay.add_argument(
        "--interval", type=float, default=0.05, metavar="S", help="with --trtllm: time between polls (default: 0.05)"
    )
    relay.add_argument(
        "--publish-replay",
        metavar="ENDPOINT",
        help="a tcp:// DESTINATION's replays and snapshots, such as tcp://*:5667",
    )
    relay.add_argument("--publish-topic", default="", metavar="TOPIC", help="topic at a tcp:// DESTINATION")
    relay.add_argument(
        "--api-key",
        default=os.environ.get("KVROUTER_EVENTS_KEY"),
        metavar="KEY",
        help="what clients of an http:// DESTINATION must send (default: KVROUTER_EVENTS_KEY)",
    )
    relay.add_argument(
        "--insecure", action="store_true", help="allow an http:// DESTINATION beyond this machine without a key"
    )
    relay.add_argument("--hash-only", action="store_true", help="leave tokens out: nobody can read prompts off events")
    relay.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Relay until SIGINT or SIGTERM, then send what waits.

    Raises:
        SettingsError: an address or option cannot be used.
    """
    if not 1 <= arguments.ranks <= _RANKS_MAX:
        raise SettingsError(f"--ranks {arguments.ranks} must be 1..{_RANKS_MAX}")
    if not arguments.trtllm:
        if transport_of(arguments.source) != "zmq":
            raise SettingsError(f"SOURCE {arguments.source!r} must be tcp://host:port, or a server with --trtllm")
        if arguments.block_size is not None:
            raise SettingsError("--block-size is of use with --trtllm only")
        for option, endpoint in (("SOURCE", arguments.source), ("--replay", arguments.replay)):
            if endpoint is not None:
                _check(option, endpoint)
    else:
        _check_trtllm(arguments)
    return asyncio.run(_relay(arguments))


def _check_trtllm(arguments: argparse.Namespace) -> None:
    if arguments.replay or arguments.topic:
        raise SettingsError("--replay and --topic are ZeroMQ's; a TensorRT-LLM server has neither")
    if arguments.block_size is not None and arguments.block_size < 1:
        raise SettingsError(f"--block-size {arguments.block_size} must be at least 1")
    if not 0 < arguments.interval <= _INTERVAL_SECONDS_MAX:
        raise SettingsError(f"--interval {arguments.interval:g} must be above 0 and at most {_INTERVAL_SECONDS_MAX:g}")


def _check(option: str, endpoint: str) -> None:
    try:
        check_endpoint(endpoint)
    except SettingsError as error:
        raise SettingsError(f"{option}: {error}") from None


async def _relay(arguments: argparse.Namespace) -> int:
    from kvrouter.relay import Destination  # noqa: PLC0415 - other commands need not load it

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    destination = Destination(
        arguments.destination,
        replay_endpoint=arguments.publish_replay,
        topic=arguments.publish_topic,
        api_key=arguments.api_key,
        insecure=arguments.insecure,
    )
    try:
        work = _relay_trtllm if arguments.trtllm else _relay_zmq
        await work(arguments, destination, stop)
    finally:
        destination.close()
    return 0


async def _relay_zmq(arguments: argparse.Namespace, destination: Any, stop: asyncio.Event) -> None:
    from kvrouter.relay import Relay  # noqa: PLC0415 - as above
    from kvrouter_subscribers import ZmqEventSubscriber  # noqa: PLC0415 - as above

    relay = Relay(destination.open, hash_only=arguments.hash_only)
    subscriber = ZmqEventSubscriber(relay)
    try:
        for rank in range(arguments.ranks):
            source = Source(arguments.worker, rank)
            relay.open(source)
            replay = None if arguments.replay is None else rank_endpoint(arguments.replay, rank)
            endpoint = rank_endpoint(arguments.source, rank)
            subscriber.add(source, endpoint, replay_endpoint=replay, topic=arguments.topic)
        async with subscriber:
            await _until(stop, arguments, relay.statistics)
    finally:
        relay.close()


async def _relay_trtllm(arguments: argparse.Namespace, destination: Any, stop: asyncio.Event) -> None:
    from kvrouter.events.trtllm import TrtllmEvents  # noqa: PLC0415 - as above
    from kvrouter.relay import RelayedSource, TrtllmPoller  # noqa: PLC0415 - as above

    ranks: dict[int, RelayedSource] = {}
    for rank in range(arguments.ranks):
        ranks[rank] = RelayedSource(Source(arguments.worker, rank), destination.open, hash_only=arguments.hash_only)
        ranks[rank].begin()

    def deliver(rank: int, events: Sequence[Event]) -> None:
        if rank in ranks:
            ranks[rank].publish(events)
        else:
            unknown[rank] = unknown.get(rank, 0) + len(events)

    unknown: dict[int, int] = {}
    poller = TrtllmPoller(
        arguments.source,
        deliver=deliver,
        events=TrtllmEvents(block_size=arguments.block_size),
        interval_seconds=arguments.interval,
    )

    def statistics() -> dict[Source, dict[str, int]]:
        counts = {"answers": poller.answers, "failures": poller.failures, "refused": poller.refused}
        counts["events_of_unknown_ranks"] = sum(unknown.values())
        return {relayed.source: {**counts, **relayed.statistics()} for relayed in ranks.values()}

    try:
        async with asyncio.TaskGroup() as tasks:  # A poller that died must end the relay: nobody would notice else.
            polling = tasks.create_task(poller.run())
            await _until(stop, arguments, statistics)
            polling.cancel()
    finally:
        for relayed in ranks.values():
            relayed.close()


async def _until(
    stop: asyncio.Event, arguments: argparse.Namespace, statistics: Callable[[], Mapping[Source, Mapping[str, int]]]
) -> None:
    """Say that it works, and every now and then what was done."""
    _say({"event": "relaying", "worker": arguments.worker, "ranks": arguments.ranks})
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REPORT_SECONDS):
                await stop.wait()
        for source, counts in statistics().items():
            _say({"event": "relayed", "worker": source.worker_id, "rank": source.rank, **counts})


def _say(record: Mapping[str, object]) -> None:
    """Write a line; a reader that went away costs the reports, and not the events."""
    try:
        sys.stdout.write(json.dumps({"time": round(time.time(), 3), **record}) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
