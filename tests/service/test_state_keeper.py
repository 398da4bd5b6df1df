"""What a router does with states that it cannot use: the ones before are tried, and nothing is lost by looking."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kvrouter.events import BlockStored, EventBatch, Source, encode_batch
from kvrouter.index import PrefixIndex
from kvrouter.ingest import Ingest
from kvrouter.ingest.saved import pack_start
from kvrouter.service.state_keeper import StateKeeper
from kvrouter.service.state_snapshots import KEPT, Positions, StateSnapshots
from kvrouter.store import open_key_value_store, open_object_store

SOURCE = Source("worker", 0)
BUCKET = "fleet"


def knowing() -> Ingest:
    """An ingest that follows one source, which holds one block."""
    ingest = Ingest(PrefixIndex())
    ingest.open(SOURCE, 0, now=0.0)
    ingest.connected(SOURCE, now=0.0)
    ingest.replay_finished(SOURCE, now=0.0, complete=True)
    stored = BlockStored(block_hashes=(7,), token_ids=tuple(range(16)), block_size=16, medium="GPU")
    ingest.receive(SOURCE, 0, encode_batch(EventBatch(timestamp=1.0, events=(stored,), data_parallel_rank=0)), now=0.0)
    return ingest


def of_a_later_version(state: bytes) -> bytes:
    """The same state, as a program of next year would begin it."""
    start = bytearray(pack_start())
    start[-1] ^= 0x40
    return bytes(start) + state[len(start) :]


async def nothing_to_purge(_: Positions) -> None:
    """No broker is there."""


@asynccontextmanager
async def keeper(folder: Path, ingest: Ingest) -> AsyncIterator[tuple[StateKeeper, StateSnapshots]]:
    """A router's keeper, and its access to the store."""
    url = f"file://{folder}"
    snapshots = StateSnapshots(open_object_store(url), open_key_value_store(url), bucket=BUCKET, router_id="r1")
    made = StateKeeper(
        snapshots,
        ingest,
        positions=dict,
        saved=nothing_to_purge,
        interval_seconds=60.0,
        clock=lambda: 0.0,
        wall_clock=lambda: 100.0,
    )
    try:
        yield made, snapshots
    finally:
        await made.close()


@pytest.mark.parametrize("refused", ["later", "damaged"])
def test_a_state_that_cannot_be_used_is_passed_over_for_the_one_before(tmp_path: Path, refused: str) -> None:
    """As after a rollback; the older positions go with the older state."""

    async def scenario() -> None:
        async with keeper(tmp_path, knowing()) as (first, snapshots):
            await first.save()
            known = await snapshots.load()
            assert known is not None
            wrong = of_a_later_version(known.state) if refused == "later" else known.state[:-3]
            await snapshots.save(wrong, {"jetstream": {"nats://h/s": 9}}, now=2.0)
        ingest = Ingest(PrefixIndex())
        ingest.open(SOURCE, 0, now=0.0)
        async with keeper(tmp_path, ingest) as (second, _):
            await second.load()
            second.restore(SOURCE)

            assert second.statistics.restored_blocks == 1
            assert second.statistics.load_failed == 1
            assert second.positions == {}

    asyncio.run(scenario())


def test_a_state_of_a_later_program_is_kept_as_long_as_any_other(tmp_path: Path) -> None:
    """Looking deletes nothing; it goes when so many newer ones are there that it would have gone anyway."""

    async def scenario() -> list[bool]:
        there = []
        async with keeper(tmp_path, knowing()) as (router, snapshots):
            await snapshots.save(b"of a later program", {}, now=1.0)
            await router.load()
            for _ in range(KEPT + 2):
                there.append(any([each.state == b"of a later program" async for each in snapshots.states()]))
                await router.save()
        return there

    assert asyncio.run(scenario()) == [True] * (KEPT + 1) + [False]
