"""The paged block pool against a plain model of it, and its rules one by one."""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvrouter.replay.engine.pool import BlockPool

BLOCKS = 12


def test_a_released_block_stays_cached_until_its_room_is_needed() -> None:
    """Freeing is not forgetting."""
    pool = BlockPool(2)
    (first, second), _ = pool.take(2)
    pool.label(first, 11)
    pool.label(second, 12)

    pool.release([first, second])

    assert pool.free == 2
    assert pool.find([11, 12]) == [first, second]


def test_the_tail_of_a_sequence_is_evicted_before_its_head() -> None:
    """A prefix outlives what follows it."""
    pool = BlockPool(3)
    blocks, _ = pool.take(3)
    for block, key in zip(blocks, (1, 2, 3), strict=True):
        pool.label(block, key)
    pool.release(blocks)

    _, evicted = pool.take(2)

    assert evicted == [3, 2]


def test_the_least_recently_used_sequence_is_evicted_first() -> None:
    """Sharing a block makes it young again."""
    pool = BlockPool(2)
    old, _ = pool.take(1)
    pool.label(old[0], 1)
    young, _ = pool.take(1)
    pool.label(young[0], 2)
    pool.release(old)
    pool.release(young)
    pool.share(old)
    pool.release(old)

    _, evicted = pool.take(1)

    assert evicted == [2]


def test_empty_blocks_are_taken_before_cached_ones() -> None:
    """Nothing is evicted while there is room that holds nothing."""
    pool = BlockPool(2)
    cached, _ = pool.take(1)
    pool.label(cached[0], 1)
    partial, _ = pool.take(1)
    pool.release(cached)
    pool.release(partial)

    _, evicted = pool.take(1)

    assert evicted == []
    assert pool.contents() == {1: 1}


def test_each_physical_copy_is_evicted_on_its_own() -> None:
    """A key is gone when its last copy is."""
    pool = BlockPool(2)
    blocks, _ = pool.take(2)
    for block in blocks:
        pool.label(block, 7)
    pool.release(blocks)

    _, first = pool.take(1)
    left = pool.contents()
    _, second = pool.take(1)

    assert (first, left, second) == ([7], {7: 1}, [7])
    assert pool.contents() == {}


def test_a_pool_in_use_refuses_to_be_cleared() -> None:
    """Running sequences would lose their blocks."""
    pool = BlockPool(1)
    blocks, _ = pool.take(1)
    pool.label(blocks[0], 1)

    refused = pool.clear()
    pool.release(blocks)

    assert (refused, pool.clear(), pool.contents()) == (False, True, {})


class PoolModel(RuleBasedStateMachine):
    """Sequences come, share, grow and go in any order; the pool is compared with counts kept beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(BLOCKS)
        self.sequences: list[list[int]] = []
        self.stored: Counter[int] = Counter()
        self.keys: dict[int, int] = {}

    @rule(count=st.integers(1, 5), keys=st.lists(st.integers(1, 6), min_size=5, max_size=5))
    def start(self, count: int, keys: list[int]) -> None:
        if count > self.pool.free:
            return
        blocks, evicted = self.pool.take(count)
        self.stored.subtract(evicted)
        for block in blocks:
            self.keys.pop(block, None)
        for block, key in zip(blocks[:-1], keys, strict=False):  # The last block stays partial.
            self.pool.label(block, key)
            self.stored[key] += 1
            self.keys[block] = key
        self.sequences.append(blocks)

    @rule(keys=st.lists(st.integers(1, 6), min_size=1, max_size=4))
    def share(self, keys: list[int]) -> None:
        blocks = self.pool.find(keys)
        idle = self.pool.idle(set(blocks))
        free = self.pool.free

        self.pool.share(blocks)

        assert [self.keys[block] for block in blocks] == keys[: len(blocks)]
        assert self.pool.free == free - idle
        self.sequences.append(blocks)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.sequences) - 1))
        self.pool.release(self.sequences.pop(at))

    @rule()
    def clear(self) -> None:
        in_use = any(self.sequences)

        assert self.pool.clear() is not in_use
        if not in_use:
            self.stored.clear()
            self.keys.clear()

    @invariant()
    def nothing_is_lost_or_invented(self) -> None:
        self.pool.check()
        assert self.pool.free + self.pool.used == BLOCKS
        assert self.pool.used == len({block for sequence in self.sequences for block in sequence})
        assert self.pool.contents() == +self.stored


TestPoolModel = PoolModel.TestCase
TestPoolModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
