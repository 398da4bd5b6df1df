"""Policies that others have published, and those that need no knowledge of caches."""

from collections import Counter

import pytest

from kvrouter.blocks import Prompt
from kvrouter.routing import Router
from tests.routing.fleets import fleet, prompt_of, stored


def busy(router: Router, rank: int, requests: int, *, prefill_tokens: int = 0, blocks: int = 0) -> None:
    """Book requests on a rank; they generate unless they have prompt tokens to compute."""
    for number in range(requests):
        booking = (rank, number)
        router.book.reserve(booking, rank, prefill_tokens=prefill_tokens, blocks=blocks, now=0.0)
        if not prefill_tokens:
            router.book.prefill_complete(booking, now=0.0)


def chosen(router: Router, *parts: int, **options: int) -> tuple[str, str]:
    """Who gets a prompt, and why."""
    decision = router.decide(Prompt(prompt_of(*parts, **options)), now=0.0)
    return decision.worker_id, decision.reason


def test_power_of_two_takes_the_less_loaded_of_two() -> None:
    """The busiest of three is never chosen: the other one of its two is always less busy."""
    router = fleet("a", "b", "c", policy="power-of-two", seed=3)
    busy(router, 0, 9)
    busy(router, 1, 4)

    counted = Counter(router.decide(None, now=0.0).worker_id for _ in range(300))

    assert "a" not in counted
    assert counted["c"] > counted["b"] > 50
    assert fleet("a", policy="power-of-two").decide(None, now=0.0).worker_id == "a"


def test_lmetric_multiplies_what_is_to_be_computed_by_what_runs() -> None:
    """A rank with half of the prompt wins until it has twice as many requests."""
    router = fleet("a", "b", policy="lmetric")
    stored(router, "a", prompt_of(1))
    busy(router, 1, 1)
    assert chosen(router, 1, 2) == ("a", "product")

    busy(router, 0, 4)

    assert chosen(router, 1, 2) == ("b", "product")


def test_dynamo_adds_blocks_to_compute_and_blocks_in_use() -> None:
    """Four cached blocks are worth four blocks in use, and no more; equal costs are random."""
    router = fleet("a", "b", policy="dynamo-cost")
    stored(router, "a", prompt_of(1))
    busy(router, 0, 1, blocks=3)
    assert chosen(router, 1, 2)[0] == "a"
    busy(router, 1, 1)
    router.book.output_block((0, 0))

    assert {chosen(router, 1, 2)[0] for _ in range(40)} == {"a", "b"}
    router.book.output_block((0, 0))
    assert chosen(router, 1, 2) == ("b", "cost")


def test_the_threshold_rule_follows_a_match_until_the_fleet_is_out_of_balance() -> None:
    """More than three tenths of the prompt, and not more than 64 requests too many."""
    router = fleet("a", "b", policy="cache-aware-threshold")
    stored(router, "a", prompt_of(1))
    busy(router, 0, 64)
    assert chosen(router, 1, 2, 3) == ("a", "match")
    assert chosen(router, 1, 2, 3, 4) == ("b", "load")

    router.book.reserve("one more", 0, prefill_tokens=1, blocks=0, now=0.0)

    assert chosen(router, 1, 2, 3) == ("b", "imbalance")


def test_weights_are_those_of_the_original() -> None:
    """A whole overlap is worth more than a free queue or free blocks, and less than both."""
    router = fleet("a", "b", policy="weighted")
    stored(router, "a", prompt_of(1, 2, 3))
    busy(router, 0, 1, prefill_tokens=1)
    assert chosen(router, 1, 2, 3) == ("a", "score")

    router.book.reserve("blocks", 0, prefill_tokens=1, blocks=5, now=0.0)

    assert chosen(router, 1, 2, 3) == ("b", "score")


def test_prompts_that_begin_alike_go_together_until_a_rank_is_full() -> None:
    """Then to the next one in their own order, and back when there is room."""
    router = fleet("a", "b", "c", "d", policy="prefix-hash")
    prompt = prompt_of(1, tokens=1024)
    home = router.decide(Prompt(prompt + prompt_of(2)), now=0.0)
    assert home.reason == "prefix"

    for number in range(3):
        router.book.reserve(number, home.dense_rank, prefill_tokens=1, blocks=0, now=0.0)
    away = router.decide(Prompt(prompt + prompt_of(3)), now=0.0)
    again = router.decide(Prompt(prompt + prompt_of(4)), now=0.0)

    assert away.reason == "bound"
    assert home.worker_id != away.worker_id == again.worker_id
    for number in range(3):
        router.book.free(number)
    assert router.decide(Prompt(prompt + prompt_of(5)), now=0.0).worker_id == home.worker_id
    assert router.decide(None, now=0.0).reason == "load"


@pytest.mark.parametrize("policy", ["sticky", "prefix-hash"])
def test_prompts_that_begin_otherwise_spread(policy: str) -> None:
    """Over all ranks."""
    router = fleet("a", "b", "c", "d", policy=policy)

    assert len({chosen(router, number, tokens=2048)[0] for number in range(40)}) == 4
