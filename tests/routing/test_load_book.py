"""The load book: what is booked is exactly what its end takes away."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from kvrouter.errors import OverloadedError
from kvrouter.routing import LoadBook, RankLoad


def test_a_booking_is_the_load_of_its_rank() -> None:
    """Requests, prefill tokens and blocks are summed per rank."""
    book = LoadBook()

    book.reserve("x", 3, prefill_tokens=100, blocks=7, now=0.0)
    book.reserve("y", 3, prefill_tokens=50, blocks=4, now=0.0)

    assert book.load(3) == RankLoad(active_requests=2, prefill_tokens=150, decode_blocks=11)
    assert book.load(0) == RankLoad()
    assert book.loads()[3] == book.load(3)
    assert len(book) == 2
    assert "x" in book
    assert repr(book.load(0)) == "RankLoad(active_requests=0, prefill_tokens=0, decode_blocks=0)"


def test_prefill_ends_once_and_everything_ends_with_free() -> None:
    """Repeated calls are no errors and count once; unknown ids are told."""
    book = LoadBook()
    book.reserve("x", 0, prefill_tokens=100, blocks=7, now=0.0)

    assert book.prefill_complete("x", now=1.0)
    assert book.prefill_complete("x", now=1.0)
    assert book.load(0) == RankLoad(active_requests=1, prefill_tokens=0, decode_blocks=7)

    assert book.free("x")
    assert not book.free("x")
    assert not book.prefill_complete("x", now=1.0)
    assert not book.output_block("x")
    assert book.load(0) == RankLoad()


def test_output_adds_blocks_and_may_weigh_less_near_the_end() -> None:
    """With a decay only that share of the request's own blocks counts."""
    book = LoadBook()
    book.reserve("x", 0, prefill_tokens=0, blocks=7, now=0.0)

    book.output_block("x")
    assert book.load(0).decode_blocks == 8
    book.output_block("x", 0.5)
    assert book.load(0).decode_blocks == 4
    book.output_block("x", 0.0)
    assert book.load(0).decode_blocks == 0

    book.free("x")
    assert book.load(0) == RankLoad()


def test_shared_blocks_count_once_when_hashes_are_given() -> None:
    """A prefix that several running requests of a rank share is in memory once."""
    book = LoadBook()
    book.reserve("x", 0, prefill_tokens=0, blocks=4, now=0.0, hashes=[1, 2, 3])
    book.reserve("y", 0, prefill_tokens=0, blocks=5, now=0.0, hashes=[1, 2, 8, 9])
    book.reserve("z", 1, prefill_tokens=0, blocks=3, now=0.0, hashes=[1, 2, 3])

    assert (book.load(0).decode_blocks, book.load(1).decode_blocks) == (5 + 2, 3)
    assert (book.active_prefix(0, [1, 2, 3, 4]), book.active_prefix(2, [1])) == (3, 0)

    book.free("x")
    assert book.load(0).decode_blocks == 5
    book.free("y")
    assert book.load(0).decode_blocks == 0


def test_a_lease_ends_without_progress_and_is_renewed_by_it() -> None:
    """First token and output count as progress."""
    book = LoadBook()
    for name in ("idle", "busy", "for ever"):
        book.reserve(name, 0, prefill_tokens=1, blocks=1, now=0.0, lease_seconds=None if name == "for ever" else 10.0)

    book.prefill_complete("busy", now=8.0)
    assert book.expire(9.9) == []
    assert book.expire(10.0) == ["idle"]
    book.output_block("busy", now=15.0)
    book.output_block("busy")
    assert book.expire(20.0) == []
    assert book.expire(25.0) == ["busy"]
    assert book.expire(1e9) == []

    assert book.expired_total == 2
    assert book.load(0).active_requests == 1


def test_an_id_may_return_after_it_ended() -> None:
    """The lease of its earlier life does not end the new one."""
    book = LoadBook()
    book.reserve("x", 0, prefill_tokens=1, blocks=1, now=0.0, lease_seconds=10.0)
    book.free("x")
    book.reserve("x", 0, prefill_tokens=1, blocks=1, now=5.0, lease_seconds=10.0)

    assert book.expire(12.0) == []
    assert book.expire(15.0) == ["x"]


def test_leases_of_ended_bookings_do_not_pile_up() -> None:
    """A lease is long and a request short: memory follows the requests."""
    book = LoadBook()

    for number in range(10_000):
        book.reserve(number, 0, prefill_tokens=1, blocks=1, now=0.0, lease_seconds=1e6)
        book.free(number)

    assert len(book._leases) <= 1025


def test_a_gone_rank_takes_its_bookings_with_it() -> None:
    """And only its own."""
    book = LoadBook()
    book.reserve("x", 0, prefill_tokens=1, blocks=1, now=0.0, hashes=[1])
    book.reserve("y", 1, prefill_tokens=1, blocks=1, now=0.0)

    assert book.drop(0) == 1

    assert "x" not in book
    assert book.load(0) == RankLoad()
    assert book.load(1).active_requests == 1
    assert book.active_prefix(0, [1]) == 0


def test_wrong_bookings_are_refused_and_leave_no_trace() -> None:
    """Duplicates, negative numbers, more than the bound."""
    book = LoadBook(reservations_max=2)
    book.reserve("x", 0, prefill_tokens=1, blocks=1, now=0.0)

    with pytest.raises(ValueError, match="'x' is booked already"):
        book.reserve("x", 1, prefill_tokens=1, blocks=1, now=0.0)
    with pytest.raises(ValueError, match="at least 0"):
        book.reserve("y", 1, prefill_tokens=-1, blocks=1, now=0.0)
    with pytest.raises(ValueError, match="at least 0"):
        book.reserve("y", 1, prefill_tokens=1, blocks=-1, now=0.0)
    with pytest.raises(ValueError, match=r"decay is 1\.5"):
        book.output_block("x", 1.5)
    book.reserve("y", 0, prefill_tokens=1, blocks=1, now=0.0)
    with pytest.raises(OverloadedError):
        book.reserve("z", 1, prefill_tokens=1, blocks=1, now=0.0)

    assert book.load(1) == RankLoad()
    assert book.load(0).active_requests == 2


class BookMachine(RuleBasedStateMachine):
    """Random bookings beside a model that recomputes every load from what is booked."""

    ids = st.integers(0, 7)

    def __init__(self) -> None:
        super().__init__()
        self.book = LoadBook()
        self.model: dict[int, dict[str, float]] = {}
        self.now = 0.0

    @rule(
        name=ids,
        rank=st.integers(0, 2),
        tokens=st.integers(0, 99),
        blocks=st.integers(0, 9),
        lease=st.none() | st.integers(1, 9),
    )
    def reserve(self, name: int, rank: int, tokens: int, blocks: int, lease: int | None) -> None:
        if name in self.model:
            with pytest.raises(ValueError, match="booked already"):
                self.book.reserve(name, rank, prefill_tokens=tokens, blocks=blocks, now=self.now)
            return
        self.book.reserve(name, rank, prefill_tokens=tokens, blocks=blocks, now=self.now, lease_seconds=lease)
        ends = self.now + lease if lease else float("inf")
        self.model[name] = {"rank": rank, "tokens": tokens, "blocks": blocks, "ends": ends, "lease": lease or 0}

    @rule(name=ids)
    def first_token(self, name: int) -> None:
        assert self.book.prefill_complete(name, now=self.now) == (name in self.model)
        if name in self.model:
            self.model[name]["tokens"] = 0
            self._progress(name)

    @rule(name=ids)
    def output(self, name: int) -> None:
        assert self.book.output_block(name, now=self.now) == (name in self.model)
        if name in self.model:
            self.model[name]["blocks"] += 1
            self._progress(name)

    @rule(name=ids)
    def free(self, name: int) -> None:
        assert self.book.free(name) == (self.model.pop(name, None) is not None)

    @rule(seconds=st.integers(0, 5))
    def pass_time(self, seconds: int) -> None:
        self.now += seconds
        over = {name for name, booked in self.model.items() if booked["ends"] <= self.now}
        assert set(self.book.expire(self.now)) == over
        for name in over:
            del self.model[name]

    @rule(rank=st.integers(0, 2))
    def drop(self, rank: int) -> None:
        gone = [name for name, booked in self.model.items() if booked["rank"] == rank]
        assert self.book.drop(rank) == len(gone)
        for name in gone:
            del self.model[name]

    @invariant()
    def loads_are_the_sums(self) -> None:
        for rank in range(3):
            mine = [booked for booked in self.model.values() if booked["rank"] == rank]
            tokens, blocks = sum(each["tokens"] for each in mine), sum(each["blocks"] for each in mine)
            assert self.book.load(rank) == RankLoad(len(mine), int(tokens), int(blocks))
        assert len(self.book) == len(self.model)

    def _progress(self, name: int) -> None:
        if self.model[name]["lease"]:
            self.model[name]["ends"] = self.now + self.model[name]["lease"]


def test_loads_are_always_the_sums_of_what_is_booked() -> None:
    """Whatever happens in whatever order; so they are never negative."""
    run_state_machine_as_test(BookMachine, settings=settings(max_examples=60, stateful_step_count=40, deadline=None))
