"""A whole engine, its events over real sockets, the real subscriber and ingest: the index ends up as the cache."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from kvrouter.events import Source
from kvrouter.index import PrefixIndex
from kvrouter.ingest import Ingest
from kvrouter.replay.engine.simulated import SimulatedEngine
from kvrouter_subscribers import ZmqEventSubscriber
from tests.replay.serving import engine, eventually, run

BLOCKS = 64
ARGUMENTS = ("--blocks", str(BLOCKS), "--block-size", "4", "--ranks", "2")


@asynccontextmanager
async def listening(simulated: SimulatedEngine) -> AsyncIterator[PrefixIndex]:
    """Listen to every rank of an engine."""
    index = PrefixIndex()
    ingest = Ingest(index)
    async with ZmqEventSubscriber(ingest) as subscriber:
        for rank, publisher in enumerate(simulated.publishers.publishers):
            source = Source("engine", rank)
            ingest.open(source, rank, block_size=4, now=0.0)
            subscriber.add(source, publisher.endpoint, replay_endpoint=publisher.replay_endpoint)
        yield index


async def converse(client: httpx.AsyncClient, rng: random.Random, requests: int) -> None:
    """Send prompts that share prefixes, more of them than the cache can hold."""
    prompts = [[7] * 8]
    for _ in range(requests):
        prompt = rng.choice(prompts)[: rng.randint(0, 60)] + [rng.randint(0, 9) for _ in range(rng.randint(1, 30))]
        prompts.append(prompt)
        body = {"prompt": prompt, "max_tokens": rng.randint(1, 9)}
        headers = {"x-data-parallel-rank": str(rng.randint(0, 1))}
        (await client.post("/v1/completions", json=body, headers=headers)).raise_for_status()


def agree(index: PrefixIndex, simulated: SimulatedEngine) -> bool:
    """Whether every rank of the index holds as many blocks as the rank's cache."""
    contents = [rank.scheduler.cache.pool.contents() for rank in simulated.ranks]
    return [index.blocks(rank) for rank in range(len(contents))] == [len(each) for each in contents]


def test_the_index_ends_up_as_the_cache() -> None:
    """After evictions on two ranks."""

    async def work() -> None:
        async with engine(*ARGUMENTS) as (client, simulated), listening(simulated) as index:
            await converse(client, random.Random(1), 60)

            await eventually(lambda: agree(index, simulated))
            assert min(index.blocks(0), index.blocks(1)) > BLOCKS // 2

    run(work)


def test_lost_batches_are_made_good() -> None:
    """A gap is seen with the next batch, and filled from the replay endpoint."""

    async def work() -> None:
        async with engine(*ARGUMENTS) as (client, simulated), listening(simulated) as index:
            await converse(client, random.Random(2), 20)
            await eventually(lambda: agree(index, simulated))
            await client.post("/fault", json={"kind": "lose_events", "batches": 5})

            await converse(client, random.Random(3), 40)

            await eventually(lambda: agree(index, simulated))

    run(work)


def test_a_restart_in_place_leaves_nothing_of_the_old_life() -> None:
    """New hashes, new sequence numbers, the same ports."""

    async def work() -> None:
        async with engine(*ARGUMENTS) as (client, simulated), listening(simulated) as index:
            await converse(client, random.Random(4), 40)
            await eventually(lambda: agree(index, simulated))

            await client.post("/fault", json={"kind": "restart_cache"})
            await converse(client, random.Random(5), 6)

            await eventually(lambda: agree(index, simulated))

    run(work)
