"""Sources whose wire names the publisher's life: numbers decide within it, another life starts over."""

from collections.abc import Sequence

import pytest

from kvrouter.events import Event
from kvrouter.ingest import IngestLimits, Receipt
from tests.ingest.engines import CLEARED, SOURCE, Rank, payload, removed, stored, tokens

FIRST, SECOND, THIRD = 2**64 - 1, 5, 0  # Random in earnest, so their order means nothing.


class NamedRank(Rank):
    """One followed source that names its lives."""

    def arrive(self, life: int | None, sequence: int, *events: Event, replayed: bool = False) -> Receipt:
        """A batch of that life and number arrives."""
        return self.ingest.receive(SOURCE, sequence, payload(*events), now=0.0, replayed=replayed, incarnation=life)

    def store_of(self, life: int, sequences: Sequence[int], *, replayed: bool = False) -> list[Receipt]:
        """Batches of one store each; the one with number N stores the N-th block."""
        return [
            self.arrive(life, sequence, stored([sequence + 1], tokens(1, start=sequence)), replayed=replayed)
            for sequence in sequences
        ]

    def holds(self, number: int) -> bool:
        """Whether the block of that batch is there."""
        return self.usable(tokens(1, start=number)) == 4


@pytest.fixture
def rank() -> NamedRank:
    """Blocks of four tokens."""
    return NamedRank()


def test_the_first_life_is_followed_without_a_restart(rank: NamedRank) -> None:
    """There was nothing to leave."""
    (receipt,) = rank.store_of(FIRST, [0])

    assert receipt == Receipt("applied")
    assert (rank.status.restarts, rank.status.incarnation, rank.status.applied_sequence) == (0, 0, 0)


def test_a_lower_number_is_a_duplicate_whatever_its_bytes(rank: NamedRank) -> None:
    """A relay may encode the same batch anew."""
    rank.store_of(FIRST, [0, 1])

    receipt = rank.arrive(FIRST, 0, CLEARED)

    assert receipt == Receipt("duplicate")
    assert (rank.holds(0), rank.status.duplicates, rank.status.restarts) == (True, 1, 0)


def test_another_life_empties_the_rank_at_once_and_asks_for_its_beginning(rank: NamedRank) -> None:
    """Also when its number is the very one that was expected, which no bytes could tell."""
    rank.store_of(FIRST, [0, 1])

    (receipt,) = rank.store_of(SECOND, [2])
    emptied = (rank.holds(0), rank.holds(1), rank.holds(2))
    rank.store_of(SECOND, [0, 1, 2], replayed=True)
    resolved = rank.ingest.replay_finished(SOURCE, now=0.0, complete=True)

    assert receipt == Receipt("restarted", 0)
    assert emptied == (False, False, False)
    assert resolved == Receipt("resolved")
    assert (rank.holds(2), rank.status.restarts, rank.status.state) == (True, 1, "live")


def test_the_same_first_batch_of_another_life_is_not_a_duplicate(rank: NamedRank) -> None:
    """Two lives may say the very same at first."""
    rank.store_of(FIRST, [0, 1])

    (receipt,) = rank.store_of(SECOND, [0])

    assert receipt == Receipt("restarted", 0)
    assert (rank.holds(0), rank.holds(1)) == (True, False)


def test_a_gap_in_a_named_life_is_asked_for(rank: NamedRank) -> None:
    """As on any wire."""
    rank.store_of(FIRST, [0])

    receipts = rank.store_of(FIRST, [2, 3])
    (filled,) = rank.store_of(FIRST, [1], replayed=True)

    assert receipts == [Receipt("gap", 1), Receipt("buffered")]
    assert filled == Receipt("applied")
    assert rank.status.applied_sequence == 3


def test_a_live_batch_of_the_known_life_proves_a_reconnected_publisher(rank: NamedRank) -> None:
    """Nothing needs to be repeated first, and no doubt remains without a replay endpoint."""
    rank.store_of(FIRST, [0])
    rank.ingest.connected(SOURCE, now=0.0)
    rank.ingest.replay_finished(SOURCE, now=0.0, complete=False)
    doubt = rank.status.state

    (receipt,) = rank.store_of(FIRST, [1])

    assert doubt == "suspect"
    assert receipt == Receipt("applied")
    assert (rank.status.state, rank.holds(0), rank.holds(1)) == ("live", True, True)


def test_a_replay_that_lost_our_last_batch_does_not_look_like_a_restart(rank: NamedRank) -> None:
    """The ring has moved on: what is missing is given up, the life is the same."""
    rank.store_of(FIRST, [0])
    rank.ingest.connected(SOURCE, now=0.0)

    rank.store_of(FIRST, [7, 8], replayed=True)
    rank.ingest.replay_finished(SOURCE, now=0.0, complete=True)

    status = rank.status
    assert (status.restarts, status.gaps_lost, status.applied_sequence) == (0, 1, 8)
    assert (rank.holds(0), rank.holds(8)) == (False, True)


def test_what_was_given_up_unanswered_is_asked_for_again(rank: NamedRank) -> None:
    """Over a new connection, in the same life, without a restart."""
    rank.store_of(FIRST, [0, 2])
    rank.ingest.replay_finished(SOURCE, now=0.0, complete=False)
    given_up = rank.holds(0)

    asked = rank.ingest.connected(SOURCE, now=0.0)
    rank.store_of(FIRST, [0, 1, 2], replayed=True)
    rank.ingest.replay_finished(SOURCE, now=0.0, complete=True)

    assert (given_up, asked) == (False, Receipt("connected", 0, snapshot_wanted=True))
    assert all(rank.holds(number) for number in range(3))
    assert (rank.status.restarts, rank.status.state) == (0, "live")


def test_what_comes_late_of_a_past_life_is_a_duplicate(rank: NamedRank) -> None:
    """A broker delivers again what was not acknowledged; it must not bring the dead life back."""
    rank.store_of(FIRST, [0, 1])
    rank.store_of(SECOND, [0])

    receipts = rank.store_of(FIRST, [0, 1])

    assert receipts == [Receipt("duplicate")] * 2
    assert (rank.holds(0), rank.holds(1), rank.status.restarts) == (True, False, 1)


def test_news_of_a_life_that_was_left_bring_it_back(rank: NamedRank) -> None:
    """The other one came late, and this one goes on."""
    rank.store_of(SECOND, [0, 1])
    rank.store_of(FIRST, [3])  # A late batch of a life before we came.

    (receipt,) = rank.store_of(SECOND, [2])
    rank.store_of(SECOND, [0, 1, 2], replayed=True)
    rank.ingest.replay_finished(SOURCE, now=0.0, complete=True)

    assert receipt == Receipt("restarted", 0)
    assert [rank.holds(number) for number in range(4)] == [True, True, True, False]


def test_a_replay_says_which_life_is_the_present_one(rank: NamedRank) -> None:
    """Even with numbers that were seen of it before it was left."""
    rank.store_of(SECOND, [0, 1])
    rank.store_of(FIRST, [3])

    rank.store_of(SECOND, [0, 1], replayed=True)
    resolved = rank.ingest.replay_finished(SOURCE, now=0.0, complete=True)

    assert resolved == Receipt("resolved")
    assert (rank.holds(0), rank.holds(1), rank.holds(3)) == (True, True, False)


def test_a_whole_replay_of_several_lives_ends_with_the_last_and_asks_no_more(rank: NamedRank) -> None:
    """A stream that outlives its publishers repeats them one after the other."""
    rank.ingest.connected(SOURCE, now=0.0)

    receipts = rank.store_of(FIRST, [4, 5], replayed=True)
    receipts += rank.store_of(SECOND, [0, 1, 2], replayed=True)
    receipts += rank.store_of(THIRD, [6], replayed=True)
    resolved = rank.ingest.replay_finished(SOURCE, now=0.0, complete=True)

    assert {receipt.replay_from for receipt in receipts} == {None}
    assert resolved == Receipt("resolved")
    assert [number for number in range(8) if rank.holds(number)] == [6]
    assert (rank.status.applied_sequence, rank.status.restarts) == (6, 2)


def test_a_replay_from_the_middle_that_shows_another_life_is_begun_anew(rank: NamedRank) -> None:
    """It was asked from where the old life stood."""
    rank.store_of(FIRST, [0, 1, 2])
    rank.ingest.connected(SOURCE, now=0.0)

    (shown,) = rank.store_of(SECOND, [2], replayed=True)
    rank.store_of(SECOND, [0, 1, 2], replayed=True)
    rank.ingest.replay_finished(SOURCE, now=0.0, complete=True)

    assert shown == Receipt("restarted", 0)
    assert all(rank.holds(number) for number in range(3))
    assert rank.status.gaps_lost == 0


def test_a_publisher_that_has_nothing_to_repeat_is_a_new_life_that_gets_its_name_later(rank: NamedRank) -> None:
    """One restart, not two."""
    rank.store_of(FIRST, [0])
    rank.ingest.connected(SOURCE, now=0.0)

    asked = rank.ingest.replay_finished(SOURCE, now=0.0, complete=True)
    rank.ingest.replay_finished(SOURCE, now=0.0, complete=True)
    (receipt,) = rank.store_of(SECOND, [0])

    assert asked == Receipt("restarted", 0)
    assert receipt == Receipt("applied")
    assert rank.status.restarts == 1


def test_after_a_reset_the_same_life_can_be_followed_again(rank: NamedRank) -> None:
    """It was given up for dead, and was not; what it said before is asked for again."""
    rank.store_of(FIRST, [0, 1])
    rank.ingest.reset(SOURCE, now=0.0, reason="no answer")

    receipts = rank.store_of(FIRST, [1, 2])
    rank.store_of(FIRST, [0, 1, 2], replayed=True)
    rank.ingest.replay_finished(SOURCE, now=0.0, complete=True)

    assert receipts == [Receipt("duplicate"), Receipt("gap", 0)]
    assert all(rank.holds(number) for number in range(3))


def test_a_wire_that_begins_to_name_lives_starts_over(rank: NamedRank) -> None:
    """Whose batches came before nobody can tell."""
    rank.arrive(None, 0, stored([1], tokens(1)))

    (receipt,) = rank.store_of(FIRST, [1])

    assert receipt == Receipt("restarted", 0)
    assert not rank.holds(0)


def test_batches_without_a_name_that_wait_do_not_follow_a_named_life(rank: NamedRank) -> None:
    """They may be of another one."""
    rank.arrive(None, 1, removed(7))

    rank.store_of(FIRST, [0])

    assert (rank.status.applied_sequence, rank.status.buffered_batches) == (0, 0)


def test_garbage_in_a_named_life_is_quarantined() -> None:
    """Under its number; the next one follows."""
    rank = NamedRank(limits=IngestLimits())

    receipt = rank.ingest.receive(SOURCE, 0, b"\xc1", now=0.0, incarnation=FIRST)

    assert receipt == Receipt("quarantined", snapshot_wanted=True)
    assert rank.store_of(FIRST, [1]) == [Receipt("applied")]


def test_only_the_last_lives_are_remembered(rank: NamedRank) -> None:
    """The bound costs a restart that a replay heals, never memory."""
    for life in range(1000):
        rank.store_of(life, [0])

    assert rank.store_of(990, [0]) == [Receipt("duplicate")]
    assert rank.store_of(1, [0]) == [Receipt("restarted", 0)]
