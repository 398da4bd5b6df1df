"""Thousands of batches that waited for one are applied in turns, in order, and nothing is asked for meanwhile."""

from kvrouter.events import Event
from kvrouter.index import PrefixIndex
from kvrouter.ingest import Ingest, IngestLimits, Receipt
from tests.ingest.engines import RANK, SOURCE, Rank, payload, removed, stored, tokens

BATCHES = 3000


class SlicedRank(Rank):
    """One followed source of an ingest that works in turns."""

    def __init__(self, *, limits: IngestLimits | None = None) -> None:
        super().__init__(limits=limits)
        self.calls = 0
        self.index = PrefixIndex()
        self.ingest = Ingest(self.index, limits=limits or IngestLimits(), on_backlog=self._called)
        self.ingest.open(SOURCE, RANK, block_size=4, now=0.0)

    def _called(self) -> None:
        self.calls += 1

    def work(self) -> int:
        """Work until nothing is left; returns the number of turns."""
        turns = 1
        while self.ingest.work(now=0.0):
            turns += 1
        return turns


def batch(number: int) -> Event:
    """Batch 0 stores a block, all others store a long one of their own and so on."""
    return stored([number + 1], tokens(100, start=100 * number), size=400)


def waiting_rank() -> SlicedRank:
    """Everything is there but the first batch."""
    rank = SlicedRank()
    for number in range(1, BATCHES):
        rank.receive(number, batch(number))
    return rank


def test_a_backlog_is_applied_in_turns() -> None:
    """One call would hold up every request for seconds."""
    rank = waiting_rank()

    receipt = rank.receive(0, batch(0))
    applied_at_once = rank.status.applied_batches
    state = rank.status.state
    turns = rank.work()

    assert receipt == Receipt("applied")
    assert applied_at_once < BATCHES / 5
    assert (rank.calls, state) == (1, "replaying")
    assert turns > 3
    assert (rank.status.applied_sequence, rank.status.buffered_batches) == (BATCHES - 1, 0)
    assert (rank.status.gaps, rank.status.gaps_lost) == (1, 0)


def test_what_comes_meanwhile_takes_its_place_in_the_queue() -> None:
    """It is no gap, and overtakes nothing; only a hole behind the queue is asked for."""
    rank = waiting_rank()
    rank.receive(0, batch(0))
    rank.ingest.replay_finished(SOURCE, now=0.0, complete=True)

    following = rank.receive(BATCHES, removed(1))
    twice = rank.receive(BATCHES, removed(1))
    hole = rank.receive(BATCHES + 2, removed(2))
    rank.work()
    filled = rank.receive(BATCHES + 1, removed(3), replayed=True)

    assert (following, twice) == (Receipt("buffered"), Receipt("buffered"))
    assert hole == Receipt("gap", BATCHES + 1)
    assert filled == Receipt("applied")
    assert rank.status.applied_sequence == BATCHES + 2


def test_a_replay_that_ends_with_a_backlog_is_content() -> None:
    """Nothing is missing."""
    rank = waiting_rank()
    rank.receive(0, batch(0), replayed=True)

    assert rank.ingest.replay_finished(SOURCE, now=0.0, complete=True) == Receipt("resolved")
    rank.work()
    assert rank.status.applied_sequence == BATCHES - 1


def test_a_full_queue_is_worked_off_instead_of_given_up() -> None:
    """What waits for its turn alone is not lost."""
    rank = SlicedRank(limits=IngestLimits(buffered_batches_max=1000))
    for number in range(1, 1000):
        rank.receive(number, batch(number))
    rank.receive(0, batch(0))

    for number in range(1000, BATCHES):
        rank.receive(number, batch(number))
    rank.work()

    assert (rank.status.applied_sequence, rank.status.gaps_lost) == (BATCHES - 1, 0)


def test_a_closed_source_leaves_no_work() -> None:
    """Its worker was removed meanwhile."""
    rank = waiting_rank()
    rank.receive(0, batch(0))

    rank.ingest.close(SOURCE)

    assert not rank.ingest.work(now=0.0)
    assert len(rank.index) == 0


def test_a_snapshot_ends_a_backlog_that_it_covers() -> None:
    """And the batches beyond it follow."""
    rank = waiting_rank()
    rank.receive(0, batch(0))

    rank.ingest.snapshot(SOURCE, [payload(batch(7))], sequence=BATCHES - 2, incarnation=None, now=0.0)

    assert rank.status.applied_sequence == BATCHES - 1
    assert rank.ingest.copies(SOURCE) == {("gpu", 0): {8: 1, BATCHES: 1}}
