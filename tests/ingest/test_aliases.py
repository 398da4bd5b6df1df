"""What engine hashes come to mean: masked stores, larger blocks, orphans of hashes that are placed late."""

from kvrouter.blocks import sequence_hashes
from kvrouter.ingest.aliases import AliasMap
from tests.ingest.engines import stored, tokens


def _keys(blocks: int, size: int = 4) -> list[int]:
    return [int(key) for key in sequence_hashes(tokens(blocks), size)]


def test_an_unknown_hash_of_a_masked_store_lies_before_the_next_known_one() -> None:
    """Where nothing known follows, its place cannot be told."""
    aliases = AliasMap()
    aliases.learn(stored([11, 12, 13], tokens(3)), 4)
    aliases.forget(12)

    learnt = aliases.learn(stored([12, 13, 99], tokens(5)), 4)

    assert learnt == [12]
    assert aliases.keys[12] == _keys(3)[1]
    assert 99 not in aliases.keys


def test_nothing_lies_before_the_first_block() -> None:
    """A masked store that contradicts what is known teaches nothing."""
    aliases = AliasMap()
    aliases.learn(stored([11], tokens(1)), 4)

    assert aliases.learn(stored([98, 11], tokens(3)), 4) == []


def test_smaller_blocks_are_placed_inside_larger_ones_and_their_orphans_follow() -> None:
    """A window group names the middle of a full group's block; what waited for that name is learnt as well."""
    aliases = AliasMap()
    waiting = stored([31], tokens(1, start=1, size=2), parent=30, size=2)
    aliases.wait_for_parent(waiting, 10)
    aliases.learn(stored([40], tokens(2, size=2), size=4), 2)

    learnt = aliases.place_before_known([30, 40], 2)

    assert learnt == [30, 31]
    assert aliases.keys[30] == _keys(2, 2)[0]
    assert aliases.keys[31] == aliases.keys[40]
    assert aliases.orphan_blocks == 0


def test_smaller_blocks_share_the_namespace_of_the_larger_one() -> None:
    """Their children inherit the salt."""
    aliases = AliasMap()
    aliases.learn(stored([40], tokens(2, size=2), size=4, cache_salt="tenant"), 2)
    aliases.place_before_known([30, 40], 2)

    aliases.learn(stored([31], tokens(1, start=1, size=2), parent=30, size=2), 2)

    assert aliases.keys[31] == aliases.keys[40]


def test_items_of_a_larger_block_set_its_end_apart() -> None:
    """The units before the item's block are told by their tokens alone."""
    plain, pictured = AliasMap(), AliasMap()

    plain.learn(stored([11], tokens(2), size=8), 4)
    pictured.learn(stored([11], tokens(2), size=8, extra_keys=((("image", 0),),)), 4)

    assert plain.keys[11] != pictured.keys[11]
