"""Order, loss and restarts of one source: what is applied, what is asked for, what is given up."""

import time

import pytest

from kvrouter.events import Source
from kvrouter.ingest import IngestLimits, Receipt
from tests.ingest.engines import CLEARED, RANK, SOURCE, Rank, payload, removed, stored, tokens


@pytest.fixture
def rank() -> Rank:
    """One followed source with blocks of four tokens."""
    return Rank()


def test_the_same_batch_twice_is_applied_once(rank: Rank) -> None:
    """A-304, A-502: a second application would count copies that do not exist."""
    rank.receive(0, stored([11], tokens(1)))

    receipt = rank.receive(0, stored([11], tokens(1)))
    rank.receive(1, removed(11))

    assert receipt == Receipt("duplicate")
    assert rank.usable(tokens(1)) == 0
    assert rank.status.duplicates == 1


def test_a_gap_asks_for_what_is_missing_and_holds_back_what_is_not(rank: Rank) -> None:
    """A-304: later batches wait; the replay fills in; nothing is applied twice or out of order."""
    rank.receive(0, stored([11], tokens(1)))

    gap = rank.receive(3, removed(12))
    held_back = rank.receive(4, stored([13], tokens(1, start=1), parent=11))
    lag, state = rank.status.lag, rank.status.state
    rank.receive(1, stored([12], tokens(1, start=1), parent=11), replayed=True)
    rank.receive(2, stored([20], tokens(1, start=9)), replayed=True)
    resolved = rank.ingest.replay_finished(SOURCE, now=0.0, complete=True)

    assert (gap, held_back, resolved) == (Receipt("gap", 1), Receipt("buffered"), Receipt("resolved"))
    assert (lag, state) == (4, "replaying")
    assert rank.usable(tokens(2)) == 8
    status = rank.status
    assert (status.state, status.applied_sequence, status.lag, status.gaps, status.gaps_lost) == ("live", 4, 0, 1, 0)


def test_a_gap_that_the_late_batch_closes_needs_no_replay(rank: Rank) -> None:
    """Reordering is not loss."""
    rank.receive(0, stored([11], tokens(1)))
    rank.receive(2, removed(12))

    rank.receive(1, stored([12], tokens(1, start=1), parent=11))

    assert rank.status.applied_sequence == 2
    assert rank.usable(tokens(2)) == 4


def test_a_gap_that_cannot_be_filled_costs_the_ranks_blocks(rank: Rank) -> None:
    """A removal may be among what is lost, and an overestimate never heals by itself."""
    rank.receive(0, stored([11], tokens(1)))
    rank.receive(2, stored([30], tokens(1, start=5)))

    receipt = rank.ingest.replay_finished(SOURCE, now=0.0, complete=False)

    assert receipt.replay_from is None
    assert rank.usable(tokens(1)) == 0
    assert rank.usable(tokens(1, start=5)) == 4
    assert (rank.status.gaps_lost, rank.status.applied_sequence, rank.status.state) == (1, 2, "live")


def test_what_was_given_up_unanswered_is_asked_for_again_over_a_new_connection(rank: Rank) -> None:
    """The publisher had it all the time, and could not be asked; the rank is followed anew from the beginning."""
    rank.receive(0, stored([11], tokens(1)))
    rank.receive(2, stored([30], tokens(1, start=5)))
    rank.ingest.replay_finished(SOURCE, now=0.0, complete=False)

    asked = rank.ingest.connected(SOURCE, now=0.0)
    rank.receive(0, stored([11], tokens(1)), replayed=True)
    rank.receive(1, stored([12], tokens(1, start=1), parent=11), replayed=True)
    rank.receive(2, stored([30], tokens(1, start=5)), replayed=True)
    resolved = rank.ingest.replay_finished(SOURCE, now=0.0, complete=True)

    assert (asked, resolved) == (Receipt("connected", 0, snapshot_wanted=True), Receipt("resolved"))
    assert (rank.usable(tokens(2)), rank.usable(tokens(1, start=5))) == (8, 4)
    assert (rank.status.restarts, rank.status.state) == (0, "live")
    assert rank.ingest.connected(SOURCE, now=0.0) == Receipt("connected", 2)


def test_a_publisher_that_lacks_what_was_given_up_costs_nothing_more(rank: Rank) -> None:
    """Its oldest batch is known to us: the rank goes on as it is."""
    rank.receive(0, stored([11], tokens(1)))
    rank.receive(2, stored([30], tokens(1, start=5)))
    rank.ingest.replay_finished(SOURCE, now=0.0, complete=False)

    rank.ingest.connected(SOURCE, now=0.0)
    receipt = rank.receive(2, stored([30], tokens(1, start=5)), replayed=True)
    rank.ingest.replay_finished(SOURCE, now=0.0, complete=True)

    assert receipt == Receipt("duplicate")
    assert rank.usable(tokens(1, start=5)) == 4
    assert (rank.status.restarts, rank.status.state) == (0, "live")


def test_what_was_given_up_long_ago_is_not_asked_for_again() -> None:
    """Our digests no longer tell which life such a replay would be of."""
    rank = Rank()
    rank.receive(2, stored([30], tokens(1, start=5)))
    rank.ingest.replay_finished(SOURCE, now=0.0, complete=False)
    for sequence in range(3, 4200):
        rank.receive(sequence, removed(5))

    assert rank.ingest.connected(SOURCE, now=0.0) == Receipt("connected", 4199, snapshot_wanted=True)


def test_a_replay_that_begins_too_late_costs_the_ranks_blocks(rank: Rank) -> None:
    """The publisher's ring is shorter than our absence."""
    rank.receive(0, stored([11], tokens(1)))
    rank.receive(9, stored([30], tokens(1, start=5)))

    rank.receive(8, stored([40], tokens(1, start=6)), replayed=True)

    assert rank.usable(tokens(1)) == 0
    assert rank.usable(tokens(1, start=6)) == 4
    assert (rank.status.gaps_lost, rank.status.applied_sequence) == (1, 9)


def test_all_holes_before_the_oldest_kept_batch_are_given_up_by_one_replay(rank: Rank) -> None:
    """It would be asked for each of them else, and nothing that came between two of them outlives the last one."""
    rank.receive(0, stored([11], tokens(1)))
    for sequence in (2, 4, 6):
        rank.receive(sequence, stored([20 + sequence], tokens(1, start=sequence)))

    rank.receive(8, stored([28], tokens(1, start=8)), replayed=True)
    finished = rank.ingest.replay_finished(SOURCE, now=0.0, complete=True)

    assert finished == Receipt("resolved", snapshot_wanted=False)
    assert rank.usable(tokens(1, start=6)) == 0
    assert rank.usable(tokens(1, start=8)) == 4
    status = rank.status
    assert (status.state, status.applied_sequence, status.lag, status.gaps_lost) == ("live", 8, 0, 1)
    assert status.incomplete


def test_a_hole_in_a_replay_is_asked_for_again_a_few_times() -> None:
    """Old engines drop replayed batches in the middle; a second answer may have them."""
    rank = Rank(limits=IngestLimits(replay_attempts_max=2))
    rank.receive(0, stored([11], tokens(1)))
    rank.receive(3, CLEARED)
    rank.receive(1, removed(5), replayed=True)
    rank.receive(3, CLEARED, replayed=True)

    again = [rank.ingest.replay_finished(SOURCE, now=0.0, complete=True) for _ in range(2)]
    given_up = rank.ingest.replay_finished(SOURCE, now=0.0, complete=True)

    assert again == [Receipt("gap", 2)] * 2
    assert given_up.replay_from is None
    assert (rank.status.gaps_lost, rank.status.applied_sequence) == (1, 3)


def test_replays_that_make_progress_go_on_under_steady_loss() -> None:
    """As long as each replay brings something, the rank catches up instead of being forgotten."""
    rank = Rank(limits=IngestLimits(replay_attempts_max=1))
    rank.receive(0, stored([11], tokens(1)))
    rank.receive(2, removed(5))

    asked = []
    for sequence in range(1, 20, 2):
        rank.receive(sequence + 3, removed(5))
        rank.receive(sequence, removed(5), replayed=True)
        asked.append(rank.ingest.replay_finished(SOURCE, now=0.0, complete=True).replay_from)

    assert asked == [sequence + 2 for sequence in range(1, 20, 2)]
    assert (rank.status.gaps_lost, rank.usable(tokens(1))) == (0, 4)


def test_waiting_batches_are_bounded() -> None:
    """Beyond the bound the gap is given up: memory has an end."""
    rank = Rank(limits=IngestLimits(buffered_batches_max=2))
    rank.receive(0, stored([11], tokens(1)))
    for sequence in (2, 3, 4):
        rank.receive(sequence, stored([sequence], tokens(1, start=sequence)))

    assert (rank.status.applied_sequence, rank.status.gaps_lost, rank.status.buffered_batches) == (4, 1, 0)
    assert rank.usable(tokens(1)) == 0


def test_other_bytes_under_an_old_number_are_another_life(rank: Rank) -> None:
    """Engines count from 0 again after a restart; the blocks of the old life are gone."""
    rank.receive(0, stored([11], tokens(1)))
    rank.receive(1, removed(99))

    receipt = rank.receive(0, stored([21], tokens(1, start=3)), stamp=50.0)

    assert receipt == Receipt("restarted", 0)
    assert rank.usable(tokens(1)) == 0
    assert rank.usable(tokens(1, start=3)) == 4
    assert (rank.status.restarts, rank.status.incarnation, rank.status.applied_sequence) == (1, 1, 0)


def test_a_restart_whose_first_batches_are_missed_is_replayed_from_the_start(rank: Rank) -> None:
    """Any lower number will do."""
    for sequence in range(5):
        rank.receive(sequence, stored([sequence], tokens(1, start=sequence)))

    receipt = rank.receive(1, removed(21), stamp=50.0)
    rank.receive(0, stored([21], tokens(1)), replayed=True, stamp=49.0)
    rank.ingest.replay_finished(SOURCE, now=0.0, complete=True)

    assert receipt == Receipt("restarted", 0)
    assert rank.usable(tokens(1)) == 0
    assert rank.status.applied_sequence == 1


def test_a_first_connection_asks_for_everything(rank: Rank) -> None:
    """The engine may have been busy before we came."""
    before = rank.status.state

    receipt = rank.ingest.connected(SOURCE, now=0.0)
    replaying = rank.status.state
    rank.receive(0, stored([11], tokens(1)), replayed=True)
    rank.ingest.replay_finished(SOURCE, now=0.0, complete=True)

    assert receipt == Receipt("connected", 0)
    assert (before, replaying, rank.status.state) == ("predicted", "replaying", "live")
    assert rank.usable(tokens(1)) == 4


def test_attaching_to_an_old_engine_loses_nothing_that_was_known(rank: Rank) -> None:
    """Its ring begins somewhere; there was nothing of ours to forget."""
    rank.ingest.connected(SOURCE, now=0.0)

    rank.receive(500, stored([11], tokens(1)), replayed=True)
    rank.ingest.replay_finished(SOURCE, now=0.0, complete=True)

    assert rank.usable(tokens(1)) == 4
    assert (rank.status.gaps, rank.status.gaps_lost, rank.status.applied_sequence) == (0, 0, 500)


def test_a_reconnection_resumes_where_the_publisher_repeats_our_last_batch(rank: Rank) -> None:
    """Live batches wait until it has."""
    rank.receive(0, stored([11], tokens(1)))
    rank.receive(1, stored([12], tokens(1, start=1), parent=11))
    rank.ingest.disconnected(SOURCE, now=0.0)
    suspect = rank.status.state

    asked = rank.ingest.connected(SOURCE, now=0.0)
    live = rank.receive(3, stored([13], tokens(1, start=2), parent=12))
    rank.receive(1, stored([12], tokens(1, start=1), parent=11), replayed=True)
    rank.receive(2, removed(77), replayed=True)
    rank.ingest.replay_finished(SOURCE, now=0.0, complete=True)

    assert (suspect, asked, live) == ("suspect", Receipt("connected", 1), Receipt("buffered"))
    assert rank.usable(tokens(3)) == 12
    assert (rank.status.state, rank.status.restarts) == ("live", 0)


def test_a_new_life_that_counted_past_the_old_one_is_noticed(rank: Rank) -> None:
    """Our last number exists there too, with other bytes."""
    rank.receive(0, stored([11], tokens(1)))
    rank.ingest.connected(SOURCE, now=0.0)

    receipt = rank.receive(0, stored([21], tokens(1, start=3)), replayed=True, stamp=50.0)

    assert receipt == Receipt("restarted", 0)
    assert rank.usable(tokens(1)) == 0


def test_a_publisher_without_our_last_batch_is_another_life(rank: Rank) -> None:
    """It answered, and had nothing: it has published less than we have seen."""
    rank.receive(0, stored([11], tokens(1)))
    rank.ingest.connected(SOURCE, now=0.0)

    receipt = rank.ingest.replay_finished(SOURCE, now=0.0, complete=True)

    assert receipt == Receipt("restarted", 0)
    assert rank.usable(tokens(1)) == 0


def test_a_publisher_that_cannot_be_asked_leaves_a_doubt(rank: Rank) -> None:
    """Without a replay endpoint the blocks stay, marked, and the stream goes on."""
    rank.receive(0, stored([11], tokens(1)))
    rank.ingest.connected(SOURCE, now=0.0)

    rank.ingest.replay_finished(SOURCE, now=0.0, complete=False)
    receipt = rank.receive(1, stored([12], tokens(1, start=1), parent=11))

    assert receipt == Receipt("applied")
    assert rank.status.state == "suspect"
    assert rank.usable(tokens(2)) == 8


def test_old_batches_that_wait_do_not_follow_a_new_lifes_first(rank: Rank) -> None:
    """They are older than the batch that they waited for."""
    rank.receive(1, stored([11], tokens(1)), stamp=10.0)

    rank.receive(0, stored([21], tokens(1, start=3)), stamp=500.0)

    assert rank.status.applied_sequence == 0
    assert rank.usable(tokens(1)) == 0


def test_garbage_is_quarantined_and_the_stream_goes_on(rank: Rank) -> None:
    """The cursor advances; the source is suspect until the engine's cache is known again."""
    rank.send(stored([11], tokens(1)))

    receipt = rank.ingest.receive(SOURCE, 1, b"\xc1 garbage", now=0.0)
    rank.sequence = 2
    rank.send(stored([12], tokens(1, start=1), parent=11))
    doubtful = rank.status

    assert receipt == Receipt("quarantined", snapshot_wanted=True)
    assert rank.usable(tokens(2)) == 8
    assert (doubtful.state, doubtful.quarantined, doubtful.applied_sequence) == ("suspect", 1, 2)
    assert doubtful.last_error is not None
    assert "batch 1" in doubtful.last_error
    rank.send(CLEARED)
    assert rank.status.state == "live"


def test_a_reset_of_the_gpu_does_not_end_doubts_about_the_host(rank: Rank) -> None:
    """The batch that nobody understood may have removed an offloaded copy."""
    rank.send(stored([11], tokens(1)), stored([11], tokens(1), medium="CPU"))
    rank.ingest.receive(SOURCE, 1, b"\xc1 garbage", now=0.0)
    rank.sequence = 2

    rank.send(CLEARED)

    assert rank.status.state == "suspect"


def test_a_skipped_event_is_counted_on_its_source(rank: Rank) -> None:
    """Under the decoder's reason."""
    rank.ingest.receive(SOURCE, 0, b"\x92\xcb" + bytes(8) + b"\x91\x07", now=0.0)

    assert rank.status.skipped == {"not_an_event": 1}


def test_reset_forgets_blocks_and_position_and_keeps_following(rank: Rank) -> None:
    """A dead worker's blocks are gone; its successor starts at 0."""
    rank.send(stored([11], tokens(1)))

    rank.ingest.reset(SOURCE, now=0.0, reason="process gone")
    forgotten = rank.usable(tokens(1))
    rank.receive(0, stored([11], tokens(1)), stamp=50.0)

    assert forgotten == 0
    assert rank.usable(tokens(1)) == 4
    assert (rank.status.incarnation, rank.status.last_error) == (1, "process gone")


def test_unknown_sources_are_answered_and_ignored(rank: Rank) -> None:
    """A late message of a removed worker is normal."""
    other = Source("nobody", 0)

    assert rank.ingest.receive(other, 0, b"", now=0.0) == Receipt("unknown_source")
    assert rank.ingest.connected(other, now=0.0) == Receipt("unknown_source")
    assert rank.ingest.replay_finished(other, now=0.0, complete=True) == Receipt("unknown_source")
    rank.ingest.disconnected(other, now=0.0)
    rank.ingest.reset(other, now=0.0, reason="x")
    rank.ingest.name_adapter(other, lora_id=1, name="x")
    assert rank.ingest.is_trusted(77) == "predicted"


def test_a_replay_that_nobody_asked_for_is_closed_quietly(rank: Rank) -> None:
    """For example after a reset."""
    assert rank.ingest.replay_finished(SOURCE, now=0.0, complete=True) == Receipt("resolved")


def test_the_age_of_the_last_event_is_told(rank: Rank) -> None:
    """A source that fell silent can be seen."""
    silent = rank.status.last_event_age
    rank.receive(0, CLEARED)

    assert silent is None
    assert rank.status.last_event_age == 1000.0
    assert rank.status.dense_rank == RANK


def test_a_long_replay_does_not_look_at_all_that_waits_for_every_batch() -> None:
    """Thousands of live batches wait while thousands are replayed; their product would be minutes."""

    def seconds(waiting: int) -> float:
        rank, batch = Rank(), payload(CLEARED, stamp=5.0)
        rank.receive(0, stored([11], tokens(1)))
        for number in range(waiting):
            rank.ingest.receive(SOURCE, 2000 + number, batch, now=0.0)
        before = time.thread_time()
        for number in range(1, 1500):
            rank.ingest.receive(SOURCE, number, batch, now=0.0, replayed=True)
        return time.thread_time() - before

    few = min(seconds(100) for _ in range(3))
    many = min(seconds(10_000) for _ in range(3))

    assert many < 15 * few  # about equal; 60 times as long if each one was looked at
