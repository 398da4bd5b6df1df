"""What an index service must get right, whoever wrote it: each case is something that engines and networks really do.

pytest tests/conformance                                         # a kvrouter of our own
pytest tests/conformance --service http://127.0.0.1:8080         # one that runs
pytest tests/conformance --service http://127.0.0.1:8090 --service-kind dynamo
"""

from collections.abc import Callable
from typing import Any

import pytest

from tests.conformance.conftest import Worker
from tests.conformance.engines import CLEARED, Chain

NewWorker = Callable[..., Worker]

FULL: dict[str, Any] = {"group_idx": 0, "kv_cache_spec_kind": "full_attention"}
WINDOW: dict[str, Any] = {"group_idx": 1, "kv_cache_spec_kind": "sliding_window", "kv_cache_spec_sliding_window": 17}


@pytest.mark.parametrize("encoding", ["map", "array"])
def test_stores_and_removals_are_followed(new_worker: NewWorker, encoding: str) -> None:
    """In the encodings of older and of newer engines."""
    worker, chain = new_worker(encoding=encoding), Chain(1, 6)

    worker.engine.publish(chain.stored(0, 4))
    worker.engine.publish(chain.stored(4))
    worker.comes_to_hold(chain.tokens, gpu=6)
    worker.engine.publish(chain.removed(5), chain.removed(4))
    worker.comes_to_hold(chain.tokens, gpu=4)


def test_an_engine_that_restarts_in_place_loses_what_it_held(new_worker: NewWorker) -> None:
    """Another process at the same address, whose hashes have another seed."""
    worker, old, new = new_worker(), Chain(2, 5), Chain(3, 3, seed=1)
    worker.engine.publish(old.stored())
    worker.comes_to_hold(old.tokens, gpu=5)

    worker.engine.restart()
    worker.is_followed()
    worker.engine.publish(new.stored())

    worker.comes_to_hold(new.tokens, gpu=3)
    worker.comes_to_hold(old.tokens, gpu=0)


def test_a_sequence_that_falls_back_to_zero_is_a_restart(new_worker: NewWorker) -> None:
    """The connection stays, as behind a proxy; only the numbers tell."""
    worker, old, new = new_worker(), Chain(4, 5), Chain(5, 3, seed=1)
    for block in range(5):
        worker.engine.publish(old.stored(block, block + 1))
    worker.comes_to_hold(old.tokens, gpu=5)

    worker.engine.begin_new_life()
    worker.engine.publish(new.stored())

    worker.comes_to_hold(new.tokens, gpu=3)
    worker.comes_to_hold(old.tokens, gpu=0)


def test_who_joins_late_hears_what_was_said_before(new_worker: NewWorker) -> None:
    """A chain of 55 blocks, all of which the engine can repeat."""
    worker, chain = new_worker(registered=False), Chain(6, 55)
    for block in range(55):
        worker.engine.publish(chain.stored(block, block + 1))

    worker.register()

    worker.comes_to_hold(chain.tokens, gpu=55)


def test_who_joins_later_than_the_engine_remembers_finds_the_end_of_a_chain_when_its_beginning_comes(
    new_worker: NewWorker,
) -> None:
    """The first 40 of 55 blocks have left the ring; blocks without their parents are kept until those are stored."""
    worker, chain = new_worker(registered=False, ring=15), Chain(7, 55)
    for block in range(55):
        worker.engine.publish(chain.stored(block, block + 1))
    worker.register()

    worker.engine.publish(chain.stored(0, 40))

    worker.comes_to_hold(chain.tokens, gpu=55)


def test_a_removal_that_was_lost_is_asked_for_when_the_next_batch_shows_it(new_worker: NewWorker) -> None:
    """A gap in the numbers; the replay has what is missing."""
    worker, chain, other = new_worker(), Chain(8, 5), Chain(9, 2)
    worker.engine.publish(chain.stored())
    worker.comes_to_hold(chain.tokens, gpu=5)

    worker.engine.publish(chain.removed(4, 3, 2), lost=True)
    worker.engine.publish(other.stored())

    worker.comes_to_hold(other.tokens, gpu=2)
    worker.comes_to_hold(chain.tokens, gpu=2)


def test_a_removal_that_was_lost_last_is_found_without_a_next_batch(new_worker: NewWorker) -> None:
    """An idle engine says nothing more: the service has to ask."""
    worker, chain = new_worker(), Chain(10, 5)
    worker.engine.publish(chain.stored())
    worker.comes_to_hold(chain.tokens, gpu=5)

    worker.engine.publish(chain.removed(4, 3, 2), lost=True)

    worker.comes_to_hold(chain.tokens, gpu=2)


def test_a_loss_that_nothing_can_repeat_ends_the_claims(new_worker: NewWorker) -> None:
    """There is no replay endpoint: the lost batch may have removed anything, and did."""
    worker, chain, other = new_worker(replays=False), Chain(11, 5), Chain(12, 2)
    worker.engine.publish(chain.stored())
    worker.comes_to_hold(chain.tokens, gpu=5)

    worker.engine.publish(chain.removed(*range(5)), lost=True)
    worker.engine.publish(other.stored())

    worker.comes_to_hold(other.tokens, gpu=2)
    worker.comes_to_hold(chain.tokens, gpu=0)


def test_a_replay_that_lacks_what_was_lost_ends_the_claims(new_worker: NewWorker) -> None:
    """The engine answers, but its ring begins behind the loss."""
    worker, chain, other = new_worker(), Chain(13, 5), Chain(14, 2)
    worker.engine.publish(chain.stored())
    worker.comes_to_hold(chain.tokens, gpu=5)

    worker.engine.publish(chain.removed(*range(5)), lost=True)
    worker.engine.forget()
    worker.engine.publish(other.stored())

    worker.comes_to_hold(other.tokens, gpu=2)
    worker.comes_to_hold(chain.tokens, gpu=0)


def test_a_long_gap_is_filled_exactly(new_worker: NewWorker) -> None:
    """Hundreds of batches are lost, stores and removals; the replay brings them in order."""
    worker, chain, other = new_worker(), Chain(15, 50), Chain(16, 2)
    worker.engine.publish(other.stored(0, 1))
    worker.comes_to_hold(other.tokens, gpu=1)

    for block in range(50):
        worker.engine.publish(chain.stored(block, block + 1), lost=True)
    for block in range(49, 29, -1):
        worker.engine.publish(chain.removed(block), lost=True)
    worker.engine.publish(other.stored(1))

    worker.comes_to_hold(other.tokens, gpu=2)
    worker.comes_to_hold(chain.tokens, gpu=30)


@pytest.mark.parametrize(
    "unknown", [{"type": "BlockMoved", "block_hashes": [1]}, ["BlockMoved", [1], "GPU"], 7, {"type": 7}, None]
)
def test_an_unknown_event_does_not_cost_the_rest_of_its_batch(new_worker: NewWorker, unknown: object) -> None:
    """Tomorrow's engine says more than today's."""
    worker, chain = new_worker(), Chain(17, 4)
    store = {
        "type": "BlockStored",
        "block_hashes": chain.hashes,
        "parent_block_hash": None,
        "token_ids": chain.tokens,
        "block_size": 16,
        "lora_id": None,
        "medium": "GPU",
        "news": {"of": "tomorrow"},
    }

    worker.engine.publish_raw(unknown, store, unknown)

    worker.comes_to_hold(chain.tokens, gpu=4)


@pytest.mark.parametrize("size", [16, 32])
def test_hashes_may_be_byte_strings(new_worker: NewWorker, size: int) -> None:
    """As vLLM sends them when it is asked for its own."""
    worker, chain = new_worker(), Chain(18, 4, hash_bytes=size)

    worker.engine.publish(chain.stored(0, 2))
    worker.engine.publish(chain.stored(2))
    worker.comes_to_hold(chain.tokens, gpu=4)
    worker.engine.publish(chain.removed(3))
    worker.comes_to_hold(chain.tokens, gpu=3)


def test_hashes_may_be_signed(new_worker: NewWorker) -> None:
    """As SGLang sends them: the same 64 bits."""
    worker, chain = new_worker(), Chain(19, 4)
    unsigned = list(chain.hashes)
    chain.hashes = [value - 2**64 if value >= 2**63 else value for value in unsigned]

    worker.engine.publish(chain.stored())
    worker.comes_to_hold(chain.tokens, gpu=4)
    chain.hashes = unsigned
    worker.engine.publish(chain.removed(3))
    worker.comes_to_hold(chain.tokens, gpu=3)


def test_a_block_evicted_from_the_middle_of_a_chain_may_come_back(new_worker: NewWorker) -> None:
    """Ten blocks; without the fifth four count, with it all ten again."""
    worker, chain = new_worker(), Chain(20, 10)
    worker.engine.publish(chain.stored())
    worker.comes_to_hold(chain.tokens, gpu=10)

    worker.engine.publish(chain.removed(4))
    worker.comes_to_hold(chain.tokens, gpu=4)
    worker.engine.publish(chain.stored(4, 5))
    worker.comes_to_hold(chain.tokens, gpu=10)


def test_a_clear_empties_the_gpu_and_not_the_host(new_worker: NewWorker) -> None:
    """A reset of vLLM's prefix cache leaves offloaded blocks where they are."""
    worker, chain = new_worker(), Chain(21, 4)
    worker.engine.publish(chain.stored())
    worker.engine.publish(chain.stored(0, 3, medium="CPU"))
    worker.comes_to_hold(chain.tokens, gpu=4, cpu=4)

    worker.engine.publish(CLEARED)

    worker.comes_to_hold(chain.tokens, gpu=0, cpu=3)


def test_a_sliding_window_limits_what_can_be_used(new_worker: NewWorker) -> None:
    """With a window of 17 tokens a hit needs the block before its end in the window's group too."""
    worker, chain = new_worker(), Chain(22, 6)
    worker.engine.publish(chain.stored(**FULL), chain.stored(**WINDOW))
    worker.comes_to_hold(chain.tokens, usable=6)

    worker.engine.publish(chain.removed(3, 4, 5, group_idx=1))
    worker.comes_to_hold(chain.tokens, usable=3)
    worker.engine.publish(chain.removed(0, 1, group_idx=1))
    worker.comes_to_hold(chain.tokens, usable=3)


def test_a_removal_from_one_group_is_none_from_the_others(new_worker: NewWorker) -> None:
    """Blocks that left the window are still attended to by the layers that see everything."""
    worker, chain = new_worker(), Chain(23, 6)
    worker.engine.publish(chain.stored(**FULL), chain.stored(**WINDOW))
    worker.comes_to_hold(chain.tokens, gpu=6)

    worker.engine.publish(chain.removed(0, 1, 2, 3, group_idx=1))

    worker.comes_to_hold(chain.tokens, gpu=6, usable=6)


def test_a_batch_that_comes_twice_counts_once(new_worker: NewWorker) -> None:
    """A-304: one copy was stored, so one removal takes it away."""
    worker, chain, other = new_worker(), Chain(24, 3), Chain(25, 1)
    worker.engine.publish(chain.stored(), times=2)
    worker.comes_to_hold(chain.tokens, gpu=3)

    worker.engine.publish(chain.removed(2, 1, 0))
    worker.engine.publish(other.stored())

    worker.comes_to_hold(other.tokens, gpu=1)
    worker.comes_to_hold(chain.tokens, gpu=0)


def test_a_block_is_held_until_its_last_copy_is_gone(new_worker: NewWorker) -> None:
    """Every physical copy is announced by vLLM, and its removal."""
    worker, chain, other = new_worker(), Chain(26, 3), Chain(27, 1)
    worker.engine.publish(chain.stored())
    worker.engine.publish(chain.stored())
    worker.engine.publish(chain.removed(2, 1, 0))
    worker.engine.publish(other.stored())
    worker.comes_to_hold(other.tokens, gpu=1)
    worker.comes_to_hold(chain.tokens, gpu=3)

    worker.engine.publish(chain.removed(2))

    worker.comes_to_hold(chain.tokens, gpu=2)


def test_malformed_messages_do_not_end_the_stream(new_worker: NewWorker) -> None:
    """Frames too few, too many, too short; numbers that are none; bytes that are nothing."""
    worker, chain = new_worker(), Chain(28, 4)
    worker.engine.publish(chain.stored(0, 2))
    worker.comes_to_hold(chain.tokens, gpu=2)

    for frames in ([b""], [b"", b""], [b"", b"\x00", b"x"], [b"", b"12345678"], [b"a", b"b", b"c", b"d", b"e"]):
        worker.engine.send(*frames)
    for payload in (b"", b"\xc1", b"\x93", b"\x92\xc0\x07", b"\xff" * 100):
        worker.engine.publish_payload(payload)
    worker.engine.publish(chain.stored(2))

    worker.comes_to_hold(chain.tokens, gpu=4)


def test_a_malformed_batch_of_one_worker_is_nothing_to_the_others(new_worker: NewWorker) -> None:
    """Nor is its removal."""
    bad, good, chain = new_worker(), new_worker(), Chain(29, 4)
    bad.engine.publish(chain.stored(0, 2))
    bad.engine.publish_raw({"type": "BlockStored", "block_hashes": chain.hashes, "token_ids": "x", "block_size": -1})
    good.engine.publish(chain.stored())
    bad.comes_to_hold(chain.tokens, gpu=2)
    good.comes_to_hold(chain.tokens, gpu=4)

    bad.service.unregister(bad.number)

    good.comes_to_hold(chain.tokens, gpu=4)
    bad.comes_to_hold(chain.tokens, gpu=0)


def test_equal_hashes_of_two_workers_are_two_blocks(new_worker: NewWorker) -> None:
    """One removes what the other keeps."""
    first, second, chain = new_worker(), new_worker(), Chain(30, 4)
    for worker in (first, second):
        worker.engine.publish(chain.stored())
        worker.comes_to_hold(chain.tokens, gpu=4)

    first.engine.publish(chain.removed(3, 2))

    first.comes_to_hold(chain.tokens, gpu=2)
    second.comes_to_hold(chain.tokens, gpu=4)


def test_blocks_of_another_tier_continue_a_prefix(new_worker: NewWorker) -> None:
    """Offloaded blocks are told by hash alone; what they are was said when they were on the GPU."""
    worker, chain = new_worker(), Chain(31, 6)
    worker.engine.publish(chain.stored())
    hash_only = chain.stored(3, 6, medium="CPU")
    hash_only = type(hash_only)(block_hashes=hash_only.block_hashes, medium="CPU")
    worker.engine.publish(hash_only)
    worker.engine.publish(chain.removed(5, 4, 3))

    worker.comes_to_hold(chain.tokens, gpu=3, cpu=6)
