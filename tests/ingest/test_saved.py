"""Saving and restoring: another router goes on where one stood, and damaged bytes change nothing."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvrouter.blocks import Prompt
from kvrouter.errors import SnapshotError
from kvrouter.events import TIERS, Event, Source
from kvrouter.index import PrefixIndex
from kvrouter.ingest import Ingest, Receipt
from tests.ingest.engines import CLEARED, RANK, SOURCE, Rank, payload, removed, stored, tokens
from tests.ingest.test_any_events import _events

OTHER_RANK = 9

pytestmark = pytest.mark.usefixtures("implementation")


class RestoredRank(Rank):
    """A rank that knows what another one saved, under another dense number."""

    def __init__(self, data: bytes, *, sequence: int, **options: Any) -> None:
        super().__init__(**options)
        self.ingest.close(SOURCE)
        self.ingest.open(SOURCE, OTHER_RANK, block_size=options.get("block_size", 4), now=0.0)
        self.report = self.ingest.restore(data, now=0.0)
        self.sequence = sequence

    def usable(self, token_ids: Sequence[int], *, salt: bytes = b"", lora: str | None = None) -> int:
        """As `Rank.usable`, of the other number."""
        prompt = Prompt([*token_ids, 7, 8], salt=salt, lora=lora)
        return self.ingest.usable_tokens(prompt).get(OTHER_RANK, 0)


def saved(rank: Rank) -> RestoredRank:
    """The same in another router."""
    return RestoredRank(rank.ingest.save(), sequence=rank.sequence)


@pytest.fixture
def rank() -> Rank:
    """One followed source with blocks of four tokens."""
    return Rank()


def test_a_restored_source_claims_what_it_claimed_and_is_in_doubt(rank: Rank) -> None:
    """Until its publisher repeats the last batch."""
    rank.send(stored([11, 12], tokens(2)))

    other = saved(rank)
    state = other.status.state
    asked = other.ingest.connected(SOURCE, now=0.0)
    other.receive(0, stored([11, 12], tokens(2)), replayed=True)
    other.ingest.replay_finished(SOURCE, now=0.0, complete=True)

    assert (other.report.restored, other.report.skipped, other.report.blocks) == ((SOURCE,), (), 2)
    assert other.usable(tokens(2)) == 8
    assert (state, asked, other.status.state) == ("suspect", Receipt("connected", 0), "live")
    assert other.status.applied_sequence == 0


def test_a_restored_source_goes_on_with_what_it_missed(rank: Rank) -> None:
    """The router was away for two batches."""
    rank.send(stored([11, 12], tokens(2)))
    other = saved(rank)

    other.ingest.connected(SOURCE, now=0.0)
    other.receive(0, stored([11, 12], tokens(2)), replayed=True)
    other.receive(1, removed(12), replayed=True)
    other.receive(2, stored([13], tokens(1, start=5), parent=11), replayed=True)
    other.ingest.replay_finished(SOURCE, now=0.0, complete=True)

    assert (other.usable(tokens(2)), other.usable([*tokens(1), *tokens(1, start=5)])) == (4, 8)


def test_an_engine_that_restarted_meanwhile_is_noticed(rank: Rank) -> None:
    """Its batch of our last number has other bytes."""
    rank.send(stored([11, 12], tokens(2)))
    other = saved(rank)

    other.ingest.connected(SOURCE, now=0.0)
    receipt = other.receive(0, stored([21], tokens(1, start=7)), replayed=True, stamp=9.0)

    assert receipt == Receipt("restarted", 0)
    assert other.usable(tokens(2)) == 0


def test_a_named_life_is_known_by_its_name(rank: Rank) -> None:
    """And lives that were left stay left."""
    for life, batch in ((5, [stored([1], tokens(1))]), (6, [stored([11, 12], tokens(2))])):
        rank.ingest.receive(SOURCE, 0, payload(*batch), now=0.0, incarnation=life)
    other = saved(rank)

    late = other.ingest.receive(SOURCE, 0, payload(CLEARED), now=0.0, incarnation=5)
    doubtful = other.status.state
    following = other.ingest.receive(SOURCE, 1, payload(removed(12)), now=0.0, incarnation=6)
    other.ingest.connected(SOURCE, now=0.0)
    other.ingest.receive(SOURCE, 1, payload(removed(12)), now=0.0, incarnation=6, replayed=True)
    other.ingest.replay_finished(SOURCE, now=0.0, complete=True)

    assert (late, doubtful, following) == (Receipt("duplicate"), "suspect", Receipt("applied"))
    assert (other.usable(tokens(2)), other.status.state) == (4, "live")


def test_copies_tiers_and_meanings_come_back(rank: Rank) -> None:
    """What was counted, what waits for its meaning, what waits for a parent, and what is gone and may be continued."""
    rank.send(stored([11, 12], tokens(2)), stored([11], tokens(1)), stored([11], tokens(1)))
    rank.send(stored([11, 12], tokens(2), medium="CPU"), stored([77], (), size=0, medium="CPU"))
    rank.send(stored([13], tokens(1, start=2), parent=12), removed(13))
    rank.send(stored([15], tokens(1, start=8), parent=14))

    other = saved(rank)
    same = other.ingest.copies(SOURCE) == rank.ingest.copies(SOURCE)
    other.send(stored([16], tokens(1, start=3), parent=13), stored([13], tokens(1, start=2), parent=12))
    other.send(stored([14], tokens(1, start=7)), stored([77], tokens(1, start=30)))
    other.send(removed(11), removed(11))
    kept = other.usable(tokens(4))
    other.send(removed(11))

    assert same
    assert other.ingest.copies(SOURCE)["gpu", 0].keys() == {12, 13, 14, 15, 16, 77}
    assert kept == 16
    assert other.usable(tokens(4)) == 0
    assert other.usable(tokens(2, start=7)) == 8
    tiers = other.ingest.tier_blocks(Prompt([*tokens(1, start=30), 7]))[OTHER_RANK]
    assert (tiers.gpu, tiers.cpu) == (1, 1)


def test_salts_and_adapters_are_inherited_after_restoring(rank: Rank) -> None:
    """Only the first block of a prompt names its salt."""
    rank.ingest.name_adapter(SOURCE, lora_id=3, name="poet")
    rank.send(stored([11], tokens(1), cache_salt="tenant"), stored([21], tokens(1), lora_id=3))

    other = saved(rank)
    other.send(stored([12], tokens(1, start=1), parent=11), stored([22], tokens(1, start=1), parent=21))
    other.send(stored([31], tokens(1), lora_id=3))

    assert other.usable(tokens(2)) == 0
    assert other.usable(tokens(2), salt=b"tenant") == 8
    assert other.usable(tokens(2), lora="poet") == 8


def test_groups_of_hybrid_models_come_back(rank: Rank) -> None:
    """Full attention with blocks of 8; a sliding window with blocks of 4, named by hashes within the larger ones."""
    window: dict[str, Any] = {"group_idx": 1, "kv_cache_spec_kind": "sliding_window", "kv_cache_spec_sliding_window": 5}
    full: dict[str, Any] = {"group_idx": 0, "kv_cache_spec_kind": "full_attention", "size": 8}
    rank.send(stored([11, 12], tokens(4), **full), stored([1, 11, 2, 12], tokens(4), **window))
    before = rank.usable(tokens(4))

    other = saved(rank)
    after = other.usable(tokens(4))
    other.send(removed(2, group_idx=1), removed(12, group_idx=1))

    assert (before, after) == (16, 16)
    assert other.usable(tokens(4)) == 8
    assert other.status.block_size == rank.status.block_size


def test_a_cleared_tree_of_sglang_is_cleared_in_every_tier(rank: Rank) -> None:
    """That its host tier is meant as well was learnt before."""
    rank.send(stored([11], tokens(1)), stored([11], tokens(1), medium="CPU_PINNED"))

    other = saved(rank)
    other.send(CLEARED)

    assert other.ingest.copies(SOURCE) == {}


def test_a_doubt_is_kept_and_asks_for_a_snapshot_again(rank: Rank) -> None:
    """The new router knows no better."""
    rank.send(stored([11], tokens(1)))
    rank.ingest.doubt(SOURCE, reason="promised too much", now=0.0)

    other = saved(rank)
    receipt = other.ingest.connected(SOURCE, now=0.0)

    assert (other.status.doubt, receipt.snapshot_wanted) == ("promised too much", True)


def test_sources_that_are_not_open_or_have_spoken_are_left_alone(rank: Rank) -> None:
    """Live knowledge is better than old."""
    second = Source("second", 1)
    rank.ingest.open(second, 6, block_size=4, now=0.0)
    rank.send(stored([11], tokens(1)))
    rank.ingest.receive(second, 0, payload(stored([1], tokens(1))), now=0.0)
    data = rank.ingest.save()
    other = Rank()
    other.send(stored([12], tokens(1, start=3)))

    report = other.ingest.restore(data, now=0.0)

    assert (report.restored, set(report.skipped), report.blocks) == ((), {SOURCE, second}, 0)
    assert (other.usable(tokens(1)), other.usable(tokens(1, start=3))) == (0, 4)


def test_a_state_is_saved_in_slices_between_which_sources_come_and_go(rank: Rank) -> None:
    """Each source is saved as it is when its turn comes."""
    second, third = Source("second", 1), Source("third", 2)
    for number, source in enumerate((second, third), RANK + 1):
        rank.ingest.open(source, number, block_size=4, now=0.0)
        rank.ingest.receive(source, 0, payload(stored([1], tokens(1))), now=0.0)
    rank.send(stored([11], tokens(1)))

    slices = rank.ingest.save_slices()
    parts = [next(slices), next(slices)]
    rank.ingest.close(second)
    rank.ingest.receive(third, 1, payload(removed(1)), now=0.0)
    other = Rank()
    other.ingest.open(third, 1, block_size=4, now=0.0)
    report = other.ingest.restore(b"".join([*parts, *slices]), now=0.0)

    assert report.restored == (SOURCE, third)
    assert other.ingest.copies(third) == {}
    assert other.usable(tokens(1)) == 4


def test_nothing_known_is_saved_as_nothing() -> None:
    """An empty state is a state."""
    ingest = Ingest(PrefixIndex())

    assert ingest.restore(ingest.save(), now=0.0).restored == ()


@settings(max_examples=150, deadline=None)
@given(st.lists(_events, max_size=5), _events)
def test_a_restored_rank_does_as_the_saved_one_would(batches: Sequence[Sequence[Event]], then: Sequence[Event]) -> None:
    """Whatever it was told, copies and blocks are the same, and stay the same under what follows."""
    rank = Rank(block_size=None)
    for batch in batches:
        rank.send(*batch)
    if rank.sequence == 0:
        return
    other = RestoredRank(rank.ingest.save(), sequence=rank.sequence, block_size=None)

    for _ in range(2):
        assert other.ingest.copies(SOURCE) == rank.ingest.copies(SOURCE)
        for tier in TIERS:
            assert other.index.blocks(OTHER_RANK, tier) == rank.index.blocks(RANK, tier)
        rank.send(*then)
        other.send(*then)


def some_state() -> bytes:
    """A state with something in every table."""
    rank = Rank()
    rank.send(stored([11, 12], tokens(2)), stored([11], tokens(1)), stored([5], tokens(1), cache_salt="s"))
    rank.send(stored([13], tokens(1, start=2), parent=12), removed(13), stored([15], tokens(1), parent=14))
    return rank.ingest.save()


def test_damaged_bytes_are_refused_and_change_nothing() -> None:
    """Cut anywhere, or with any byte changed."""
    data = some_state()
    generator = random.Random(7)
    damaged = [data[:length] for length in range(len(data))]
    for _ in range(2000):
        position = generator.randrange(len(data))
        damaged.append(data[:position] + bytes([data[position] ^ generator.randrange(1, 256)]) + data[position + 1 :])
    rank = Rank()

    for bad in [*damaged, data + b"x", b"", b"kvrindex" + data[8:]]:
        with pytest.raises(SnapshotError):
            rank.ingest.restore(bad, now=0.0)

    assert len(rank.index) == 0
    assert rank.status.applied_sequence is None


def test_nonsense_with_a_good_checksum_is_refused_or_harmless() -> None:
    """Values of the wrong type, size or range, as another program might write them."""
    import msgpack  # noqa: PLC0415 - the format is an implementation's matter, but for this test
    from xxhash import xxh3_64_intdigest  # noqa: PLC0415

    data = some_state()
    section = msgpack.unpackb(data[28:-16], strict_map_key=False)
    generator = random.Random(3)
    nonsense: list[Any] = [None, -1, 2**64 - 1, "x", b"abc", b"", [], [[1, 2]], {}, True, 0.5, b"\xff" * 24]

    def with_nonsense(value: Any) -> Any:
        if isinstance(value, dict) and value and generator.random() < 0.9:
            key = generator.choice(list(value))
            return value | {key: with_nonsense(value[key])}
        if isinstance(value, list) and value and generator.random() < 0.8:
            position = generator.randrange(len(value))
            return [*value[:position], with_nonsense(value[position]), *value[position + 1 :]]
        return generator.choice(nonsense)

    refused = 0
    for _ in range(3000):
        packed = msgpack.packb(with_nonsense(section))
        framed = len(packed).to_bytes(8, "little") + xxh3_64_intdigest(packed).to_bytes(8, "little") + packed
        rank = Rank()
        try:
            rank.ingest.restore(data[:12] + framed + data[-16:], now=0.0)
        except SnapshotError:
            refused += 1
        rank.send(stored([11], tokens(1)), removed(12), CLEARED)
        rank.ingest.close(SOURCE)
        assert len(rank.index) == 0

    assert refused > 1000
