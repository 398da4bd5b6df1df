"""How fast what is cached is lost while requests wait, learnt from what was left of promises."""

from math import exp
from random import Random

import pytest

from kvrouter.blocks import Prompt
from kvrouter.events import BlockRemoved, EventBatch, Source, encode_batch
from kvrouter.routing import RankLoad, Router
from kvrouter.routing.losses import Losses
from tests.routing.fleets import fleet, prompt_of, stored


def test_a_constant_loss_is_found() -> None:
    """Whatever the waits were: short ones lose little, long ones nearly all."""
    losses, load, random = Losses(), RankLoad(), Random(3)
    for _ in range(400):
        waited = random.choice((1.0, 2.0, 8.0))
        kept = sum(random.random() < exp(-0.08 * waited) for _ in range(50))
        losses.learn(load, promised=50, kept=kept, waited=waited)

    assert load.loss_rate == pytest.approx(0.08, rel=0.3)


def test_kept_promises_lose_nothing_and_a_new_rank_begins_anew() -> None:
    """Nothing is lost where all is kept; nothing is known of a rank that has left."""
    losses, load = Losses(), RankLoad(rank=3)
    losses.learn(load, promised=1000, kept=1000, waited=30.0)
    kept_rate = load.loss_rate
    losses.learn(load, promised=1000, kept=0, waited=30.0)
    lost_rate = load.loss_rate
    losses.forget(3)
    losses.learn(load, promised=1000, kept=1000, waited=30.0)

    assert kept_rate == load.loss_rate == 0.0
    assert lost_rate > 0.0


def answered(router: Router, waited: float, cached: int) -> None:
    """One request that was promised all of a prompt, waited, and found so much of it."""
    decision = router.decide(Prompt(prompt_of(1, tokens=1616)), now=0.0)
    router.commit(decision, id="x", now=0.0)
    router.first_token("x", now=waited, learns=False)
    router.finished("x", now=waited, cached_tokens=cached)


def test_a_rank_that_evicts_while_requests_wait_is_not_taken_for_a_broken_one() -> None:
    """Its promises count less the longer a prompt would wait, and it is asked for nothing."""
    router = fleet("a")
    stored(router, "a", prompt_of(1, tokens=1600))
    for _ in range(8):
        answered(router, 60.0, 0)
        answered(router, 0.0, 1600)
    load = router.book.load(0)
    idle = router.decide(Prompt(prompt_of(1, tokens=1616)), now=0.0)
    router.book.reserve("queue", 0, prefill_tokens=400_000, blocks=1, now=0.0)
    busy = router.decide(Prompt(prompt_of(1, tokens=1616)), now=0.0)

    assert not router.learning.audit.rank(0).demoted
    assert load.belief == 1.0
    assert idle.prefill_tokens == 16
    assert busy.prefill_tokens > 500
    assert busy.overlap_tokens == idle.overlap_tokens == 1600


def test_a_rank_that_never_had_what_it_promised_is_demoted_as_ever() -> None:
    """What is gone at once was not lost by waiting."""
    router = fleet("a")
    stored(router, "a", prompt_of(1, tokens=1600))
    for _ in range(16):
        answered(router, 0.05, 0)

    assert router.learning.audit.rank(0).demoted


def test_how_much_of_what_does_not_fit_is_lost_is_learnt() -> None:
    """At first half of it is believed; then what answers say. What fits tells nothing of that."""
    losses, load = Losses(), RankLoad()
    load.room_tokens = 1000
    first = (
        losses.overflowed(load, promised=1000, kept=0, over=400),
        losses.overflowed(load, promised=9, kept=0, over=0),
    )
    for _ in range(300):
        losses.overflowed(load, promised=1000, kept=900, over=400)
    losses.forget(0)

    assert first == (800, 9)
    assert load.room_loss == pytest.approx(0.25, rel=0.01)
    losses.learn(load, promised=0, kept=0, waited=1.0)
    assert load.loss_rate == 0.0


def test_a_block_that_requests_share_needs_room_once() -> None:
    """Where blocks are counted so, the same prompt again is not more than fits."""
    router = fleet("a", share_active_blocks=True)
    router.expire(0.0)
    router.book.load(0).room_tokens = 1800
    for number in range(3):
        router.commit(router.decide(Prompt(prompt_of(1, tokens=1616)), now=0.0), id=number, now=0.0)
    router.commit(router.decide(Prompt(prompt_of(2, tokens=1616)), now=0.0), id="other", now=0.0)

    assert [router.book.bookings[each].over_tokens for each in (0, 2, "other")] == [0, 0, 2 * 1616 - 1800]


def test_only_policies_that_weigh_room_are_told_of_it() -> None:
    """Others are compared by prompts as promised; a policy that is chosen later is told what was measured before."""
    rooms = []
    for policy in ("kv", "lmetric"):
        router = fleet("a", policy=policy)
        stored(router, "a", prompt_of(1, tokens=1600))
        router.expire(0.0)
        gone = BlockRemoved(block_hashes=(hash(("a", 0, 0, 99)) & (2**64 - 1),), medium="GPU")
        batch = EventBatch(timestamp=0.0, events=(gone,), data_parallel_rank=0, skipped={})
        router.ingest.receive(Source("a", 0), 1, encode_batch(batch), now=0.0)
        router.expire(5.0)
        rooms.append(router.book.load(0).room_tokens)
        router.change(router.policy("kv"), router.settings)
        router.expire(10.0)
        rooms.append(router.book.load(0).room_tokens)

    assert rooms == [1584, 1584, 0, 1584]
