"""Random histories on the core and on the reference beside it, as long as one likes.

`FUZZ_OPERATIONS=50000000 python -m pytest tests/native/test_long_histories.py` takes a quarter of an hour; each of the
five worlds gets a fifth of them. An operation is one block stored or removed. What fails tells its seed.
"""

import itertools
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgpack
import pytest

from kvrouter.index import RANKS_MAX
from kvrouter.index.native import PrefixIndex
from kvrouter.index.reference import PrefixIndex as ReferenceIndex
from kvrouter.ingest import IngestLimits
from tests.index.differential import TwinHistory
from tests.ingest.differential import Pair
from tests.ingest.random_wires import RandomEngine

OPERATIONS = int(os.environ.get("FUZZ_OPERATIONS", "200000")) // 5
_HISTORY_OPERATIONS, _LIFE_OPERATIONS, _STREAM_BATCHES = 500_000, 20_000, 40

pytestmark = pytest.mark.timeout(900 + OPERATIONS // 2000)


@pytest.mark.parametrize(
    ("keys", "run", "ranks"),
    [(64, 8, 4), (3000, 40, 70), (60_000, 300, 900), (20_000, 64, RANKS_MAX)],
    ids=["crowded", "usual", "long-prompts", "all-ranks"],
)
def test_an_index_is_what_the_reference_is(keys: int, run: int, ranks: int) -> None:
    """Holes, repetitions, clears, three tiers; each goes on from the other's snapshot now and then."""
    done = 0
    for seed in itertools.count(keys):
        history = TwinHistory(PrefixIndex(), ReferenceIndex(), seed=seed, keys=keys, run=run, ranks=ranks)
        with _named(seed):
            done += _live(history, min(_HISTORY_OPERATIONS, OPERATIONS - done))
        if done >= OPERATIONS:
            return


def test_a_ranks_table_is_what_the_reference_is() -> None:
    """Events in all their forms, sensible, odd and damaged; with tight bounds and wide ones."""
    done = 0
    for seed in itertools.count(10_000):
        choose = random.Random(seed)
        engine, pair = RandomEngine(choose), Pair(_any_limits(choose))
        with _named(seed):
            for _ in range(_STREAM_BATCHES):
                payload = engine.batch()
                done += _operations(payload)
                pair.send(engine.damaged(payload) if choose.random() < 0.2 else payload)
            pair.close()
        if done >= OPERATIONS:
            return


@contextmanager
def _named(seed: int) -> Iterator[None]:
    """Add the seed to what fails."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"seed {seed}")
        raise


def _live(history: TwinHistory, operations: int) -> int:
    done = 0
    while done < operations:
        restart = done + _LIFE_OPERATIONS
        while done < min(restart, operations):
            done += history.step()
        history.restart()
    history.compare_all()
    return done


def _any_limits(choose: random.Random) -> IngestLimits:
    return IngestLimits(
        idle_hashes_max=choose.choice([3, 10, 1000]),
        orphan_blocks_max=choose.choice([4, 100]),
        unresolved_hashes_max=choose.choice([3, 50]),
    )


def _operations(payload: bytes) -> int:
    """How many blocks the events of a batch name."""
    count = 0
    for event in msgpack.unpackb(payload, strict_map_key=False)[1]:
        fields: Any = event.values() if isinstance(event, dict) else event if isinstance(event, list) else ()
        count += next((len(field) for field in fields if isinstance(field, list)), 0)
    return count
