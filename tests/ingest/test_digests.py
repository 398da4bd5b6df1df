"""Digests: the publisher says in few numbers what it holds, and what we believe is confirmed or disproved."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvrouter.events import Event
from kvrouter.events.digest import DigestRow, mix64
from kvrouter.ingest import Receipt
from kvrouter.ingest.digests import xor_of
from tests.ingest.engines import CLEARED, SOURCE, Rank, payload, removed, stored, tokens

LIFE = 77

pytestmark = pytest.mark.usefixtures("implementation")


def row(*hashes: int, medium: str | None = "GPU", group: int = 0) -> DigestRow:
    """What a publisher says that holds these."""
    xor = 0
    for engine_hash in hashes:
        xor ^= mix64(engine_hash)
    return DigestRow(medium, group, len(hashes), xor)


class DigestingRank(Rank):
    """One followed source whose publisher sends digests."""

    def arrive(self, sequence: int, *events: Event, digest: tuple[DigestRow, ...] | None = None) -> Receipt:
        """A batch arrives."""
        return self.ingest.receive(SOURCE, sequence, payload(*events), now=0.0, incarnation=LIFE, digest=digest)


@pytest.fixture
def rank() -> DigestingRank:
    """Two blocks are known."""
    rank = DigestingRank()
    rank.arrive(0, stored([11, 12], tokens(2)))
    return rank


@given(st.sets(st.integers(0, 2**64 - 1)))
def test_all_at_once_is_the_same_as_one_by_one(hashes: set[int]) -> None:
    """The publisher mixes one hash at a time, we mix all."""
    assert xor_of(hashes) == row(*hashes).xor


def test_a_digest_that_matches_says_so(rank: DigestingRank) -> None:
    """Also with an empty batch."""
    receipt = rank.arrive(1, digest=(row(11, 12),))

    assert receipt == Receipt("applied")
    assert (rank.status.digests_matched, rank.status.digest_mismatches, rank.status.state) == (1, 0, "live")


@pytest.mark.parametrize(
    "digest", [(row(11),), (row(11, 13),), (row(11, 12), row(5, medium="CPU")), (), (row(11, 12, group=1),)]
)
def test_a_digest_that_does_not_match_makes_the_source_suspect(
    rank: DigestingRank, digest: tuple[DigestRow, ...]
) -> None:
    """Whatever went wrong, nobody trusts it until the snapshot has come."""
    receipt = rank.arrive(1, digest=digest)

    assert receipt == Receipt("applied", snapshot_wanted=True)
    assert (rank.status.digest_mismatches, rank.status.state) == (1, "suspect")
    assert "digest" in (rank.status.last_error or "")


def test_a_mismatch_asks_once(rank: DigestingRank) -> None:
    """Every digest that follows says the same until the snapshot has come."""
    rank.arrive(1, digest=(row(11),))

    again = rank.arrive(2, digest=(row(11),))

    assert again == Receipt("applied")
    assert rank.status.digest_mismatches == 2


def test_what_is_disproved_is_forgotten_when_no_snapshot_can_be_had(rank: DigestingRank) -> None:
    """It is known to be wrong; the next digest asks again."""
    rank.arrive(1, digest=(row(11),))

    rank.ingest.snapshot_failed(SOURCE, now=0.0)
    forgotten = rank.usable(tokens(2))
    again = rank.arrive(2, digest=(row(11),))

    assert forgotten == 0
    assert again.snapshot_wanted
    assert (rank.status.digest_mismatches, rank.status.incomplete, rank.status.doubt) == (1, True, None)


def test_a_match_clears_a_doubt(rank: DigestingRank) -> None:
    """All that is believed is held, for whatever reason it was doubted."""
    rank.ingest.doubt(SOURCE, reason="promised too much", now=0.0)
    doubtful = rank.status.state

    rank.arrive(1, digest=(row(11, 12),))

    assert (doubtful, rank.status.state) == ("suspect", "live")
    assert not rank.status.snapshot_awaited


def test_a_batch_that_was_not_understood_may_have_changed_copies_of_which_no_digest_tells(
    rank: DigestingRank,
) -> None:
    """It ends no doubt then: a removal to come may be one too few."""
    rank.ingest.receive(SOURCE, 1, b"\xc1", now=0.0, incarnation=LIFE, digest=(row(11, 12),))

    status = rank.status
    assert (status.digests_matched, status.state, status.snapshot_awaited) == (1, "suspect", True)


def test_a_digest_waits_with_its_batch(rank: DigestingRank) -> None:
    """It is compared with what is believed after that batch, not after the ones that are there already."""
    early = rank.arrive(2, removed(12), digest=(row(11),))
    before = rank.status.digests_matched
    rank.arrive(1, stored([13], tokens(1, start=2), parent=12))
    rank.arrive(3, removed(13), digest=(row(11),))

    assert (early.outcome, before) == ("gap", 0)
    assert (rank.status.digests_matched, rank.status.digest_mismatches) == (1, 1)


def test_media_of_one_tier_are_compared_only_where_they_can_be(rank: DigestingRank) -> None:
    """The same hash may be in two media that are one tier to us."""
    rank.arrive(1, stored([11], tokens(1), medium="CPU"), stored([11], tokens(1), medium="CPU_PINNED"))

    rank.arrive(2, digest=(row(11, 12), row(11, medium="CPU"), row(11, medium="CPU_PINNED")))
    rank.arrive(3, digest=(row(12), row(11, medium="CPU"), row(11, medium="CPU_PINNED")))

    assert (rank.status.digests_matched, rank.status.digest_mismatches) == (1, 1)


def test_what_is_not_on_the_rank_is_not_ours_to_know(rank: DigestingRank) -> None:
    """Shared and remote stores have their own publishers."""
    rank.arrive(1, digest=(row(11, 12), row(99, medium="EXTERNAL")))

    assert rank.status.digests_matched == 1


@pytest.mark.parametrize("fields", [{}, {"medium": "CPU"}, {"group_idx": 1}])
def test_an_empty_cache_has_no_rows(rank: DigestingRank, fields: dict[str, Any]) -> None:
    """Nor has an empty place."""
    rank.arrive(1, stored([21], tokens(1), **fields), removed(21, **fields), CLEARED, digest=())

    assert rank.status.digests_matched == 1


def test_a_match_does_not_make_whole_what_is_incomplete(rank: DigestingRank) -> None:
    """The same hashes may have copies that were missed, or nobody said what they are: each digest asks again."""
    rank.arrive(2, stored([11, 12], tokens(2)))
    rank.ingest.replay_finished(SOURCE, now=0.0, complete=False)
    rank.ingest.snapshot_failed(SOURCE, now=0.0)

    receipt = rank.arrive(3, digest=(row(11, 12),))

    assert receipt.snapshot_wanted
    assert (rank.status.digests_matched, rank.status.incomplete) == (1, True)
