"""What one rank's events mean: copies, parents, tiers, namespaces, groups; one rule of the engines per test."""

from typing import Any

import pytest

from kvrouter.blocks import Prompt
from kvrouter.ingest import IngestLimits
from tests.ingest.engines import CLEARED, RANK, SOURCE, Rank, payload, removed, stored, tokens


@pytest.fixture
def rank() -> Rank:
    """One followed source with blocks of four tokens."""
    return Rank()


def test_a_chain_of_stores_is_usable_up_to_the_last_token(rank: Rank) -> None:
    """The engine computes the last token of a prompt anew, so a full hit counts one block less."""
    rank.send(stored([11, 12], tokens(2)))
    rank.send(stored([13], tokens(1, start=2), parent=12))

    assert rank.usable(tokens(3)) == 12
    assert rank.ingest.usable_tokens(Prompt(tokens(3))) == {RANK: 8}
    assert rank.ingest.usable_tokens(Prompt(tokens(1))) == {}


def test_a_block_stays_while_any_copy_does(rank: Rank) -> None:
    """VLLM announces every physical copy, and each removal is of one copy."""
    rank.send(stored([11, 12], tokens(2)))
    rank.send(stored([12], tokens(1, start=1), parent=11))

    rank.send(removed(12))
    after_one = rank.usable(tokens(2))
    rank.send(removed(12))

    assert (after_one, rank.usable(tokens(2))) == (8, 4)


def test_two_hashes_of_one_block_are_two_copies(rank: Rank) -> None:
    """Removing the one leaves the other."""
    rank.send(stored([11], tokens(1)), stored([99], tokens(1)))

    rank.send(removed(11))
    after_one = rank.usable(tokens(1))
    rank.send(removed(99))

    assert (after_one, rank.usable(tokens(1))) == (4, 0)


def test_one_event_may_name_a_hash_twice(rank: Rank) -> None:
    """Two copies, then."""
    rank.send(stored([11, 11], (), size=0))
    rank.send(stored([11], tokens(1)), removed(11))

    rank.send(removed(11))
    after_one = rank.usable(tokens(1))
    rank.send(removed(11))

    assert (after_one, rank.usable(tokens(1))) == (4, 0)


def test_an_unknown_removal_is_counted_and_changes_nothing(rank: Rank) -> None:
    """After a loss they are normal."""
    rank.send(removed(5))
    rank.send(stored([11], tokens(1)))
    rank.send(removed(6))

    assert rank.usable(tokens(1)) == 4
    assert rank.status.ignored == {"unknown_removal": 2}


def test_an_orphan_counts_once_its_parent_is_known(rank: Rank) -> None:
    """Order between parent and child does not matter, nor how long the chain of orphans is."""
    rank.send(stored([13], tokens(1, start=2), parent=12))
    rank.send(stored([12], tokens(1, start=1), parent=11))
    waiting = rank.status.orphans

    rank.send(stored([11], tokens(1)))

    assert waiting == 2
    assert rank.status.orphans == 0
    assert rank.usable(tokens(3)) == 12


def test_an_orphan_removed_meanwhile_does_not_come_back(rank: Rank) -> None:
    """Copies are counted while the meaning waits."""
    rank.send(stored([12], tokens(1, start=1), parent=11))
    rank.send(removed(12))

    rank.send(stored([11], tokens(1)))

    assert rank.usable(tokens(2)) == 4


def test_orphans_are_bounded_and_counted() -> None:
    """The oldest are given up first."""
    rank = Rank(limits=IngestLimits(orphan_blocks_max=2))
    for number in range(4):
        rank.send(stored([20 + number], tokens(1, start=number), parent=100 + number))

    assert rank.status.orphans == 2
    assert rank.status.orphans_dropped == 2


def test_a_parent_may_have_no_copies_left(rank: Rank) -> None:
    """Its meaning is remembered, for children and for other tiers."""
    rank.send(stored([11, 12], tokens(2)))
    rank.send(removed(12), removed(11))

    rank.send(stored([13], tokens(1, start=2), parent=12), stored([11, 12], tokens(2)))

    assert rank.usable(tokens(3)) == 12


def test_meanings_without_copies_are_bounded() -> None:
    """Beyond the bound the oldest are forgotten, and their children wait as orphans."""
    rank = Rank(limits=IngestLimits(idle_hashes_max=1))
    rank.send(stored([11, 12], tokens(2)))
    rank.send(removed(12), removed(11))

    rank.send(stored([13], tokens(1, start=2), parent=12))

    assert rank.status.orphans == 1


def test_a_hash_only_store_means_what_the_hash_meant_before(rank: Rank) -> None:
    """VLLM's offloading names blocks by hash alone, on the CPU, also after the GPU dropped them."""
    rank.send(stored([11, 12], tokens(2)))
    rank.send(removed(12), stored([12], (), size=0, medium="CPU"))

    overlap = rank.ingest.tier_blocks(Prompt(tokens(2)))[RANK]

    assert (overlap.gpu, overlap.cpu, overlap.disk) == (1, 2, 2)
    assert rank.usable(tokens(2)) == 4


def test_a_hash_only_store_waits_until_the_hash_is_explained(rank: Rank) -> None:
    """In whatever order the tiers speak."""
    rank.send(stored([11], (), size=0, medium="CPU"))
    unresolved = rank.status.unresolved

    rank.send(stored([11], tokens(1)), removed(11))

    assert unresolved == 1
    assert rank.status.unresolved == 0
    assert rank.ingest.tier_blocks(Prompt(tokens(1)))[RANK].cpu == 1


def test_unexplained_hashes_are_bounded_and_counted() -> None:
    """The oldest are given up first."""
    rank = Rank(limits=IngestLimits(unresolved_hashes_max=2))

    rank.send(stored([1, 2, 3], (), size=0, medium="CPU"))

    assert (rank.status.unresolved, rank.status.unresolved_dropped) == (2, 1)


def test_the_first_meaning_of_a_hash_stays(rank: Rank) -> None:
    """Offloaded copies describe themselves without their salt; they must not turn into unsalted blocks."""
    salted = (("tenant",), None)
    rank.send(stored([11, 12], tokens(2), extra_keys=salted))

    rank.send(stored([11, 12, 13], tokens(3), medium="CPU"))
    rank.send(stored([13], tokens(1, start=2), parent=12, extra_keys=(None,)))

    assert rank.usable(tokens(3)) == 0
    assert rank.usable(tokens(3), salt=b"tenant") == 12
    assert rank.ingest.tier_blocks(Prompt(tokens(3), salt=b"tenant"))[RANK].cpu == 3


def test_children_inherit_the_salt(rank: Rank) -> None:
    """VLLM states it in the first block of a prompt only."""
    rank.send(stored([11], tokens(1), extra_keys=(("tenant",),)))
    rank.send(stored([12], tokens(1, start=1), parent=11, extra_keys=(None,)))

    assert rank.usable(tokens(2), salt=b"tenant") == 8
    assert rank.usable(tokens(2)) == 0


def test_an_adapter_is_a_namespace(rank: Rank) -> None:
    """Equal tokens under an adapter are other blocks."""
    rank.send(stored([11], tokens(1), lora_name="sql", extra_keys=(("sql",),)))

    assert rank.usable(tokens(1), lora="sql") == 4
    assert rank.usable(tokens(1)) == 0


def test_a_numbered_adapter_counts_once_it_is_named(rank: Rank) -> None:
    """Old engines send a number only; until somebody names it, nothing matches it."""
    rank.send(stored([11], tokens(1), lora_id=3))
    rank.ingest.name_adapter(SOURCE, lora_id=4, name="sql")

    rank.send(stored([21], tokens(1), lora_id=4))

    assert rank.usable(tokens(1), lora="sql") == 4
    assert rank.usable(tokens(1)) == 0
    rank.send(removed(21))
    assert rank.usable(tokens(1), lora="sql") == 0


def test_multimodal_blocks_never_match_their_placeholders(rank: Rank) -> None:
    """The placeholder tokens are the same for every image."""
    rank.send(stored([11], tokens(1), extra_keys=((("image", 0),),)))

    assert rank.usable(tokens(1)) == 0


def test_clearing_means_the_gpu_and_keeps_what_is_offloaded(rank: Rank) -> None:
    """VLLM's own pool only; the copies on the CPU stay valid."""
    rank.send(stored([11], tokens(1)), stored([11], (), size=0, medium="CPU"))

    rank.send(CLEARED)

    assert rank.usable(tokens(1)) == 0
    assert rank.ingest.tier_blocks(Prompt(tokens(1)))[RANK].cpu == 1


def test_clearing_sglangs_tree_empties_its_host_tier_too(rank: Rank) -> None:
    """Its host copies hang in the same tree."""
    rank.send(CLEARED)
    rank.send(stored([11], tokens(1)), stored([11], tokens(1), medium="CPU_PINNED"))

    rank.send(CLEARED)

    assert rank.ingest.tier_blocks(Prompt(tokens(1))) == {}


def test_a_clear_and_a_store_in_one_batch_are_in_order(rank: Rank) -> None:
    """So are a removal and a store."""
    rank.send(stored([11, 12], tokens(2)))

    rank.send(CLEARED, stored([11], tokens(1)))
    after_clear = rank.usable(tokens(2))
    rank.send(removed(11), stored([11, 12], tokens(2)))

    assert (after_clear, rank.usable(tokens(2))) == (4, 8)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"locality": "REMOTE"}, "remote"),
        ({"medium": "EXTERNAL"}, "foreign_medium"),
        ({"medium": "moon"}, "foreign_medium"),
        ({"group_idx": -1}, "bad_group"),
        ({"group_idx": 10**6}, "bad_group"),
    ],
)
def test_blocks_that_are_not_on_the_worker_are_ignored_and_counted(
    rank: Rank, fields: dict[str, Any], reason: str
) -> None:
    """A shared pool says nothing about this worker."""
    rank.send(stored([11], tokens(1), **fields), removed(11, **fields))

    assert rank.usable(tokens(1)) == 0
    assert rank.status.ignored == {reason: 2}


@pytest.mark.parametrize(("token_count", "size", "reason"), [(6, 4, "odd_block_size"), (4, 4, "too_few_tokens")])
def test_stores_that_do_not_add_up_teach_nothing(rank: Rank, token_count: int, size: int, reason: str) -> None:
    """They are counted copies of unknown blocks, no more."""
    rank.send(stored([11, 12], range(token_count), size=size))

    assert rank.status.blocks == 0
    assert rank.status.ignored == {reason: 1}


def test_the_engines_block_size_overrules_the_description() -> None:
    """A wrong setting must not cost every hit."""
    rank = Rank(block_size=16)

    rank.send(stored([11, 12], tokens(2)))

    assert rank.usable(tokens(2)) == 8
    assert rank.ingest.block_size(RANK) == 4
    assert rank.status.block_size == 4


def test_larger_blocks_of_other_tiers_are_read_in_the_ranks_own_size(rank: Rank) -> None:
    """LMCache stores chunks of many blocks; each ends a prefix that is known by its tokens."""
    rank.send(stored([11], tokens(1)))

    rank.send(stored([500], tokens(2), size=8, medium="cpu"))

    assert rank.ingest.block_size(RANK) == 4
    assert rank.status.unresolved == 0


def test_a_repeated_report_from_the_root_is_not_a_copy(rank: Rank) -> None:
    """VLLM repeats what a request reused if asked to; with full attention alone that cannot be a real store."""
    full: dict[str, Any] = {"kv_cache_spec_kind": "full_attention", "group_idx": 0, "extra_keys": (None, None)}
    rank.send(stored([11, 12], tokens(2), **full))
    rank.send(stored([11, 12], tokens(2), **full))

    rank.send(removed(12, group_idx=0))

    assert rank.usable(tokens(2)) == 4
    assert rank.status.ignored == {"repetition": 2}


def test_a_repeated_prompt_of_one_block_is_a_copy(rank: Rank) -> None:
    """Its only block holds the last token, so the engine really computed it again."""
    full: dict[str, Any] = {"kv_cache_spec_kind": "full_attention", "group_idx": 0, "extra_keys": (None,)}
    rank.send(stored([11], tokens(1), **full))
    rank.send(stored([11], tokens(1), **full))

    rank.send(removed(11, group_idx=0))

    assert rank.usable(tokens(1)) == 4


def test_pages_of_one_token(rank: Rank) -> None:
    """SGLang's usual page size: one event per token, parents in one batch."""
    rank = Rank(block_size=None)
    rank.send(CLEARED)

    rank.send(*[stored([100 + n], [n], parent=None if not n else 99 + n, size=1) for n in range(6)])

    assert rank.ingest.usable_tokens(Prompt([0, 1, 2, 3, 4, 5])) == {RANK: 5}
    assert rank.ingest.block_size(RANK) == 1


def test_token_pairs_need_one_token_more() -> None:
    """EAGLE in SGLang: a page of pairs covers the token after it, and matching leaves out the last token first."""
    rank = Rank(block_size=None)
    pairs = stored([11, 12], (1, 2, 3, 4), size=2, bigram=True, lookahead_token_ids=((3,), (5,)))

    rank.send(pairs)

    assert rank.ingest.usable_tokens(Prompt([1, 2, 3, 4, 5, 6])) == {RANK: 4}
    assert rank.ingest.usable_tokens(Prompt([1, 2, 3, 4, 5])) == {RANK: 2}
    assert rank.ingest.usable_tokens(Prompt([1, 2, 3, 4, 6, 6, 6])) == {RANK: 2}


def test_lookahead_blocks_differ_by_the_token_after_them() -> None:
    """EAGLE in vLLM: the hash also covers the next token."""
    rank = Rank()
    rank.send(stored([11], tokens(1), lookahead_token_ids=((77,),)))
    rank.send(stored([12], (77, 78, 79, 80), parent=11, lookahead_token_ids=((81,),)))

    assert rank.ingest.usable_tokens(Prompt([*tokens(1), 77, 78, 79, 80, 81])) == {RANK: 8}
    assert rank.ingest.usable_tokens(Prompt([*tokens(1), 78, 1, 1])) == {}


def test_closing_a_source_takes_its_blocks_out_of_the_index(rank: Rank) -> None:
    """Nothing of it remains, and its number may be used again."""
    rank.send(stored([11], tokens(1)))

    rank.ingest.close(SOURCE)
    rank.ingest.close(SOURCE)

    assert len(rank.index) == 0
    assert rank.ingest.status(now=0.0) == []
    assert rank.ingest.block_size(RANK) is None


def test_opening_again_starts_over(rank: Rank) -> None:
    """Whether the source or the dense number was in use."""
    rank.send(stored([11], tokens(1)))

    rank.ingest.open(SOURCE, RANK, block_size=4, now=0.0)
    rank.ingest.open(SOURCE._replace(rank=1), RANK, block_size=4, now=0.0)

    assert len(rank.index) == 0
    assert [status.rank for status in rank.ingest.status(now=0.0)] == [1]


def test_ranks_with_different_block_sizes_answer_together(rank: Rank) -> None:
    """Each prompt is hashed once per size that is in use."""
    other = SOURCE._replace(rank=1)
    rank.ingest.open(other, RANK + 1, block_size=8, now=0.0)
    rank.send(stored([11, 12], tokens(2)))
    rank.ingest.receive(other, 0, payload(stored([500], tokens(2), size=8)), now=0.0)

    assert rank.ingest.usable_tokens(Prompt([*tokens(2), 1])) == {RANK: 8, RANK + 1: 8}


def test_a_prompt_known_by_its_bytes_matches_only_its_own_blocks(rank: Rank) -> None:
    """Byte blocks are compared with the router's own guesses, whatever the ranks' block sizes are."""
    rank.index.store(RANK, [1, 2, 3])
    prompt = Prompt.from_hashes([1, 2, 9], block_size=100, tokens=350, exact=False)

    assert rank.ingest.usable_tokens(prompt) == {RANK: 200}
