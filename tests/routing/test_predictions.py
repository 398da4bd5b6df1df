"""Predicted blocks: believed for a while, bounded in number, continued from what is confirmed."""

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from kvrouter.routing.predictions import PredictedBlocks


def test_nothing_is_predicted_at_first() -> None:
    """Neither for a prompt nor for an empty one."""
    predictions = PredictedBlocks()

    assert predictions.match([1, 2], {}) == {}
    assert predictions.match([], {0: 0}) == {}
    assert predictions.deadline(0, 1) is None
    assert len(predictions) == 0


def test_a_prefix_is_matched_until_a_hole() -> None:
    """Rank by rank, from the first block."""
    predictions = PredictedBlocks()
    predictions.store(0, [1, 2, 3], 10.0)
    predictions.store(1, [1], 10.0)
    predictions.store(2, [2, 3], 10.0)
    predictions.store(1, [3], 10.0)

    assert predictions.match([1, 2, 3, 4], {}) == {0: 3, 1: 1}


def test_what_is_confirmed_is_continued() -> None:
    """A suffix alone is found where the confirmed prefix of its rank ends, and only there."""
    predictions = PredictedBlocks()
    predictions.store(0, [3, 4], 10.0)
    predictions.store(1, [3, 4], 10.0)
    predictions.store(2, [1, 2, 3], 10.0)
    predictions.store(5, [5], 10.0)

    assert predictions.match([1, 2, 3, 4, 5], {0: 2, 1: 1, 5: 4, 7: 5}) == {0: 4, 2: 3, 5: 5}


def test_time_ends_what_was_written() -> None:
    """Each run by its own deadline; writing it again puts the end off."""
    predictions = PredictedBlocks()
    predictions.store(0, [1, 2], 10.0)
    predictions.store(1, [1], 12.0)
    predictions.store(0, [1], 20.0)

    predictions.expire(9.9)
    assert predictions.match([1, 2], {}) == {0: 2, 1: 1}
    predictions.expire(10.0)
    assert predictions.match([1, 2], {}) == {0: 1, 1: 1}
    predictions.expire(12.0)
    assert predictions.match([1, 2], {}) == {0: 1}
    assert predictions.deadline(0, 1) == 20.0
    predictions.expire(20.0)
    assert predictions.match([1, 2], {}) == {}
    assert (len(predictions), predictions.blocks(0)) == (0, 0)


def test_the_oldest_of_a_rank_goes_when_it_has_too_much() -> None:
    """Other ranks keep theirs."""
    predictions = PredictedBlocks(blocks_max=4)
    predictions.store(1, [1, 2], 10.0)
    predictions.store(0, [1, 2], 10.0)
    predictions.store(0, [5, 6, 7], 10.0)

    assert predictions.match([1, 2], {}) == {1: 2}
    assert predictions.match([5, 6, 7], {}) == {0: 3}
    assert predictions.blocks(0) == 3


def test_a_run_longer_than_the_bound_loses_its_end() -> None:
    """Its beginning is what siblings share."""
    predictions = PredictedBlocks(blocks_max=3)

    predictions.store(0, [1, 2, 3, 4, 5], 10.0)

    assert predictions.match([1, 2, 3, 4, 5], {}) == {0: 3}


def test_all_ranks_together_are_bounded() -> None:
    """Whoever writes gives first, then whoever has most."""
    predictions = PredictedBlocks(total_max=5)
    predictions.store(0, [1, 2, 3], 10.0)
    predictions.store(1, [1], 10.0)
    predictions.store(1, [2], 10.0)
    predictions.store(2, [1, 2], 10.0)

    assert len(predictions) == 4
    assert predictions.match([1, 2, 3], {}) == {1: 2, 2: 2}
    predictions.store(2, [7], 10.0)
    predictions.store(2, [8], 10.0)
    assert predictions.match([1, 2], {}) == {1: 2}
    assert predictions.match([7], {}) == {2: 1}


def test_a_newcomer_with_too_much_gives_at_once() -> None:
    """When what it writes is itself the most, it is not kept."""
    predictions = PredictedBlocks(total_max=5)
    predictions.store(0, [1, 2], 10.0)

    predictions.store(1, [1, 2, 3, 4], 10.0)

    assert predictions.match([1, 2, 3, 4], {}) == {0: 2}
    predictions.store(1, [1], 10.0)
    predictions.expire(10.0)
    assert len(predictions) == 0


def test_a_rank_can_be_forgotten() -> None:
    """And begin again."""
    predictions = PredictedBlocks()
    predictions.store(0, [1, 2], 10.0)
    predictions.store(1, [1], 10.0)

    predictions.drop(0)
    predictions.drop(9)

    assert predictions.match([1, 2], {}) == {1: 1}
    predictions.store(0, [1], 11.0)
    predictions.expire(10.5)
    assert predictions.match([1, 2], {}) == {0: 1}


class PredictionMachine(RuleBasedStateMachine):
    """Random writes and times beside a model: (rank, block) to its deadline."""

    ranks = st.integers(0, 3)
    runs = st.lists(st.integers(1, 8), max_size=6, unique=True)

    def __init__(self) -> None:
        super().__init__()
        self.predictions = PredictedBlocks()
        self.model: dict[tuple[int, int], float] = {}
        self.now = 0.0

    @rule(rank=ranks, run=runs, lifetime=st.integers(1, 9))
    def store(self, rank: int, run: list[int], lifetime: int) -> None:
        self.predictions.store(rank, run, self.now + lifetime)
        latest = max((until for (held, _), until in self.model.items() if held == rank), default=0.0)
        self.model.update({(rank, key): max(self.now + lifetime, latest) for key in run})

    @rule(seconds=st.integers(0, 5))
    def pass_time(self, seconds: int) -> None:
        self.now += seconds
        self.predictions.expire(self.now)
        self.model = {pair: until for pair, until in self.model.items() if until > self.now}

    @rule(rank=ranks)
    def drop(self, rank: int) -> None:
        self.predictions.drop(rank)
        self.model = {pair: until for pair, until in self.model.items() if pair[0] != rank}

    @rule(length=st.integers(0, 8), known=st.dictionaries(ranks, st.integers(0, 8)))
    def match(self, length: int, known: dict[int, int]) -> None:
        prompt = list(range(1, length + 1))
        expected = {}
        for rank in range(4):
            begin = end = known.get(rank, 0)
            while end < length and (rank, prompt[end]) in self.model:
                end += 1
            if end > begin:
                expected[rank] = end
        assert self.predictions.match(prompt, known) == expected

    @invariant()
    def counts_agree(self) -> None:
        for rank in range(4):
            assert self.predictions.blocks(rank) == sum(held == rank for held, _ in self.model)


def test_random_histories_agree_with_a_naive_model() -> None:
    """Any order of writing, waiting and forgetting."""
    run_state_machine_as_test(
        PredictionMachine, settings=settings(max_examples=80, stateful_step_count=40, deadline=None)
    )


@given(st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(1, 30), max_size=12)), max_size=40))
def test_bounds_hold_whatever_is_written(writes: list[tuple[int, list[int]]]) -> None:
    """Per rank and over all."""
    predictions = PredictedBlocks(blocks_max=10, total_max=25)

    for rank, run in writes:
        predictions.store(rank, run, 10.0)
        assert predictions.blocks(rank) <= 10
        assert len(predictions) <= 25

    predictions.expire(10.0)
    assert len(predictions) == 0
    assert predictions.match(list(range(1, 31)), {}) == {}
