"""Speeds are learnt from first tokens, whatever is told of them."""

from math import inf, isfinite, nan
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvrouter.routing import LoadBook, RoutingSettings
from kvrouter.routing.load import RankLoad
from kvrouter.routing.speeds import Speeds

ALL = frozenset({"m"})


class Ranks:
    """Some ranks of one group, each with a real speed, that compute one prompt after the other."""

    def __init__(self, *token_seconds: float, pair_seconds: float = 0.0, first_seconds: float = 0.0) -> None:
        self.real = token_seconds
        self.pair_seconds, self.first_seconds = pair_seconds, first_seconds
        self.book, self.speeds = LoadBook(), Speeds(RoutingSettings())
        self.members = [(self.book.load(rank), ALL) for rank in range(len(token_seconds))]
        for load, group in self.members:
            self.speeds.adopt(load, group)
        self.random, self.now = Random(7), 0.0

    def load(self, rank: int) -> RankLoad:
        """What is known of a rank is in its load."""
        return self.book.load(rank)

    def compute(self, rank: int, tokens: int, *, queue: int = 1, noise: float = 0.0) -> None:
        """Let a rank work off a queue of equal prompts, and tell of each first token."""
        for number in range(queue):
            self.book.reserve((rank, number), rank, prefill_tokens=tokens, blocks=1, now=self.now)
        each = self.first_seconds / queue + tokens * self.real[rank] + tokens**2 / 2 * self.pair_seconds
        for number in range(queue):
            self.now += each * self.random.uniform(1 - noise, 1 + noise)
            booking = self.book.get((rank, number))
            assert booking is not None
            self.speeds.first_token(booking, self.now)
            self.book.prefill_complete((rank, number), now=self.now)
            self.book.free((rank, number))
        self.speeds.learn(self.members, self.now)


@pytest.mark.parametrize("real", [1 / 80_000, 1 / 8000, 1 / 800])
def test_the_speed_of_a_rank_is_found_whatever_is_believed_at_first(real: float) -> None:
    """Ten times faster or slower than the prior, with queues and noise."""
    ranks = Ranks(real)
    for number in range(300):
        ranks.compute(0, 500 + 37 * (number % 90), queue=1 + number % 4, noise=0.2)

    assert ranks.load(0).token_seconds == pytest.approx(real, rel=0.15)
    assert ranks.speeds.speed(0).error < 0.2


def test_attention_is_told_from_tokens() -> None:
    """Prompts of different lengths tell what a token costs at their beginning and at their end."""
    ranks = Ranks(1 / 10_000, pair_seconds=1 / 10_000 / 20_000, first_seconds=0.05)
    for number in range(400):
        ranks.compute(0, 2 ** (9 + number % 9), noise=0.05)

    load = ranks.load(0)
    for tokens in (2000, 20_000, 100_000):
        real = 0.05 + tokens / 10_000 + tokens**2 / 2 / 10_000 / 20_000
        found = load.first_seconds + tokens * load.token_seconds + tokens**2 / 2 * load.pair_seconds
        assert found == pytest.approx(real, rel=0.1)


def test_a_slow_rank_is_seen_and_forgiven() -> None:
    """The others keep their speed; when it is fast again, that is seen too."""
    ranks = Ranks(1 / 8000, 1 / 1600, 1 / 8000)
    for _ in range(60):
        for rank in range(3):
            ranks.compute(rank, 2000, noise=0.1)
    slow, fast = ranks.load(1).token_seconds, ranks.load(0).token_seconds
    assert slow > 3 * fast

    ranks.real = (1 / 8000, 1 / 8000, 1 / 8000)
    for _ in range(200):
        for rank in range(3):
            ranks.compute(rank, 2000, noise=0.1)

    assert ranks.load(1).token_seconds == ranks.load(0).token_seconds


def test_ranks_that_differ_little_are_alike() -> None:
    """What chance makes of equal engines must not send everything to one of them."""
    ranks = Ranks(1 / 8000, 1 / 8400)
    for _ in range(50):
        for rank in range(2):
            ranks.compute(rank, 1500, noise=0.3)

    assert ranks.load(0).token_seconds == ranks.load(1).token_seconds
    assert ranks.load(0).first_seconds == ranks.load(1).first_seconds


def test_a_new_rank_is_believed_to_be_like_its_group() -> None:
    """Not like the prior, and not like ranks that serve something else."""
    ranks = Ranks(1 / 1000)
    for number in range(100):
        ranks.compute(0, 1000 + 50 * (number % 20))
    new, other = ranks.book.load(8), ranks.book.load(9)
    ranks.speeds.adopt(new, ALL)
    ranks.speeds.adopt(other, frozenset({"another"}))

    assert new.token_seconds == pytest.approx(1 / 1000, rel=0.3)
    assert other.token_seconds == 1 / 8000


def test_what_was_learnt_fades() -> None:
    """A rank that nobody asks any more is believed to be like the others again, so that somebody asks it."""
    ranks = Ranks(1 / 8000, 1 / 800)
    for _ in range(40):
        ranks.compute(0, 2000)
        ranks.compute(1, 2000)
    assert ranks.load(1).token_seconds > 3 * ranks.load(0).token_seconds

    for _ in range(60):
        ranks.now += 60.0
        ranks.compute(0, 2000)

    assert ranks.load(1).token_seconds == ranks.load(0).token_seconds


TIMES = st.one_of(st.sampled_from([0.0, nan, inf, -inf, -5.0, 1e300, 1e-300]), st.floats(-10.0, 1e4))
TOKENS = st.one_of(st.sampled_from([0, 1, 10**9, 10**15]), st.integers(0, 200_000))


@given(st.lists(st.tuples(st.integers(0, 2), TOKENS, TIMES, TIMES, TIMES), max_size=40))
@settings(max_examples=300, deadline=None)
def test_nothing_that_is_told_leads_out_of_bounds(told: list[tuple[int, int, float, float, float]]) -> None:
    """Zero, not a number, without end, and clocks that go backward."""
    book, speeds = LoadBook(), Speeds(RoutingSettings())
    members = [(book.load(rank), ALL) for rank in range(3)]
    for load, group in members:
        speeds.adopt(load, group)
    for number, (rank, tokens, booked, first, learnt) in enumerate(told):
        book.reserve(number, rank, prefill_tokens=tokens, blocks=0, now=booked)
        booking = book.get(number)
        assert booking is not None
        speeds.first_token(booking, first)
        book.prefill_complete(number, now=first)
        speeds.learn(members, learnt)

    for load, _ in members:
        assert 0 < load.token_seconds <= 1000 / 8000
        assert 0 <= load.pair_seconds <= 1000 / 8000 / 65_536
        assert 0 <= load.first_seconds <= 10
        assert isfinite(speeds.speed(load.rank).error)


def test_a_large_fleet_is_learnt_in_parts() -> None:
    """So that no request waits for it; in the end all are known."""
    ranks = Ranks(*[1 / 500] * 150)
    for _ in range(30):
        for rank in range(150):
            ranks.book.reserve(rank, rank, prefill_tokens=1000, blocks=0, now=ranks.now)
        ranks.now += 2.0
        for rank in range(150):
            booking = ranks.book.get(rank)
            assert booking is not None
            ranks.speeds.first_token(booking, ranks.now)
            ranks.book.free(rank, now=ranks.now)
        ranks.speeds.learn(ranks.members, ranks.now)

    assert {round(load.token_seconds * 500, 1) >= 0.7 for load, _ in ranks.members} == {True}
