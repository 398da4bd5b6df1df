"""Predicted blocks: believed for a while, bounded in number, continued from what is confirmed.

Every implementation passes this; where the native core is present it is also compared with the reference.
"""

from array import array
from typing import Any, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from kvrouter import native_core
from kvrouter.routing.predictions import PredictedBlocks as Reference

Kind: TypeAlias = type[Reference]
KINDS: list[Kind] = [Reference, native_core.native.PredictedBlocks] if native_core.present else [Reference]  # type: ignore[list-item]


@pytest.fixture(params=KINDS, ids=["reference", "native"][: len(KINDS)])
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each implementation in turn."""
    found: Kind = request.param
    return found


def test_nothing_is_predicted_at_first(kind: Kind) -> None:
    """Neither for a prompt nor for an empty one."""
    predictions = kind()

    assert predictions.match([1, 2], {}) == {}
    assert predictions.match([], {0: 0}) == {}
    assert predictions.deadline(0, 1) is None
    assert len(predictions) == 0


def test_a_prefix_is_matched_until_a_hole(kind: Kind) -> None:
    """Rank by rank, from the first block."""
    predictions = kind()
    predictions.store(0, [1, 2, 3], 10.0)
    predictions.store(1, [1], 10.0)
    predictions.store(2, [2, 3], 10.0)
    predictions.store(1, [3], 10.0)

    assert predictions.match([1, 2, 3, 4], {}) == {0: 3, 1: 1}


def test_what_is_confirmed_is_continued(kind: Kind) -> None:
    """A suffix alone is found where the confirmed prefix of its rank ends, and only there."""
    predictions = kind()
    predictions.store(0, [3, 4], 10.0)
    predictions.store(1, [3, 4], 10.0)
    predictions.store(2, [1, 2, 3], 10.0)
    predictions.store(5, [5], 10.0)

    assert predictions.match([1, 2, 3, 4, 5], {0: 2, 1: 1, 5: 4, 7: 5}) == {0: 4, 2: 3, 5: 5}


def test_time_ends_what_was_written(kind: Kind) -> None:
    """Each run by its own deadline; writing it again puts the end off."""
    predictions = kind()
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


def test_the_oldest_of_a_rank_goes_when_it_has_too_much(kind: Kind) -> None:
    """Other ranks keep theirs."""
    predictions = kind(blocks_max=4)
    predictions.store(1, [1, 2], 10.0)
    predictions.store(0, [1, 2], 10.0)
    predictions.store(0, [5, 6, 7], 10.0)

    assert predictions.match([1, 2], {}) == {1: 2}
    assert predictions.match([5, 6, 7], {}) == {0: 3}
    assert predictions.blocks(0) == 3


def test_a_run_longer_than_the_bound_loses_its_end(kind: Kind) -> None:
    """Its beginning is what siblings share."""
    predictions = kind(blocks_max=3)

    predictions.store(0, [1, 2, 3, 4, 5], 10.0)

    assert predictions.match([1, 2, 3, 4, 5], {}) == {0: 3}


def test_all_ranks_together_are_bounded(kind: Kind) -> None:
    """Whoever writes gives first, then whoever has most."""
    predictions = kind(total_max=5)
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


def test_a_newcomer_with_too_much_gives_at_once(kind: Kind) -> None:
    """When what it writes is itself the most, it is not kept."""
    predictions = kind(total_max=5)
    predictions.store(0, [1, 2], 10.0)

    predictions.store(1, [1, 2, 3, 4], 10.0)

    assert predictions.match([1, 2, 3, 4], {}) == {0: 2}
    predictions.store(1, [1], 10.0)
    predictions.expire(10.0)
    assert len(predictions) == 0


def test_a_rank_can_be_forgotten(kind: Kind) -> None:
    """And begin again."""
    predictions = kind()
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

    kind = Reference
    ranks = st.integers(0, 3)
    runs = st.lists(st.integers(1, 8), max_size=6, unique=True)

    def __init__(self) -> None:
        super().__init__()
        self.predictions = self.kind()
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


def test_random_histories_agree_with_a_naive_model(kind: Kind) -> None:
    """Any order of writing, waiting and forgetting."""
    machine = type("Machine", (PredictionMachine,), {"kind": kind})
    run_state_machine_as_test(machine, settings=settings(max_examples=80, stateful_step_count=40, deadline=None))


@pytest.mark.parametrize("kind", KINDS)
@given(st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(1, 30), max_size=12)), max_size=40))
@settings(deadline=None)
def test_bounds_hold_whatever_is_written(kind: Kind, writes: list[tuple[int, list[int]]]) -> None:
    """Per rank and over all."""
    predictions = kind(blocks_max=10, total_max=25)

    for rank, run in writes:
        predictions.store(rank, run, 10.0)
        assert predictions.blocks(rank) <= 10
        assert len(predictions) <= 25

    predictions.expire(10.0)
    assert len(predictions) == 0
    assert predictions.match(list(range(1, 31)), {}) == {}
    assert [predictions.blocks(rank) for rank in range(4)] == [0] * 4


# -- whole prompts -----------------------------------------------------------------------------------------------------


def packed(*hashes: int) -> bytes:
    """Hashes as prompts have them."""
    return array("Q", hashes).tobytes()


def test_a_prompt_is_promised_where_it_was_predicted(kind: Kind) -> None:
    """In tokens, never the last one, and what is confirmed stays."""
    predictions = kind()
    predictions.predict(3, packed(1, 2, 3), 16, 0, 0, 10.0, 5.0)

    assert predictions.promised({0: 16}, packed(1, 2, 7), 16, 50) == {0: 16, 3: 32}
    assert predictions.promised({}, packed(1, 2, 3), 16, 48) == {3: 32}
    assert predictions.promised({}, packed(1, 2, 3), 16, 49) == {3: 48}
    assert predictions.promised({3: 48}, packed(1, 2, 3), 16, 49) == {3: 48}


def test_what_is_confirmed_is_returned_where_nothing_follows(kind: Kind) -> None:
    """The very same dictionary, unchanged."""
    predictions = kind()
    confirmed = {1: 32}
    assert predictions.promised(confirmed, packed(1, 2), 16, 40) is confirmed
    predictions.predict(2, packed(8, 9), 16, 0, 0, 10.0, 5.0)

    assert predictions.promised(confirmed, packed(1, 2), 16, 40) is confirmed
    assert confirmed == {1: 32}


def test_a_long_prompt_is_found_to_within_a_landmark(kind: Kind) -> None:
    """Of 600 blocks that agree, all but the last few are seen; what is confirmed is continued from there."""
    predictions = kind()
    predictions.predict(0, packed(*range(1, 701)), 16, 0, 0, 10.0, 5.0)
    predictions.predict(1, packed(*range(1, 701)), 16, 80 * 16, 80 * 16, 10.0, 5.0)

    found = predictions.promised({1: 83 * 16}, packed(*range(1, 601), *range(9000, 9100)), 16, 700 * 16)

    assert found == {0: 576 * 16, 1: 576 * 16}
    assert predictions.blocks(0) == len(predictions) - predictions.blocks(1) == 64 + 56 + 5


def test_predictions_begin_anew_when_events_of_a_rank_become_of_another_use(kind: Kind) -> None:
    """They are dropped once; other ranks keep theirs."""
    predictions = kind()
    predictions.store(1, [1], 10.0)
    predictions.follow(0, True)
    predictions.store(0, [1], 10.0)

    predictions.follow(0, True)
    assert predictions.match([1], {}) == {0: 1, 1: 1}
    predictions.follow(0, False)
    assert predictions.match([1], {}) == {1: 1}


def test_what_is_promised_is_written_again_only_when_it_gets_old(kind: Kind) -> None:
    """The deadline tells."""
    predictions = kind()
    predictions.predict(0, packed(1, 2), 16, 0, 0, 10.0, 5.0)

    predictions.predict(0, packed(1, 2, 3), 16, 0, 32, 20.0, 9.0)
    assert [predictions.deadline(0, key) for key in (1, 2, 3)] == [10.0, 10.0, 20.0]
    predictions.predict(0, packed(1, 2, 3), 16, 16, 32, 30.0, 10.0)
    assert [predictions.deadline(0, key) for key in (1, 2, 3)] == [10.0, 30.0, 30.0]


HASHES = st.lists(st.integers(1, 6), max_size=5, unique=True)
RANKS = st.sampled_from([0, 1, 63, 64, 200])
STEPS = st.one_of(
    st.tuples(st.just("store"), RANKS, HASHES, st.integers(1, 9)),
    st.tuples(st.just("predict"), RANKS, st.integers(0, 700), st.integers(0, 1), st.integers(0, 700)),
    st.tuples(st.just("expire"), st.integers(0, 4)),
    st.tuples(st.just("drop"), RANKS),
    st.tuples(st.just("follow"), RANKS, st.booleans()),
)
QUESTIONS = st.tuples(st.integers(0, 700), st.integers(0, 1), st.dictionaries(RANKS, st.integers(0, 720), max_size=4))


def prompt(length: int, tail: int) -> list[int]:
    """Prompts that agree for 300 blocks, and then by their tails."""
    return [*range(1, min(length, 300) + 1), *range(1000 * (tail + 1), 1000 * (tail + 1) + max(0, length - 300))]


@pytest.mark.parametrize("kind", KINDS)
@given(st.lists(STEPS, max_size=30), st.lists(QUESTIONS, max_size=5))
@settings(max_examples=300, deadline=None)
def test_every_implementation_does_what_the_reference_does(kind: Kind, steps: list[Any], questions: list[Any]) -> None:
    """Whatever is written, bounded, ended and dropped: every answer is the same."""
    both = [each(blocks_max=200, total_max=450) for each in (Reference, kind)]
    now = 0.0
    for step in steps:
        for predictions in both:
            match step:
                case "store", rank, hashes, lifetime:
                    predictions.store(rank, hashes, now + lifetime)
                case "predict", rank, length, tail, promised:
                    given = packed(*prompt(length, tail))
                    predictions.predict(rank, given, 16, promised * 8, promised * 16, now + 9, now + 4)
                case "expire", seconds:
                    predictions.expire(now + seconds)
                case "drop", rank:
                    predictions.drop(rank)
                case "follow", rank, is_live:
                    predictions.follow(rank, is_live)
        now += step[1] if step[0] == "expire" else 0
        assert len(both[0]) == len(both[1])
        assert [both[0].blocks(rank) for rank in (0, 1, 63, 64, 200)] == [
            both[1].blocks(rank) for rank in (0, 1, 63, 64, 200)
        ]
    for length, tail, known in questions:
        hashes = prompt(length, tail)
        tokens = {rank: 16 * blocks for rank, blocks in known.items()}
        answers = [
            (each.match(hashes, known), each.promised(tokens, packed(*hashes), 16, 16 * length + 1)) for each in both
        ]
        assert answers[0] == answers[1]
