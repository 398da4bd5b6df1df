"""The native index passes the contract, agrees with the reference at any size, and survives what only C must."""

import array
import random
import sys
from typing import Any

import numpy as np
import pytest

from kvrouter.errors import SnapshotError
from kvrouter.index.native import PrefixIndex
from kvrouter.index.reference import PrefixIndex as Reference
from tests.index.contract import PrefixIndexContract
from tests.index.differential import TwinHistory
from tests.index.snapshot_contract import sealed


class TestNative(PrefixIndexContract):
    """The same suite that holds the reference."""

    @pytest.fixture
    def index(self) -> PrefixIndex:
        return PrefixIndex()


@pytest.fixture
def index() -> PrefixIndex:
    """An empty one."""
    return PrefixIndex()


@pytest.mark.parametrize(
    ("keys", "run", "ranks", "steps"), [(64, 8, 4, 3000), (3000, 40, 70, 1500), (60_000, 300, 900, 700)]
)
def test_random_histories_agree_with_the_reference(keys: int, run: int, ranks: int, steps: int) -> None:
    """Few blocks, many blocks, thousands of ranks; snapshots go from one implementation to the other."""
    history = TwinHistory(PrefixIndex(), Reference(), seed=keys, keys=keys, run=run, ranks=ranks)

    for step in range(1, steps + 1):
        history.step()
        if step % (steps // 3) == 0:
            history.restart()

    history.compare_all()


@pytest.mark.parametrize(
    "hashes",
    [
        np.arange(1, 200, dtype=np.uint64)[::2],
        np.arange(1, 200, dtype=np.uint64)[::-2],
        np.frombuffer(b"x" + np.arange(100, dtype=np.uint64).tobytes(), np.uint8)[1:].view(np.uint64),
        np.arange(100, dtype=np.uint32),
        np.arange(100, dtype=np.int64),
        array.array("Q", range(100)),
        memoryview(array.array("Q", range(100)))[::3],
        tuple(range(100)),
        range(100),
        [np.uint64(2**64 - 1), True, 7],
        list(np.arange(100, dtype=np.uint64)),
        {1: 2, 3: 4},
        b"\x01\x02\x03",
    ],
    ids=lambda hashes: type(hashes).__name__,
)
def test_any_form_of_hashes_means_what_it_means_to_the_reference(index: PrefixIndex, hashes: Any) -> None:
    """Arrays of any layout, buffers, and sequences of anything that is an integer."""
    plain = [int(each) for each in hashes]
    index.store(3, hashes)
    index.store(5, plain[:2])

    assert index.match_depths(hashes) == {3: len(plain), 5: 2}
    assert index.match(hashes, exact=False).depths() == {3: len(plain), 5: 2}
    assert index.holds(3, hashes).all()
    index.remove(3, hashes)
    assert index.match_depths(plain) == {5: 2}


@pytest.mark.parametrize("bad", [["a"], [1, None], [-1], [2**64], 5, np.array([1.5]), [1.0], None])
def test_what_is_no_row_of_hashes_is_refused(index: PrefixIndex, bad: Any) -> None:
    """And nothing of it is stored."""
    for call in (lambda: index.store(0, bad), lambda: index.match(bad), lambda: index.holds(0, bad)):
        with pytest.raises((TypeError, OverflowError)):
            call()
    assert len(index) == 0
    assert index.match_depths([1]) == {}


def test_wrong_arguments_are_refused(index: PrefixIndex) -> None:
    """With the errors that Python itself would raise."""
    wrong: list[Any] = [
        lambda: index.store(0),  # type: ignore[call-arg]
        lambda: index.store(0, [1], "gpu", 3),  # type: ignore[call-arg]
        lambda: index.store(0, [1], rank=0),  # type: ignore[misc]
        lambda: index.store(0, [1], level="gpu"),  # type: ignore[call-arg]
        lambda: index.store("0", [1]),  # type: ignore[arg-type]
        lambda: index.store(0, [1], tier=3),  # type: ignore[arg-type]
        lambda: index.match([1], tiers=[3]),  # type: ignore[list-item]
        lambda: index.clear(0, 3),  # type: ignore[arg-type]
        lambda: index.blocks("0"),  # type: ignore[arg-type]
    ]

    for call in wrong:
        with pytest.raises(TypeError):
            call()
    assert index.tiers() == ()


def test_hashes_whose_conversion_changes_the_index_do_no_harm(index: PrefixIndex) -> None:
    """An integer-like object may run any code while it is read."""

    class Meddler:
        def __index__(self) -> int:
            index.clear(0)
            index.store(1, list(range(5000)))
            hashes.clear()
            return 1

    hashes: list[Any] = [1, Meddler(), 2]
    index.store(0, [1])

    with pytest.raises(IndexError):
        index.match(hashes)
    assert index.match_depths([1]) == {1: 1}


def test_memory_comes_back_when_blocks_go(index: PrefixIndex) -> None:
    """However they go: one by one, or with their rank."""
    blocks = np.random.default_rng(1).integers(0, 2**63, size=(4, 50_000), dtype=np.uint64)
    empty = index.nbytes()
    for rank in range(4):
        index.store(rank, blocks[rank])
    full = index.nbytes()

    index.remove(0, blocks[0])
    index.remove(1, blocks[1])
    assert index.nbytes() < full * 0.7
    index.clear(2)
    index.clear(3)
    for _ in range(200):
        index.remove(0, [0])  # Any change sweeps on.

    assert len(index) == 0
    assert empty <= index.nbytes() < empty + 30_000


def test_a_cleared_rank_costs_no_look_at_its_blocks(index: PrefixIndex) -> None:
    """What is swept later is right at once, also where sets become equal, and when it is stored again meanwhile."""
    blocks = np.random.default_rng(2).integers(0, 2**63, size=120_000, dtype=np.uint64)
    index.store(1, blocks)
    index.store(2, blocks[::2])
    index.store(3, blocks[::3])

    index.clear(1)
    index.clear(2)
    assert (len(index), index.blocks(1), index.blocks(2)) == (40_000, 0, 0)
    index.store(2, blocks[:1000])
    index.clear(3)
    index.store(1, blocks[:10])

    assert index.match_depths(blocks) == {1: 10, 2: 1000}
    assert len(index) == 1000
    assert len(PrefixIndex.restore(index.snapshot())) == 1000


def test_keys_that_crowd_are_stored_all_the_same(index: PrefixIndex) -> None:
    """Evenly spread hashes make the index fast; nothing else depends on them."""
    crowds = [[base + step for step in range(3000)] for base in (0, 2**63, 2**64 - 3000)]
    for rank, crowd in enumerate(crowds):
        index.store(rank, crowd)

    assert [index.match_depths(crowd) for crowd in crowds] == [{0: 3000}, {1: 3000}, {2: 3000}]
    index.remove(1, crowds[1])
    assert len(index) == 6000


def test_random_sets_of_thousands_of_ranks_stay_small(index: PrefixIndex) -> None:
    """The worst case for sharing: every block has ranks of its own."""
    choose = random.Random(7)
    holders = {block: set(choose.sample(range(4096), 8)) for block in range(3000)}
    for block, ranks in holders.items():
        for rank in ranks:
            index.store(rank, [block])

    assert all(index.match_depths([block]) == dict.fromkeys(ranks, 1) for block, ranks in holders.items())
    assert index.nbytes() / (8 * len(holders)) < 60
    for block, ranks in holders.items():
        for rank in ranks:
            index.remove(rank, [block])
    assert (len(index), index.match_depths([5])) == (0, {})


def test_an_index_reports_what_it_costs(index: PrefixIndex) -> None:
    """About 24 bytes for a block and a rank, and nothing for another rank that holds the same."""
    blocks = np.random.default_rng(3).integers(0, 2**63, size=200_000, dtype=np.uint64)
    index.store(0, blocks)
    alone = index.nbytes()
    for rank in range(1, 64):
        index.store(rank, blocks)

    assert 16 <= alone / len(blocks) <= 32
    assert index.nbytes() <= alone * 1.05


def test_an_index_does_not_leak_references(index: PrefixIndex) -> None:
    """Every call gives back what it took."""
    blocks, tiers = [2**60 + step for step in range(10)], ("gpu", "cpu")
    # One round first, for what Python itself keeps.
    for _ in range(2):
        before = [sys.getrefcount(each) for each in (blocks, tiers, blocks[0], tiers[0])]
        for _ in range(100):
            index.store(1, blocks, tiers[1])
            index.match(blocks, tiers=tiers)
            index.match_depths(blocks, tiers)
            index.match_best(blocks, 2, tiers)
            index.match_many([blocks, blocks], tiers)
            index.match_tokens(b"\0" * 4000, 16, 7, tiers=tiers)
            index.store_chain(1, blocks, blocks[0], tiers[1])
            index.holds(1, blocks, tiers[1])
            index.remove(rank=1, hashes=blocks, tier=tiers[1])
            index.clear(1, None)
            type(index).restore(index.snapshot())
        after = [sys.getrefcount(each) for each in (blocks, tiers, blocks[0], tiers[0])]

    assert after == before


def test_a_segment_keeps_what_stands_behind_the_last_stale_slot() -> None:
    """The copy of a segment that is split settles slots; with the last of them it has not come to its end."""
    draw = np.random.default_rng(3)
    for _ in range(20):  # Where hashes lie is another index's secret each time.
        index = PrefixIndex()
        hashes = draw.integers(1, 2**63, 48_000, dtype=np.uint64)
        index.store(1, hashes[:41_000])
        index.store(2, hashes[20_000:20_001])
        index.clear(2)

        for part in np.split(hashes[41_000:], 7):
            index.store(1, part)

        assert index.match_depths(hashes) == {1: len(hashes)}


def test_chains_are_known_as_such(index: PrefixIndex) -> None:
    """Where blocks were stored in order, matching may take whole stretches; where not, it may not."""
    chain = np.random.default_rng(4).integers(0, 2**63, size=1000, dtype=np.uint64)
    index.store(0, chain[500:600])
    assert index.placed() == 0

    index.store_chain(0, chain[:500])
    index.store_chain(1, chain, None)
    index.store_chain(1, chain[900:], int(chain[899]))
    assert index.placed() == len(index) == 1000

    index.remove(0, chain)
    index.remove(1, chain[::-1])
    assert (index.placed(), len(index)) == (0, 0)


def test_what_stretches_say_is_never_older_than_what_was_stored(index: PrefixIndex) -> None:
    """Clearing, sweeping and coming back, block by block, with continuations that part everywhere."""
    choose = random.Random(11)
    tree = [[choose.getrandbits(63) for _ in range(300)]]
    for _ in range(60):
        stem = choose.choice(tree)
        cut = choose.randrange(300)
        tree.append(stem[:cut] + [choose.getrandbits(63) for _ in range(300 - cut)])
    oracle = Reference()
    for _ in range(4000):
        rank, prompt = choose.randrange(6), choose.choice(tree)
        start = choose.choice([0, choose.randrange(300)])
        stop = min(300, start + choose.choice([1, 1, 7, 300]))
        chance = choose.random()
        for each in (index, oracle):
            if chance < 0.02:
                each.clear(rank)
            elif chance < 0.6:
                each.store_chain(rank, prompt[start:stop], prompt[start - 1] if start else None)
            elif chance < 0.7:
                each.store(rank, prompt[start:stop])
            else:
                each.remove(rank, prompt[start:stop][:: choose.choice([1, -1])])
        asked = choose.choice(tree)
        assert index.match_depths(asked) == oracle.match_depths(asked)
    assert 0 < index.placed() <= len(index)


def test_chains_outlive_a_restart(index: PrefixIndex) -> None:
    """A restored index takes stretches as the first one did, and they go on growing."""
    trunk = np.random.default_rng(6).integers(0, 2**63, size=300, dtype=np.uint64)
    branch = np.random.default_rng(7).integers(0, 2**63, size=50, dtype=np.uint64)
    index.store_chain(0, trunk)
    index.store_chain(1, trunk[:200], tier="cpu")
    index.store_chain(2, branch, int(trunk[70]))
    index.store(3, [1, 2, 3])
    index.remove(0, trunk[100:110])

    twin = PrefixIndex.restore(index.snapshot())
    assert (twin.placed(), len(twin)) == (index.placed(), len(index))
    twin.store_chain(2, [7], int(branch[-1]))
    twin.store_chain(0, trunk[100:110], int(trunk[99]))
    twin.clear(1)

    assert twin.match_depths(trunk) == {0: 300}
    assert twin.match_depths([*trunk[:71].tolist(), *branch.tolist(), 7]) == {0: 71}
    twin.store_chain(2, trunk[:71])
    assert twin.match_depths([*trunk[:71].tolist(), *branch.tolist(), 7]) == {0: 71, 2: 122}
    assert PrefixIndex.restore(twin.snapshot()).placed() == twin.placed() == len(twin) - 3


@pytest.mark.parametrize("marks", [b"\x20\x80", b"\x80\xa2", b"\x00\xa1", b"\x80\xa0", b"\xc0\x80", b"\x80\x01"])
def test_a_place_that_no_block_can_have_is_refused(index: PrefixIndex, marks: bytes) -> None:
    """What a snapshot says of chains is checked as everything else."""
    index.store_chain(0, [1, 2])
    body = index.snapshot()[24:]
    assert body.endswith(b"\x80\xa1")

    with pytest.raises(SnapshotError, match="place"):
        PrefixIndex.restore(sealed(body[:-2] + marks))
