"""The contract of every prefix index. Subclass and provide an `index_class` fixture; pytest does the rest."""

from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from kvrouter.blocks import chain_hashes, token_bytes
from kvrouter.index import RANKS_MAX
from kvrouter.index.overlap import BYTES_MAX_LEAST
from tests.index.model import array, model_machine
from tests.index.snapshot_contract import SnapshotContract


class PrefixIndexContract(SnapshotContract):
    """What callers may rely on, one sentence per test."""

    def test_a_new_index_matches_nothing(self, index: Any) -> None:
        """Nobody holds anything until somebody says so."""
        assert index.match(array([1, 2, 3])).depths() == {}
        assert len(index) == 0
        assert index.blocks(0) == 0

    def test_an_empty_prompt_matches_nobody(self, index: Any) -> None:
        """A prompt shorter than one block has no hashes."""
        index.store(0, array([1]))

        assert index.match(array([])).depths() == {}
        assert index.match(array([]), exact=False).depths() == {}

    def test_a_prefix_counts_from_the_first_block(self, index: Any) -> None:
        """Each rank's overlap is its own contiguous prefix."""
        index.store(3, array([1, 2, 3, 4]))
        index.store(1, array([1, 2]))
        index.store(2, array([2, 3, 4]))

        overlap = index.match(array([1, 2, 3, 9]))

        assert overlap.ranks.dtype == overlap.blocks.dtype == np.uint32
        assert overlap.ranks.tolist() == [1, 3]
        assert overlap.blocks.tolist() == [2, 3]

    def test_a_hole_ends_the_prefix(self, index: Any) -> None:
        """Blocks after a missing one do not count, and count again when it is back."""
        index.store(7, array([1, 2, 3, 4, 5]))

        index.remove(7, array([3]))
        assert index.match(array([1, 2, 3, 4, 5])).depths() == {7: 2}

        index.store(7, array([3]))
        assert index.match(array([1, 2, 3, 4, 5])).depths() == {7: 5}

    def test_order_of_storing_does_not_matter(self, index: Any) -> None:
        """There are no parents: a tail may arrive before its head."""
        index.store(0, array([4, 3]))
        index.store(0, array([2, 1]))

        assert index.match(array([1, 2, 3, 4])).depths() == {0: 4}

    def test_storing_twice_is_storing_once(self, index: Any) -> None:
        """Delivery is at least once."""
        index.store(0, array([1, 2, 2]))
        index.store(0, array([2, 1]))

        assert (len(index), index.blocks(0)) == (2, 2)
        index.remove(0, array([1, 2]))
        assert (len(index), index.blocks(0)) == (0, 0)

    def test_removing_what_is_not_held_changes_nothing(self, index: Any) -> None:
        """Unknown hashes, ranks and tiers are ignored."""
        index.store(0, array([1, 2]))

        index.remove(0, array([9]))
        index.remove(5, array([1, 2]))
        index.remove(0, array([1, 2]), tier="cpu")

        assert index.match(array([1, 2])).depths() == {0: 2}

    def test_removing_twice_is_removing_once(self, index: Any) -> None:
        """A repeated removal, even within one call, is counted once."""
        index.store(0, array([1, 2, 3]))

        index.remove(0, array([3, 3]))
        index.remove(0, array([3]))

        assert index.blocks(0) == 2

    def test_ranks_are_independent(self, index: Any) -> None:
        """What one rank loses, another keeps."""
        for rank in range(4):
            index.store(rank, array([1, 2, 3]))

        index.remove(1, array([2]))
        index.clear(2)

        assert index.match(array([1, 2, 3])).depths() == {0: 3, 1: 1, 3: 3}
        assert [index.blocks(rank) for rank in range(4)] == [3, 2, 0, 3]

    def test_tiers_are_kept_apart_and_matched_together(self, index: Any) -> None:
        """Without a choice of tiers a block counts wherever it is."""
        index.store(0, array([1, 2]), tier="gpu")
        index.store(0, array([2, 3]), tier="cpu")

        assert index.match(array([1, 2, 3])).depths() == {0: 3}
        assert index.match(array([1, 2, 3]), tiers=("gpu",)).depths() == {0: 2}
        assert index.match(array([1, 2, 3]), tiers=("cpu",)).depths() == {}
        assert index.match(array([1, 2, 3]), tiers=("disk",)).depths() == {}
        assert index.match(array([1, 2, 3]), tiers=("gpu", "cpu", "disk")).depths() == {0: 3}
        assert (len(index), index.blocks(0), index.blocks(0, "cpu")) == (3, 4, 2)

    def test_clearing_one_tier_leaves_the_others(self, index: Any) -> None:
        """A GPU reset does not empty host memory."""
        index.store(0, array([1, 2]), tier="gpu")
        index.store(0, array([1, 2, 3]), tier="cpu")

        index.clear(0, "gpu")

        assert index.match(array([1, 2, 3]), tiers=("gpu",)).depths() == {}
        assert index.match(array([1, 2, 3])).depths() == {0: 3}
        assert len(index) == 3

    def test_a_cleared_rank_can_begin_again(self, index: Any) -> None:
        """Rank numbers are reused after a clear."""
        index.store(0, array([1, 2]))
        index.clear(0)
        index.clear(0)

        index.store(0, array([2]))

        assert index.match(array([1, 2])).depths() == {}
        assert index.holds(0, array([1, 2])).tolist() == [False, True]

    def test_a_hole_in_a_chain_ends_the_prefix(self, index: Any) -> None:
        """Wherever it is, for whomever, and until it is filled again."""
        prompt = array(range(1, 201))
        for rank in range(3):
            index.store_chain(rank, prompt)
        for hole in (0, 1, 30, 31, 32, 63, 64, 100, 198, 199):
            index.remove(1, prompt[hole : hole + 1])
            expected = {0: 200, 1: hole, 2: 200} if hole else {0: 200, 2: 200}
            assert index.match(prompt).depths() == expected
            assert index.match(prompt[:150]).depths() == {rank: min(depth, 150) for rank, depth in expected.items()}
            index.store_chain(1, prompt[hole : hole + 1], int(prompt[hole - 1]) if hole else None)
            assert index.match(prompt).depths() == {0: 200, 1: 200, 2: 200}

    def test_chains_that_part_are_told_apart(self, index: Any) -> None:
        """Whoever holds one continuation of a prompt does not hold the other."""
        prompts = [array([*range(1, 41), *range(1000 * turn, 1000 * turn + 60)]) for turn in range(1, 6)]
        for rank, prompt in enumerate(prompts):
            index.store_chain(rank, prompt)
        index.store_chain(9, prompts[0][:40])
        index.remove(0, prompts[0][40:50])
        index.store_chain(5, prompts[0][40:], int(prompts[0][39]))

        for rank, prompt in enumerate(prompts):
            expected = dict.fromkeys(range(5), 40) | {rank: 40 if rank == 0 else 100, 9: 40}
            assert index.match(prompt).depths() == expected

    def test_a_chain_may_grow_block_by_block(self, index: Any) -> None:
        """As answers do; and what comes before it may be unknown, or gone."""
        prompt = array(range(1, 101))
        for at in range(100):
            index.store_chain(0, prompt[at : at + 1], int(prompt[at - 1]) if at else None)
        index.store_chain(1, prompt[50:], 50)
        index.store_chain(1, prompt[:50])
        index.store_chain(2, array([8, 9]), 7777)
        index.clear(0)
        index.store_chain(0, prompt[:90])

        assert index.match(prompt).depths() == {0: 90, 1: 100}
        assert index.match(array([8, 9])).depths() == {0: 2, 1: 2, 2: 2}

    def test_the_best_are_the_deepest(self, index: Any) -> None:
        """As many as are wanted and have anything, ties in the order of ranks."""
        prompt = array(range(1, 41))
        for rank in range(30):
            index.store_chain(rank, prompt[: (rank * 7) % 11 + rank % 3])
        index.store(700, prompt, tier="cpu")
        order = sorted(index.match_depths(prompt).items(), key=lambda item: (-item[1], item[0]))

        assert index.match_best(prompt) == [(700, 40)]
        assert index.match_best(prompt, 1, ("gpu",)) == [order[1]]
        for k in (1, 2, 3, 8, 9, 20, 29, 5000):
            assert index.match_best(prompt.tolist(), k=k) == order[:k]
        assert index.match_best(array([])) == index.match_best(array([99]), 5) == []
        with pytest.raises(ValueError, match="k is 0"):
            index.match_best(prompt, 0)

    def test_many_prompts_are_matched_in_one_call(self, index: Any) -> None:
        """Each gets the answer that it gets alone."""
        prompt = array(range(1, 101))
        for rank in (0, 3, 900):
            index.store_chain(rank, prompt[: 30 + rank % 7])
        index.store(5, prompt, tier="cpu")
        prompts = [prompt, prompt[:10].tolist(), array([]), array([7]), tuple(prompt[:33].tolist())]

        for tiers in (None, ("gpu",)):
            found = index.match_many(iter(prompts), tiers)
            assert len(found) == 5
            for at, each in enumerate(prompts):
                assert found[at].depths() == index.match(each, tiers=tiers).depths()
            assert found.ranks.dtype == found.blocks.dtype == found.ends.dtype == np.uint32
        assert len(index.match_many([])) == 0
        for outside in (-1, 5):
            with pytest.raises(IndexError):
                found[outside]

    @pytest.mark.parametrize(("block_size", "lookahead"), [(16, 0), (16, 1), (1, 0), (7, 3), (64, 64)])
    def test_tokens_find_what_their_hashes_find(self, index: Any, block_size: int, lookahead: int) -> None:
        """However much of the prompt is there, and however many tokens."""
        words = token_bytes([number * 7919 % 100_003 for number in range(150 * block_size + lookahead)])
        hashes = chain_hashes(None, words, block_size, 5, lookahead=lookahead)
        assert len(hashes) == 150
        index.store_chain(0, hashes[:149])
        index.store_chain(1, hashes[:70], tier="cpu")
        index.store_chain(2, hashes[1:])
        index.store_chain(3, hashes[:5])

        for length in (0, 3, 4 * block_size, len(words) // 2, len(words)):
            part = words[: length // 4 * 4]
            expected = index.match_depths(chain_hashes(None, part, block_size, 5, lookahead=lookahead))
            assert index.match_tokens(part, block_size, 5, lookahead) == expected
        assert index.match_tokens(words, block_size, 5, lookahead, ("cpu",)) == {1: 70}
        assert index.match_tokens(words, block_size, 6, lookahead) == {}
        with pytest.raises(ValueError, match="block_size"):
            index.match_tokens(words, 0, 5)
        with pytest.raises(ValueError, match="lookahead"):
            index.match_tokens(words, block_size, 5, block_size + 1)

    def test_a_full_index_claims_less_than_is_true(self, index: Any) -> None:
        """Never more, never beyond its bytes, and all of it again once there is room."""
        bounded = type(index)(bytes_max=BYTES_MAX_LEAST)
        prompts = [array(range(start, start + 1000)) for start in range(0, 60_000_000, 1_000_000)]
        for rank, prompt in enumerate(prompts):
            bounded.store_chain(rank, prompt)
            assert bounded.nbytes() <= BYTES_MAX_LEAST
        held = [bounded.blocks(rank) for rank in range(60)]
        assert 0 < sum(held) == 60_000 - bounded.dropped()["refused"] < 60_000
        assert held[0] == 1000
        assert bounded.dropped()["unconfirmed"] == 0
        for rank, prompt in enumerate(prompts):
            assert bounded.match_depths(prompt).keys() <= {rank}
            assert bounded.holds(rank, prompt).sum() == held[rank]

        bounded.store(0, prompts[0])
        for rank in range(59):
            bounded.remove(rank, prompts[rank])
        bounded.store_chain(59, prompts[59])
        assert bounded.match_depths(prompts[59]) == {59: 1000}

    def test_the_doubted_make_room_first(self, index: Any) -> None:
        """The one that has been in doubt longest before the others; whoever is trusted again is safe."""
        bounded = type(index)(bytes_max=4 * BYTES_MAX_LEAST)
        prompts = [array(range(start, start + 5000)) for start in range(0, 200_000_000, 1_000_000)]
        for rank in range(5):
            bounded.store_chain(rank, prompts[rank])
        for rank in (3, 1, 0, 1):
            bounded.doubt(rank)
        bounded.trust(0)
        gone = []
        for rank in range(5, 200):
            bounded.store_chain(rank, prompts[rank])
            gone += [each for each in range(5) if each not in gone and not bounded.blocks(each)]

        assert gone == [3, 1]
        assert bounded.dropped()["unconfirmed"] == 10_000
        assert bounded.dropped()["refused"] > 0
        assert [bounded.blocks(each) for each in (0, 2, 4)] == [5000] * 3
        assert bounded.nbytes() <= 4 * BYTES_MAX_LEAST

    def test_what_is_beside_the_index_is_under_the_bound_too(self, index: Any) -> None:
        """It makes the doubted go, one at a time while nobody has asked what was lost; then nothing is admitted."""
        bounded = type(index)(bytes_max=16 * BYTES_MAX_LEAST)
        for rank in range(3):
            bounded.store_chain(rank, array(range(rank * 1000, rank * 1000 + 100)))
        for rank in (1, 7, 2):
            bounded.doubt(rank)
        bounded.charge(15 * BYTES_MAX_LEAST + (BYTES_MAX_LEAST >> 2))

        admitted = [bounded.admit(1) for _ in range(3)]
        first = bounded.losses()
        bounded.admit(1)
        second = bounded.losses()
        bounded.charge(BYTES_MAX_LEAST)
        refused = bounded.admit(7), bounded.admit(0)
        third = bounded.losses()
        bounded.store(0, array([5000]))
        bounded.charge(-BYTES_MAX_LEAST)

        assert admitted == [True] * 3
        assert (first, second, third) == (((1,), 0), ((2,), 0), ((), 7))
        assert refused == (False, False)
        assert bounded.admit(1)
        assert [bounded.blocks(rank) for rank in range(3)] == [100, 0, 0]
        assert bounded.dropped() == {"unconfirmed": 200, "refused": 8}
        assert bounded.losses() == ((), 1)
        assert bounded.losses() is None
        assert bounded.bytes_max() == 16 * BYTES_MAX_LEAST
        assert bounded.nbytes_beside() == 15 * BYTES_MAX_LEAST + (BYTES_MAX_LEAST >> 2)

    def test_without_a_bound_everything_is_admitted(self, index: Any) -> None:
        """Bytes are counted all the same."""
        index.charge(1 << 50)

        assert index.admit(1 << 40)
        assert (index.bytes_max(), index.nbytes_beside(), index.losses()) == (None, 1 << 50, None)
        with pytest.raises((OverflowError, TypeError)):
            index.charge(None)

    def test_a_bound_that_nothing_fits_into_is_refused(self, index: Any) -> None:
        """Also ranks that cannot be."""
        with pytest.raises(ValueError, match="bytes_max"):
            type(index)(bytes_max=BYTES_MAX_LEAST - 1)
        for call in (index.doubt, index.trust):
            with pytest.raises(ValueError, match="rank is"):
                call(RANKS_MAX)
        assert index.dropped() == {"unconfirmed": 0, "refused": 0}

    def test_holds_answers_block_by_block(self, index: Any) -> None:
        """A probe sees beyond holes, per tier or over all."""
        index.store(0, array([1, 3]))
        index.store(0, array([2]), tier="cpu")
        index.store(1, array([4]))

        assert index.holds(0, array([1, 2, 3, 4])).tolist() == [True, True, True, False]
        assert index.holds(0, array([1, 2, 3, 4]), tier="gpu").tolist() == [True, False, True, False]
        assert index.holds(0, array([1]), tier="nowhere").tolist() == [False]
        assert index.holds(0, array([1])).dtype == np.bool_

    def test_plain_integers_do_as_well_as_arrays(self, index: Any) -> None:
        """Lists are accepted everywhere, and the plain form of a match agrees."""
        index.store(2, [1, 2**64 - 1, 0])
        index.remove(2, [0])

        assert index.match([1, 2**64 - 1, 0]).depths() == {2: 2}
        assert index.match_depths([1, 2**64 - 1, 0]) == {2: 2}
        assert index.holds(2, [2**64 - 1]).tolist() == [True]

    def test_bisection_agrees_where_no_rank_has_a_hole(self, index: Any) -> None:
        """`exact=False` is as good as exact on prefix-closed contents."""
        prompt = array(range(1, 200))
        for rank, depth in enumerate([0, 1, 2, 57, 57, 100, 198, 199]):
            index.store(rank, prompt[:depth])

        assert index.match(prompt, exact=False).depths() == index.match(prompt).depths()

    @pytest.mark.parametrize("rank", [-1, RANKS_MAX])
    def test_a_rank_out_of_bounds_is_refused(self, index: Any, rank: int) -> None:
        """A wild rank must not grow every set of ranks."""
        with pytest.raises(ValueError, match=f"rank is {rank}"):
            index.store(rank, array([1]))

    @pytest.mark.parametrize("tier", ["", "x" * 65])
    def test_a_tier_without_a_sensible_name_is_refused(self, index: Any, tier: str) -> None:
        """Names of tiers become labels; they are short."""
        with pytest.raises(ValueError, match="tier"):
            index.store(0, array([1]), tier=tier)

    def test_the_largest_rank_works(self, index: Any) -> None:
        """The bound itself is inside."""
        index.store(RANKS_MAX - 1, array([1, 2]))
        index.store(0, array([1]))

        assert index.match(array([1, 2])).depths() == {0: 1, RANKS_MAX - 1: 2}

    def test_many_different_sets_of_ranks_stay_exact(self, index: Any) -> None:
        """Sharing of equal sets is an economy, never visible."""
        for rank in range(13):
            index.store(rank, [block for block in range(1 << 13) if block >> rank & 1])

        everyone = (1 << 13) - 1
        assert index.match([everyone, 5]).depths() == {rank: 2 if rank in {0, 2} else 1 for rank in range(13)}
        index.clear(3)
        assert index.blocks(3) == 0
        assert index.blocks(4) == 1 << 12

    def test_an_answer_about_many_ranks_is_its_askers_own(self, index: Any) -> None:
        """However often the same ranks are asked for, and whatever was done with the answers before."""
        opening, first, second = array(range(1, 9)), array(range(1, 25)), array([*range(1, 9), *range(50, 60)])
        for rank in range(5, 2500, 7):
            index.store_chain(rank, opening)
        index.store_chain(40, first)
        index.store_chain(705, second)
        expected = dict.fromkeys(range(5, 2500, 7), 8)

        for _ in range(4):
            found, other = index.match_depths(first), index.match(second).depths()
            assert found == expected | {40: 24}
            assert other == expected | {705: 18}
            found.clear()
            other[5] = 77

        index.remove(5, opening[:1])
        index.remove(12, opening[3:])
        index.store(6, opening)
        del expected[5]
        for _ in range(3):
            assert index.match_depths(second) == expected | {6: 8, 12: 3, 705: 18}

    def test_an_answer_stays_what_it_was(self, index: Any) -> None:
        """What happens to the index afterwards is not its business, nor how often it is read."""
        for rank in range(0, 4096, 3):
            index.store(rank, [1, 2, 3][: rank % 4])
        overlap, nothing = index.match([1, 2, 3]), index.match([7])
        for rank in range(0, 4096, 6):
            index.clear(rank)

        expected = {rank: rank % 4 for rank in range(0, 4096, 3) if rank % 4}
        for _ in range(3):
            assert dict(zip(overlap.ranks.tolist(), overlap.blocks.tolist(), strict=True)) == expected
            assert overlap.ranks.tolist() == sorted(expected)
            assert overlap.depths() == expected
        assert nothing.ranks.dtype == nothing.blocks.dtype == np.uint32
        assert (nothing.ranks.tolist(), nothing.blocks.tolist(), nothing.depths()) == ([], [], {})

    def test_random_histories_agree_with_a_naive_model(self, index: Any) -> None:
        """Any order of any operations gives what a dictionary of sets would."""
        effort = settings(max_examples=60, stateful_step_count=40, deadline=None)

        run_state_machine_as_test(model_machine(type(index)), settings=effort)
