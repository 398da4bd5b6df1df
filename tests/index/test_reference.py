"""The reference index passes the contract, and tells a damaged snapshot from a foreign one."""

import struct

import pytest
from xxhash import xxh3_64_intdigest

from kvrouter import index as package
from kvrouter.errors import SnapshotError
from kvrouter.index import Overlap, PrefixIndex
from kvrouter.index import reference as module
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


def test_the_package_names_its_implementation() -> None:
    """Operators can see which core answers."""
    assert package.implementation == "reference"
    assert package.PrefixIndex is PrefixIndex


def test_an_overlap_is_ordered_by_rank() -> None:
    """Whatever order ranks were found in."""
    overlap = Overlap.from_depths({9: 1, 2: 5})

    assert overlap.ranks.tolist() == [2, 9]
    assert overlap.depths() == {2: 5, 9: 1}


def test_tiers_are_listed_once_used() -> None:
    """Reports iterate over what exists."""
    index = PrefixIndex()
    index.store(0, [1], tier="cpu")

    assert index.tiers() == ("cpu",)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda head, body: b"otherfmt" + head[8:] + body, "not an index snapshot"),
        (lambda head, body: head[:8] + b"\x09" + head[9:] + body, "version 9"),
        (lambda head, body: sealed(body[:-1] + b"\x07"), "no rank set"),
        (lambda head, body: sealed(body[:-8] + body[-4:] + body[-4:] + b"\0"), "its length"),
        (lambda head, body: sealed(body[:2] + b"\xff\xff\xff\x7f" + body[6:]), "longer than"),
        (lambda head, body: sealed(body[:18] + b"\xff" + body[19:]), "damaged"),
        (lambda head, body: sealed(body[:-24] + body[-16:-8] + body[-16:]), "appears twice"),
        (lambda head, body: sealed(body[:21] + b"\0" + body[22:]), "no rank set"),
        (lambda head, body: sealed(body + body, tiers=2), "its length"),
    ],
)
def test_a_well_sealed_lie_is_refused(change, words: str) -> None:  # type: ignore[no-untyped-def]
    """A right checksum over wrong contents does not crash the reader or fool it."""
    index = PrefixIndex()
    index.store(0, [1, 2])
    good = index.snapshot()

    with pytest.raises(SnapshotError, match=words):
        PrefixIndex.restore(change(good[:24], good[24:]))


def sealed(body: bytes, *, tiers: int = 1) -> bytes:
    """A snapshot around `body` whose head and checksum are right."""
    count = struct.pack("<I", tiers)
    return b"kvrindex" + struct.pack("<IQ", 1, xxh3_64_intdigest(count + body)) + count + body
