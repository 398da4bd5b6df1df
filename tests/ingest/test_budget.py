"""A bound on memory: the doubted make room, what does not fit is not noted, and all comes back when there is room.

What fills a bound here is a charge of the test's own, so that small histories meet it.
"""

import random
from itertools import pairwise
from typing import Any

import pytest

from kvrouter.events import Source
from kvrouter.index import PrefixIndex
from kvrouter.index.reference import PrefixIndex as ReferenceIndex
from kvrouter.ingest import Ingest, Receipt
from tests.ingest.differential import Pair
from tests.ingest.engines import RANK, SOURCE, Rank, payload, removed, stored, tokens
from tests.ingest.random_wires import RandomEngine

BYTES_MAX = 16 << 20
LIFE = 5
LATER = 4000.0


def fill(index: Any, share: float) -> None:
    """Charge so much that this share of the bound is taken."""
    index.charge(int(share * BYTES_MAX) - index.nbytes() - index.nbytes_beside())


def store_of(number: int) -> Any:
    """A prompt's first block, another one for each number."""
    return stored([number + 1], tokens(1, start=number))


@pytest.fixture(params=[PrefixIndex, ReferenceIndex], ids=["fastest", "reference"])
def rank(request: pytest.FixtureRequest) -> Rank:
    """Blocks of four tokens, on a bounded index."""
    return Rank(index=request.param(bytes_max=BYTES_MAX))


def held(rank: Rank, blocks: int) -> list[int]:
    """The numbers of the blocks that are claimed."""
    return [number for number in range(blocks) if rank.usable(tokens(1, start=number)) == 4]


def arrive(rank: Rank, sequence: int, *events: Any, now: float = 0.0) -> Receipt:
    """A batch of a publisher that names its lives."""
    return rank.ingest.receive(SOURCE, sequence, payload(*events), now=now, incarnation=LIFE)


def test_what_does_not_fit_is_not_noted_and_removals_are(rank: Rank) -> None:
    """The source goes on, says that it is starved, and claims only what it holds."""
    rank.send(store_of(0), store_of(1))
    fill(rank.index, 1)

    rank.send(store_of(2), removed(2))
    rank.send(removed(3))

    assert held(rank, 4) == [0]
    assert (rank.status.state, rank.status.starved, rank.status.incomplete) == ("live", True, True)
    assert rank.index.dropped() == {"unconfirmed": 0, "refused": 1}


def test_a_source_in_doubt_makes_room_for_others(rank: Rank) -> None:
    """It is forgotten as a whole, the maps beside the index too, and goes on from there."""
    doubted, other = Source("doubted", 0), Source("other", 0)
    for dense, source in enumerate((doubted, other)):
        rank.ingest.open(source, dense, block_size=4, now=0.0)
        rank.ingest.receive(source, 0, payload(*map(store_of, range(50))), now=0.0)
    rank.ingest.disconnected(doubted, now=0.0)
    before = rank.index.nbytes_beside()
    ballast = int(0.95 * BYTES_MAX) - rank.index.nbytes() - before
    rank.index.charge(ballast)

    rank.ingest.receive(other, 1, payload(store_of(50)), now=0.0)
    rank.ingest.receive(other, 2, payload(store_of(51)), now=0.0)
    rank.ingest.receive(doubted, 1, payload(removed(1), store_of(60)), now=0.0)

    assert (rank.index.blocks(0), rank.index.blocks(1)) == (1, 52)
    assert rank.index.dropped() == {"unconfirmed": 50, "refused": 0}
    assert rank.index.nbytes_beside() - ballast < 1.5 * before
    assert rank.ingest.copies(doubted) == {("gpu", 0): {61: 1}}
    assert [status.starved for status in rank.ingest.status(now=0.0)] == [False, True, False]


def test_a_starved_source_is_asked_for_a_snapshot_once_there_is_room(rank: Rank) -> None:
    """Not before, and not at once: the bound may be met again."""
    arrive(rank, 0, store_of(0))
    fill(rank.index, 1)
    arrive(rank, 1, store_of(1))
    full = arrive(rank, 2, removed(7), now=LATER)
    fill(rank.index, 0.5)
    early = arrive(rank, 3, removed(7), now=LATER + 1)
    due = arrive(rank, 4, removed(7), now=LATER + 100)
    again = arrive(rank, 5, removed(7), now=LATER + 101)

    receipt = rank.ingest.snapshot(
        SOURCE, [payload(store_of(0), store_of(1))], sequence=5, incarnation=LIFE, now=LATER + 102
    )

    assert [each.snapshot_wanted for each in (full, early, due, again)] == [False, False, True, False]
    assert receipt.outcome == "applied"
    assert (held(rank, 2), rank.status.starved, rank.status.incomplete) == ([0, 1], False, False)


def test_an_engine_is_asked_for_all_its_batches_instead(rank: Rank) -> None:
    """Its own wire has no snapshots; it repeats what it still has."""
    rank.send(store_of(0))
    fill(rank.index, 1)
    rank.send(store_of(1))
    fill(rank.index, 0.5)

    asked = rank.ingest.receive(SOURCE, 2, payload(store_of(2)), now=LATER)
    for sequence in range(3):
        rank.receive(sequence, store_of(sequence), replayed=True)
    rank.ingest.replay_finished(SOURCE, now=LATER, complete=True)

    assert asked == Receipt("applied", replay_from=0)
    assert (held(rank, 3), rank.status.starved, rank.status.incomplete) == ([0, 1, 2], False, False)


def test_what_never_fits_is_asked_for_ever_more_rarely(rank: Rank) -> None:
    """Each time that it was in vain, the next one is twice as far away; up to an hour."""
    arrive(rank, 0, store_of(0))
    fill(rank.index, 1)
    arrive(rank, 1, store_of(1))
    asked: list[float] = []
    now, sequence = 0.0, 2
    while len(asked) < 10:
        now += 10.0
        fill(rank.index, 0.5)
        wanted = arrive(rank, sequence, removed(7), now=now).snapshot_wanted
        fill(rank.index, 1)
        if wanted:
            asked.append(now)
            rank.ingest.snapshot(SOURCE, [payload(store_of(0))], sequence=sequence, incarnation=LIFE, now=now)
        sequence += 1

    pauses = [late - early for early, late in pairwise(asked)]
    assert pauses == sorted(pauses)
    assert pauses[0] < 250
    assert 3600 <= pauses[-1] <= 3620


def test_what_waits_for_its_parents_counts_too(rank: Rank) -> None:
    """Orphans are under the bound, and what they took is free once they are gone."""
    before = rank.index.nbytes_beside()

    rank.send(
        *(stored([hash_, hash_ + 1], tokens(2, start=hash_), parent=hash_ + 500) for hash_ in range(1000, 1400, 2))
    )
    waiting = rank.index.nbytes_beside()
    rank.ingest.reset(SOURCE, now=0.0, reason="a test")

    assert waiting - before > 400 * 4 * 36
    assert rank.index.nbytes_beside() <= before + (16 << 10)


def test_closing_a_source_leaves_nothing_beside(rank: Rank) -> None:
    """Whatever it had."""
    rank.send(*map(store_of, range(2000)))
    rank.send(stored([9000], tokens(1, start=9000), parent=9001))
    taken = rank.index.nbytes_beside()

    rank.ingest.close(SOURCE)

    assert taken > 30_000
    assert rank.index.nbytes_beside() < 1024


@pytest.mark.parametrize("seed", range(20))
def test_both_implementations_make_the_same_of_a_bound(seed: int) -> None:
    """Random events, while room comes and goes."""
    choose = random.Random(seed)
    pair, engine = Pair(bytes_max=BYTES_MAX), RandomEngine(choose)

    for _ in range(25):
        if choose.random() < 0.4:
            share = choose.choice([0.2, 1.1])
            for side in (pair.native, pair.reference):
                fill(side.index, share)
        pair.send(engine.batch())

    pair.close()


@pytest.mark.parametrize(("kind", "bytes_max"), [(PrefixIndex, 3 << 19), (ReferenceIndex, 2 << 20)])
def test_real_histories_stay_within_the_bound(kind: Any, bytes_max: int) -> None:
    """Far more is announced than fits: bytes stay below it after every batch, and every claim is true."""
    index = kind(bytes_max=bytes_max)
    ingest, choose = Ingest(index), random.Random(1)
    sources = [Source(f"worker-{number}", 0) for number in range(8)]
    held: list[set[int]] = [set() for _ in sources]
    for number, source in enumerate(sources):
        ingest.open(source, number, block_size=4, now=0.0)
    for sequence in range(60):
        for number, source in enumerate(sources):
            first = 200 * sequence
            gone = choose.sample(sorted(held[number]), min(len(held[number]), 90))
            events = [stored([first + at + 1], tokens(1, start=first + at)) for at in range(200)]
            ingest.receive(source, sequence, payload(removed(*gone), *events), now=float(sequence))
            held[number] -= set(gone)
            held[number] |= set(range(first + 1, first + 201))
            assert index.nbytes() + index.nbytes_beside() <= bytes_max
        if sequence in {5, 25}:
            ingest.disconnected(choose.choice(sources), now=float(sequence))

    assert index.dropped()["unconfirmed"] > 0
    assert index.dropped()["refused"] > 0
    for number, source in enumerate(sources):
        claimed = ingest.copies(source).get(("gpu", 0), {})
        assert claimed.keys() <= held[number]
        assert index.blocks(number) <= len(held[number])


def test_a_rank_number_is_used_again_without_old_doubts() -> None:
    """What closed in doubt does not make its successor the first to go."""
    rank = Rank(index=PrefixIndex(bytes_max=BYTES_MAX))
    rank.send(store_of(0))
    rank.ingest.disconnected(SOURCE, now=0.0)
    rank.ingest.close(SOURCE)
    rank.ingest.open(SOURCE, RANK, block_size=4, now=0.0)
    rank.sequence = 0
    rank.send(store_of(0))
    fill(rank.index, 0.95)

    rank.ingest.receive(SOURCE, 1, payload(store_of(1)), now=0.0)

    assert held(rank, 2) == [0, 1]
