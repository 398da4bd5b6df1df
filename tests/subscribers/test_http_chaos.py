"""A network that cuts, delays and stalls, and publishers that restart: what is believed ends as the truth."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from kvrouter.events import BlockRemoved
from kvrouter_publishers import HttpEventPublisher
from tests.servers import free_port
from tests.subscribers.http_scene import HASTY, HttpScene, http_scene
from tests.subscribers.scene import run, stored, until

STEPS = 150
BLOCKS = 60


class BadNetwork:
    """A TCP proxy on loopback that treats what passes as its chance says, until it is healed."""

    def __init__(self, port: int, chance: random.Random) -> None:
        self.target, self.chance, self.healed = port, chance, False
        self.cuts = 0
        self._pairs: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection."""
        task = asyncio.current_task()
        assert task is not None
        self._pairs.add(task)
        other: asyncio.StreamWriter | None = None
        try:
            far, other = await asyncio.open_connection("127.0.0.1", self.target)
            both = [asyncio.ensure_future(self._carry(reader, other)), asyncio.ensure_future(self._carry(far, writer))]
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            for each in both:
                each.cancel()
            await asyncio.gather(*both, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._pairs.discard(task)
            for end in (writer, other):
                if end is not None:
                    end.transport.abort()
                    with suppress(OSError):
                        await end.wait_closed()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1000):
            if not self.healed:
                await asyncio.sleep(self.chance.choice((0, 0, 0, 0.005, 0.02)))
                fate = self.chance.random()
                if fate < 0.02:
                    await asyncio.sleep(2 * (HASTY.grace_seconds + HASTY.poll_seconds))  # Half open, as it seems.
                if fate < 0.06:
                    self.cuts += 1
                    writer.write(data[: self.chance.randrange(len(data))])
                    return
            writer.write(data)
            await writer.drain()

    async def close(self) -> None:
        """Cut what is left."""
        for task in list(self._pairs):
            task.cancel()
        await asyncio.gather(*self._pairs, return_exceptions=True)


@asynccontextmanager
async def bad_network(port: int, chance: random.Random) -> AsyncIterator[tuple[str, BadNetwork]]:
    """A bad network in front of a port, and the endpoint behind it."""
    network = BadNetwork(port, chance)
    server = await asyncio.start_server(network.serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", network
    finally:
        server.close()
        await network.close()


class Engine:
    """A cache of at most `BLOCKS` blocks that says what happens to it, and sometimes dies."""

    def __init__(self, chance: random.Random) -> None:
        self.chance, self.where = chance, f"127.0.0.1:{free_port()}"
        self.held: set[int] = set()
        self.seen: set[int] = set()
        self.lives = 0
        self.publisher = self._start()

    def _start(self) -> HttpEventPublisher:
        publisher = HttpEventPublisher(
            self.where, worker_id="worker", buffer_steps=self.chance.choice((5, 30, 1000)), digest_seconds=0.2
        )
        self.where = str(publisher.endpoint).removeprefix("http://")
        return publisher

    async def restart(self) -> None:
        """Die with the cache, and come back."""
        await asyncio.to_thread(self.publisher.close)
        self.held.clear()
        self.lives += 1
        self.publisher = self._start()

    def step(self) -> None:
        """Store or evict some blocks, at random."""
        number = self.chance.randrange(500)
        if self.held and (number in self.held or len(self.held) >= BLOCKS):
            number = self.chance.choice(sorted(self.held))
            self.held.discard(number)
            self.publisher.publish([BlockRemoved(block_hashes=(number + 1,), medium="GPU")])
        else:
            self.held.add(number)
            self.seen.add(number)
            self.publisher.publish([stored(number)])


def believes_the_truth(stage: HttpScene, engine: Engine) -> bool:
    """Whether the index holds what the engine holds, and nothing else that it ever held."""
    return stage.sink.state() == "live" and all(
        stage.sink.holds(number) is (number in engine.held) for number in engine.seen
    )


@pytest.mark.parametrize("seed", range(8))
def test_after_a_bad_network_has_healed_the_index_is_the_truth(seed: int) -> None:
    """Whatever was cut, late or lost, and however often the engine died."""
    chance = random.Random(seed)

    async def scenario() -> None:
        engine = Engine(chance)
        async with (
            bad_network(int(engine.where.rpartition(":")[2]), chance) as (endpoint, network),
            http_scene(HASTY) as stage,
        ):
            stage.listen(endpoint)
            for _ in range(STEPS):
                engine.step()
                await asyncio.sleep(chance.choice((0, 0, 0.001, 0.01)))
                if chance.random() < 0.02:
                    await engine.restart()
            network.healed = True
            await until(lambda: believes_the_truth(stage, engine))

            engine.step()
            await until(lambda: believes_the_truth(stage, engine))
            assert stage.status().sink_errors == 0
        await asyncio.to_thread(engine.publisher.close)

    run(scenario())
