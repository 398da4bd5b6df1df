"""How the sources of a schedule are heard: real publishers, a real broker where the transport has one, bad networks.

A line is one source with all its lives. A party is all lines of one transport, which share the broker.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

from kvrouter.events import Source
from tests.faults.chaos_network import BadNetwork, bad_network
from tests.faults.real_publishers import Journal, PublisherProcess
from tests.servers import NatsServer, RedisServer, Server, free_port

__all__ = ["BROKERS", "TRANSPORTS", "Line", "Party", "party"]

TRANSPORTS: Final = ("zmq", "http", "nats", "redis", "vllm", "vllm-live")
"""`zmq` is the native wire; `vllm` the engines' own with replays, `vllm-live` without."""
BROKERS: Final = ("nats", "redis")
STREAM: Final = "kv-events"
_PUBLISHERS: Final = {
    "zmq": "ZmqEventPublisher",
    "vllm": "ZmqEventPublisher",
    "vllm-live": "ZmqEventPublisher",
    "http": "HttpEventPublisher",
    "nats": "JetStreamEventPublisher",
    "redis": "RedisEventPublisher",
}


class Line:
    """One source: where it is heard, its lives, and the one that is there now, if any."""

    def __init__(self, party: "Party", source: Source, options: dict[str, Any]) -> None:
        self.source, self.options = source, options
        self.endpoint, self.replay_endpoint = "", None
        self.networks: list[BadNetwork] = []
        self.lives: list[Journal] = []
        self.publisher: PublisherProcess | None = None
        self.paused = False
        self._party = party

    replay_endpoint: str | None

    def begin(self) -> PublisherProcess:
        """Start a new life."""
        assert self.publisher is None, "there is one already"
        life = len(self.lives) + 100 * self._party.lines.index(self)
        journal = Journal(self._party.folder / f"journal-{life}", life)
        self.lives.append(journal)
        name = _PUBLISHERS[self._party.transport]
        seed = self._party.chance.getrandbits(32)
        self.publisher = PublisherProcess(name, self.options, journal=journal, seed=seed)
        return self.publisher

    def kill(self) -> None:
        """End the life with SIGKILL, if there is one."""
        if self.publisher is not None:
            self.publisher.kill()
        self.publisher, self.paused = None, False

    async def close(self) -> None:
        """End the life in good order, if there is one that can do anything."""
        if self.publisher is not None and not self.paused:
            await self.publisher.close()
            self.publisher = None

    async def work(self, steps: int) -> None:
        """Let the engine do so many steps, if there is one."""
        if self.publisher is not None:
            await self.publisher.steps(steps)


class Party:
    """The lines of one transport, with what is between them and the router."""

    def __init__(self, transport: str, folder: Path, chance: random.Random) -> None:
        self.transport, self.folder, self.chance = transport, folder, chance
        self.network_chance = random.Random(chance.getrandbits(32))  # Drawn from as often as the traffic wants.
        self.lines: list[Line] = []
        self.networks: list[BadNetwork] = []
        self.broker: Server | None = None
        self.named = not transport.startswith("vllm")
        self.ring = chance.choice((3, 20, 10_000))
        self.queue = chance.choice((2, 50, 100_000))
        self.digests = chance.choice((None, 0.2, 1.0)) if self.named else None

    def describe(self) -> str:
        """What was drawn for the publishers."""
        return f"{len(self.lines)} x {self.transport}, ring {self.ring}, queue {self.queue}, digests {self.digests}"

    async def heal(self) -> None:
        """Let everything be there, and every way be open."""
        for network in self.networks:
            network.heal()
        if self.broker is not None:
            if self.broker.running:
                self.broker.resume()
            else:
                await self.start_broker()
        for line in self.lines:
            if line.publisher is None:
                line.begin()
            elif line.paused:
                line.publisher.resume()
                line.paused = False

    async def start_broker(self) -> None:
        """Start it with the data that it has. A killed nats-server may be unable to read its own: then without."""
        broker = self.broker
        assert broker is not None
        try:
            await asyncio.to_thread(broker.start)
        except AssertionError:
            assert isinstance(broker, NatsServer)
            assert "could not be recovered" in broker.log.read_text()
            broker.lose_data()
            await asyncio.to_thread(broker.start)

    def common_options(self) -> dict[str, Any]:
        """What every publisher is built with."""
        return {
            "buffer_steps": self.ring,
            "max_queue_size": self.queue,
            "digest_seconds": self.digests,
        }


@asynccontextmanager
async def party(transport: str, folder: Path, chance: random.Random) -> AsyncIterator[Party]:
    """A party with everything up, and nothing left behind."""
    async with AsyncExitStack() as stack:
        made = Party(transport, folder, chance)
        if transport in BROKERS:
            await _with_broker(made, stack)
        else:
            await _without_broker(made, stack)
        made.networks = list(dict.fromkeys(network for line in made.lines for network in line.networks))
        try:
            yield made
        finally:
            for line in made.lines:
                line.kill()


async def _with_broker(made: Party, stack: AsyncExitStack) -> None:
    broker = made.broker = _broker(made)
    stack.callback(broker.kill)
    await asyncio.to_thread(broker.start)
    inward = await stack.enter_async_context(bad_network(broker.port, made.network_chance))
    outward = await stack.enter_async_context(bad_network(broker.port, made.network_chance))
    scheme, path = ("nats", STREAM) if made.transport == "nats" else ("redis", f"0/{STREAM}")
    for source in _sources(made):
        options = {
            **made.common_options(),
            "endpoint": f"{scheme}://127.0.0.1:{inward.port}/{path}",
            "worker_id": source.worker_id,
            "request_seconds": 1.1,
        }
        line = Line(made, source, options)
        line.endpoint = f"{scheme}://127.0.0.1:{outward.port}/{path}"
        line.networks = [inward, outward]
        made.lines.append(line)


async def _without_broker(made: Party, stack: AsyncExitStack) -> None:
    zmq = made.transport != "http"
    for source in _sources(made):
        port, replay_port = free_port(), free_port()
        live = await stack.enter_async_context(bad_network(port, made.network_chance, messages=zmq))
        options = {**made.common_options(), "worker_id": source.worker_id}
        line = Line(made, source, options)
        line.networks = [live]
        if zmq:
            options.update(endpoint=f"tcp://127.0.0.1:{port}", bind=True, wire="native" if made.named else "vllm")
            line.endpoint = f"tcp://127.0.0.1:{live.port}"
        else:
            options["endpoint"] = f"127.0.0.1:{port}"
            line.endpoint = f"http://127.0.0.1:{live.port}"
        if made.transport in ("zmq", "vllm"):
            replays = await stack.enter_async_context(bad_network(replay_port, made.network_chance, messages=True))
            options["replay_endpoint"] = f"tcp://127.0.0.1:{replay_port}"
            line.replay_endpoint = f"tcp://127.0.0.1:{replays.port}"
            line.networks.append(replays)
        made.lines.append(line)


def _broker(made: Party) -> Server:
    if made.transport == "nats":
        return NatsServer(made.folder)
    return RedisServer(made.folder)


def _sources(made: Party) -> Iterator[Source]:
    for number in range(made.chance.choice((1, 2))):
        yield Source(f"worker-{number}", 0)
