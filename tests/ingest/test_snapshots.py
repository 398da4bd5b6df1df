"""Snapshots: when one is wanted, what it replaces, and what becomes of those that cannot be used."""

import pytest

from kvrouter.events import Event
from kvrouter.ingest import IngestLimits, Receipt
from kvrouter_publishers.resident_set import ResidentSet
from tests.ingest.engines import CLEARED, RANK, SOURCE, Rank, payload, removed, stored, tokens

FIRST, SECOND = 2**64 - 1, 5

pytestmark = pytest.mark.usefixtures("implementation")


class NamedRank(Rank):
    """One followed source that names its lives, and what its publisher holds."""

    def __init__(self, *, limits: IngestLimits | None = None) -> None:
        super().__init__(limits=limits)
        self.resident = ResidentSet()

    def arrive(self, sequence: int, *events: Event, life: int = FIRST, replayed: bool = False) -> Receipt:
        """A batch of that life and number arrives."""
        self.resident.apply(events)
        return self.ingest.receive(SOURCE, sequence, payload(*events), now=0.0, replayed=replayed, incarnation=life)

    def store(self, sequence: int, *, life: int = FIRST, replayed: bool = False) -> Receipt:
        """The batch with number N stores the N-th block."""
        return self.arrive(sequence, stored([sequence + 1], tokens(1, start=sequence)), life=life, replayed=replayed)

    def snapshot(self, sequence: int, *events: Event, life: int | None = FIRST, stamp: float = 0.0) -> Receipt:
        """A snapshot in parts of one event arrives."""
        parts = [payload(event, stamp=stamp) for event in events] or [payload(stamp=stamp)]
        return self.ingest.snapshot(SOURCE, parts, sequence=sequence, incarnation=life, now=0.0)

    def held(self, blocks: int) -> list[int]:
        """The numbers of the blocks that are claimed."""
        return [number for number in range(blocks) if self.usable(tokens(1, start=number)) == 4]


def store_of(number: int) -> Event:
    """What a snapshot says of the N-th block."""
    return stored([number + 1], tokens(1, start=number))


@pytest.fixture
def rank() -> NamedRank:
    """Blocks of four tokens."""
    return NamedRank()


def test_a_late_joiner_wants_a_snapshot_and_has_everything_with_it(rank: NamedRank) -> None:
    """The ring begins after the first batches; the blocks that they told of come all the same."""
    rank.ingest.connected(SOURCE, now=0.0)

    joined = rank.store(40, replayed=True)
    before = (rank.held(42), rank.status.state, rank.status.incomplete)
    rank.ingest.replay_finished(SOURCE, now=0.0, complete=True)
    receipt = rank.snapshot(40, *map(store_of, range(41)))
    rank.store(41)

    assert joined == Receipt("applied", snapshot_wanted=True)
    assert before == ([40], "replaying", True)
    assert receipt == Receipt("applied")
    assert rank.held(42) == list(range(42))
    assert (rank.status.state, rank.status.incomplete, rank.status.snapshots_applied) == ("live", False, 1)


def test_a_gap_that_no_replay_fills_wants_a_snapshot(rank: NamedRank) -> None:
    """Meanwhile the rank claims only what it was told since."""
    rank.store(0)
    rank.store(2)

    receipt = rank.ingest.replay_finished(SOURCE, now=0.0, complete=False)
    meanwhile = rank.held(3)
    rank.snapshot(2, store_of(0), store_of(1), store_of(2))

    assert receipt.snapshot_wanted
    assert meanwhile == [2]
    assert rank.held(3) == [0, 1, 2]


def test_batches_that_came_after_the_snapshot_was_made_count_as_well(rank: NamedRank) -> None:
    """It was made before they were published, and arrives after they were applied."""
    rank.store(0)
    rank.store(2)
    rank.ingest.replay_finished(SOURCE, now=0.0, complete=False)
    rank.store(3)
    rank.arrive(4, removed(1))

    receipt = rank.snapshot(2, store_of(0), store_of(1), store_of(2))

    assert receipt == Receipt("applied")
    assert rank.held(5) == [1, 2, 3]
    assert rank.status.applied_sequence == 4


def test_what_waits_beyond_a_snapshot_is_applied_and_what_lies_before_it_is_not(rank: NamedRank) -> None:
    """A snapshot closes the gap that they waited for."""
    rank.store(0)
    rank.store(5)
    rank.arrive(3, removed(1))

    receipt = rank.snapshot(4, store_of(0), store_of(4))

    assert receipt == Receipt("applied")
    assert rank.held(6) == [0, 4, 5]
    assert (rank.status.applied_sequence, rank.status.buffered_batches) == (5, 0)


def test_a_hole_behind_a_snapshot_is_asked_for(rank: NamedRank) -> None:
    """Nothing else would show it before the next batch."""
    rank.ingest.connected(SOURCE, now=0.0)
    rank.store(9)
    rank.ingest.replay_finished(SOURCE, now=0.0, complete=False)
    rank.store(12)
    rank.ingest.replay_finished(SOURCE, now=0.0, complete=True)

    receipt = rank.snapshot(10, store_of(9))

    assert receipt == Receipt("applied")  # The second replay, which was asked for at 10, brings it.
    rank.store(11, replayed=True)
    assert rank.held(13) == [9, 11, 12]


def test_an_older_snapshot_changes_nothing(rank: NamedRank) -> None:
    """It says what was true once."""
    rank.store(0)
    rank.arrive(1, removed(1))

    receipt = rank.snapshot(0, store_of(0))

    assert receipt == Receipt("duplicate")
    assert rank.held(1) == []


def test_a_snapshot_that_is_too_old_for_what_is_kept_is_asked_for_once_more() -> None:
    """The memory of applied batches is bounded."""
    rank = NamedRank(limits=IngestLimits(buffered_batches_max=2))
    rank.store(0)
    rank.ingest.doubt(SOURCE, reason="a test", now=0.0)
    for sequence in (1, 2, 3):
        rank.store(sequence)

    receipts = [rank.snapshot(sequence, *map(store_of, range(sequence + 1))) for sequence in (0, 1)]

    assert receipts == [Receipt("duplicate", snapshot_wanted=True), Receipt("applied")]
    assert rank.held(4) == [0, 1, 2, 3]


def test_a_snapshot_of_another_life_begins_that_life(rank: NamedRank) -> None:
    """Nothing of the old one is left, and what follows the snapshot is asked for."""
    rank.store(0)
    rank.store(1)

    receipt = rank.snapshot(7, store_of(1), store_of(7), life=SECOND)
    rank.store(8, life=SECOND)
    late = rank.store(0)

    assert receipt == Receipt("restarted", 8)
    assert late == Receipt("duplicate")
    assert rank.held(9) == [1, 7, 8]
    assert (rank.status.restarts, rank.status.incarnation, rank.status.applied_sequence) == (1, 1, 8)


def test_a_late_snapshot_of_a_life_that_was_left_is_a_duplicate(rank: NamedRank) -> None:
    """A dead engine's cache must not come back."""
    rank.store(0)
    rank.store(0, life=SECOND)
    rank.arrive(1, removed(1), life=SECOND)

    receipt = rank.snapshot(0, store_of(0), store_of(1))

    assert receipt == Receipt("duplicate")
    assert rank.held(2) == []


@pytest.mark.parametrize("bad", [b"\xc1", payload(CLEARED)[:-2], b"\x92\x00\x91\x07", b""])
def test_a_snapshot_with_anything_that_is_not_understood_is_refused_whole(rank: NamedRank, bad: bytes) -> None:
    """The sound parts of it are not believed either, and the source goes on as it was."""
    rank.store(0)
    parts = [payload(store_of(3)), bad]

    receipt = rank.ingest.snapshot(SOURCE, parts, sequence=4, incarnation=FIRST, now=0.0)

    assert receipt.outcome == "quarantined"
    assert (rank.held(4), rank.status.applied_sequence) == ([0], 0)
    assert (rank.status.snapshots_refused, rank.status.snapshots_applied) == (1, 0)
    assert "snapshot after batch 4" in (rank.status.last_error or "")


def test_a_snapshot_without_a_part_is_refused(rank: NamedRank) -> None:
    """An empty cache is one empty part."""
    rank.store(0)

    refused = rank.ingest.snapshot(SOURCE, [], sequence=1, incarnation=FIRST, now=0.0)
    emptied = rank.snapshot(1)

    assert (refused.outcome, emptied.outcome) == ("quarantined", "applied")
    assert rank.held(1) == []


def test_garbage_is_healed_by_a_snapshot(rank: NamedRank) -> None:
    """The batch that nobody understood removed a block."""
    rank.store(0)
    rank.store(1)
    bad = rank.ingest.receive(SOURCE, 2, b"\xc1", now=0.0, incarnation=FIRST)
    doubtful = rank.status.state

    rank.snapshot(2, store_of(1))

    assert bad == Receipt("quarantined", snapshot_wanted=True)
    assert doubtful == "suspect"
    assert (rank.held(2), rank.status.state, rank.status.doubt) == ([1], "live", None)


def test_a_snapshot_is_wanted_once(rank: NamedRank) -> None:
    """Until it came, failed, or the connection was made anew."""
    rank.store(0)
    rank.ingest.doubt(SOURCE, reason="a test", now=0.0)

    first, second = rank.store(1), rank.store(2)
    again = rank.ingest.connected(SOURCE, now=0.0)

    assert (first.snapshot_wanted, second.snapshot_wanted, again.snapshot_wanted) == (True, False, True)


def test_a_doubt_stays_when_no_snapshot_can_be_had(rank: NamedRank) -> None:
    """What is believed may be right: it stays, marked."""
    rank.store(0)
    rank.ingest.doubt(SOURCE, reason="promised too much", now=0.0)

    rank.ingest.snapshot_failed(SOURCE, now=0.0)

    assert (rank.held(1), rank.status.state, rank.status.doubt) == ([0], "suspect", "promised too much")
    assert (rank.status.snapshots_missed, rank.status.snapshot_awaited) == (1, False)


def test_a_doubt_ends_when_its_reason_does(rank: NamedRank) -> None:
    """Requests found again what was promised."""
    rank.store(0)
    rank.ingest.doubt(SOURCE, reason="promised too much", now=0.0)

    rank.ingest.trust(SOURCE, now=0.0)

    assert (rank.held(1), rank.status.state, rank.status.doubt) == ([0], "live", None)
    assert not rank.store(1).snapshot_wanted


def test_what_the_events_show_is_not_talked_away(rank: NamedRank) -> None:
    """A batch that nobody understood stays a reason, whatever requests found."""
    rank.store(0)
    rank.ingest.receive(SOURCE, 1, b"\xc1", now=0.0, incarnation=FIRST)
    rank.ingest.doubt(SOURCE, reason="promised too much", now=0.0)

    rank.ingest.trust(SOURCE, now=0.0)

    assert (rank.status.state, rank.status.doubt) == ("suspect", "a batch was not understood")


def test_a_snapshot_that_never_comes_is_not_awaited_for_ever() -> None:
    """A transport may not know how to get one."""
    rank = NamedRank(limits=IngestLimits(snapshot_seconds_max=5.0))
    rank.ingest.connected(SOURCE, now=0.0)
    rank.store(40, replayed=True)
    rank.ingest.replay_finished(SOURCE, now=0.0, complete=True)
    waiting = rank.status.state

    rank.ingest.receive(SOURCE, 41, payload(), now=6.0, incarnation=FIRST)

    assert waiting == "replaying"
    assert (rank.status.state, rank.status.snapshots_missed, rank.status.incomplete) == ("live", 1, True)


def test_a_whole_replay_heals_a_doubt_as_well(rank: NamedRank) -> None:
    """For engines without snapshots, whose ring still has everything."""
    rank.store(0)
    rank.store(1)
    rank.ingest.doubt(SOURCE, reason="promised too much", now=0.0)

    rank.store(0, replayed=True)
    rank.arrive(1, removed(1), replayed=True)
    rank.ingest.replay_finished(SOURCE, now=0.0, complete=True)

    assert (rank.held(2), rank.status.state, rank.status.restarts) == ([], "live", 0)


def test_a_replay_that_begins_late_changes_nothing_about_a_doubt(rank: NamedRank) -> None:
    """It could not tell what it leaves out."""
    rank.store(0)
    rank.store(1)
    rank.ingest.doubt(SOURCE, reason="promised too much", now=0.0)

    receipt = rank.store(1, replayed=True)

    assert receipt.outcome == "duplicate"
    assert (rank.held(2), rank.status.state) == ([0, 1], "suspect")


def test_a_whole_replay_that_lacks_the_beginning_of_a_long_life_is_no_restart() -> None:
    """It was asked for because of a doubt; what it repeats is longer ago than bytes are remembered."""
    rank = Rank()
    rank.receive(0, store_of(0))
    for sequence in range(1, 5000):
        rank.receive(sequence, removed(9))
    rank.ingest.doubt(SOURCE, reason="promised too much", now=0.0)

    receipts = {rank.receive(sequence, removed(9), replayed=True).outcome for sequence in range(7, 5000)}
    rank.ingest.replay_finished(SOURCE, now=0.0, complete=True)

    assert receipts == {"duplicate"}
    assert (rank.usable(tokens(1)), rank.status.restarts, rank.status.state) == (4, 0, "suspect")


def test_nothing_is_doubted_before_anything_is_known(rank: NamedRank) -> None:
    """There is no snapshot of a publisher that published nothing."""
    rank.ingest.doubt(SOURCE, reason="a test", now=0.0)

    assert rank.status.state == "predicted"


def test_a_wire_without_names_goes_on_after_a_snapshot() -> None:
    """Late batches that the snapshot covers are duplicates; newer ones with lower numbers are another life's."""
    rank = NamedRank()
    rank.receive(0, store_of(0), stamp=10.0)
    rank.receive(1, store_of(1), stamp=11.0)

    rank.snapshot(4, store_of(1), life=None, stamp=20.0)
    covered = rank.receive(3, store_of(3), stamp=19.0)
    following = rank.receive(5, store_of(5), stamp=21.0)
    held = rank.held(6)
    newer = rank.receive(2, store_of(2), stamp=30.0)

    assert (covered.outcome, following.outcome) == ("duplicate", "applied")
    assert held == [1, 5]
    assert newer.outcome == "restarted"


def test_a_reconnection_after_a_snapshot_is_no_restart() -> None:
    """The publisher repeats our last batch, whose bytes we never saw, because the snapshot covered it."""
    rank = NamedRank()
    rank.receive(0, store_of(0), stamp=10.0)
    rank.snapshot(4, store_of(1), life=None, stamp=20.0)

    asked = rank.ingest.connected(SOURCE, now=0.0)
    rank.receive(4, store_of(4), stamp=19.0, replayed=True)
    rank.receive(5, store_of(5), stamp=21.0, replayed=True)
    rank.ingest.replay_finished(SOURCE, now=0.0, complete=True)

    assert asked == Receipt("connected", 4)
    assert (rank.held(6), rank.status.restarts, rank.status.state) == ([1, 5], 0, "live")


def test_copies_come_with_a_snapshot(rank: NamedRank) -> None:
    """A block stays until its last copy is gone, also where the copies were counted by somebody else."""
    rank.ingest.connected(SOURCE, now=0.0)
    resident = ResidentSet()
    resident.apply([stored([1, 2], tokens(2)), stored([1, 2], tokens(2)), removed(2)])

    rank.snapshot(9, *resident.snapshot())
    copies = rank.ingest.copies(SOURCE)
    rank.arrive(10, removed(1))
    one_left = rank.usable(tokens(2))
    rank.arrive(11, removed(1))

    assert copies == {("gpu", 0): {1: 2, 2: 1}}
    assert (one_left, rank.usable(tokens(2))) == (8, 0)


def test_a_block_behind_one_that_is_gone_is_known_from_a_snapshot(rank: NamedRank) -> None:
    """Mid-chain eviction: the middle comes back later, by its own store."""
    resident = ResidentSet()
    resident.apply([stored([1, 2, 3], tokens(3)), removed(2)])

    rank.snapshot(9, *resident.snapshot())
    holed = rank.usable(tokens(3))
    rank.arrive(10, stored([2], tokens(1, start=1), parent=1))

    assert (holed, rank.usable(tokens(3))) == (4, 12)


def test_nobody_is_told_of_unknown_sources(rank: NamedRank) -> None:
    """A late answer for a removed worker is normal."""
    other = SOURCE._replace(worker_id="nobody")

    assert rank.ingest.snapshot(other, [], sequence=0, incarnation=0, now=0.0) == Receipt("unknown_source")
    rank.ingest.snapshot_failed(other, now=0.0)
    rank.ingest.doubt(other, reason="x", now=0.0)
    rank.ingest.trust(other, now=0.0)
    assert rank.ingest.is_trusted(RANK) == "predicted"
