"""The reference index passes the contract."""

import pytest

from kvrouter.index import reference as module
from kvrouter.index.overlap import ArrayOverlap
from kvrouter.index.reference import PrefixIndex
from tests.index.contract import PrefixIndexContract


class TestReference(PrefixIndexContract):
    """The specification holds itself to the contract."""

    @pytest.fixture
    def index(self) -> PrefixIndex:
        return PrefixIndex()

    def test_forgetting_the_shared_sets_is_never_visible(
        self, index: PrefixIndex, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The memories behind the sharing are bounded; overflowing them keeps every answer."""
        monkeypatch.setattr(module, "_SETS_MAX", 3)
        monkeypatch.setattr(module, "_MEMBERS_MAX", 3)

        self.test_many_different_sets_of_ranks_stay_exact(index)
        self.test_random_histories_agree_with_a_naive_model(index)


def test_an_overlap_is_ordered_by_rank() -> None:
    """Whatever order ranks were found in."""
    overlap = ArrayOverlap.from_depths({9: 1, 2: 5})

    assert overlap.ranks.tolist() == [2, 9]
    assert overlap.depths() == {2: 5, 9: 1}


def test_tiers_are_listed_once_used() -> None:
    """Reports iterate over what exists."""
    index = PrefixIndex()
    index.store(0, [1], tier="cpu")

    assert index.tiers() == ("cpu",)
