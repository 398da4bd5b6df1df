"""What tiers below the GPU cost is learnt from first tokens, and counts in the next choice."""

from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvrouter.blocks import Prompt
from kvrouter.routing import Decision, Router
from kvrouter.routing.load import LoadBook
from kvrouter.routing.tier_costs import TierCosts
from tests.routing.fleets import fleet, prompt_of, stored

SPEED, ATTENTION = 8000.0, 65_536.0
PROMPT, ON_GPU, BELOW = 8192, 1024, 6144


def computing(tokens: int, prompt: int) -> float:
    """Seconds for the last tokens of a prompt, as a rank of the usual speed takes them."""
    return tokens / SPEED + tokens * (2 * prompt - tokens) / 2 / SPEED / ATTENTION


def offloaded(router: Router, tokens: Sequence[int], *, tier: str) -> None:
    """Let the worker have a prompt's beginning on the GPU and what follows below it."""
    stored(router, "a", list(tokens[:ON_GPU]), sequence=router_sequence(router))
    index, hashes = router.ingest.lookup.index, Prompt(list(tokens)).hashes(16)
    index.store(0, hashes[ON_GPU // 16 : (ON_GPU + BELOW) // 16], tier)


def router_sequence(router: Router) -> int:
    """The number of the next batch of a router's only source."""
    return router.fleet.worker("a").ranks[0].load.arrivals


def asked(router: Router, number: int, *, tier: str, share: float, now: float) -> Decision:
    """Ask for a prompt that is partly below the GPU, at a rank that loads at a share of the time of computing."""
    tokens = prompt_of(number + 10, tokens=PROMPT)
    offloaded(router, tokens, tier=tier)
    router.expire(now)
    decision = router.route(tokens, now=now)
    below = ON_GPU + BELOW
    seconds = share * computing(BELOW, below) + computing(PROMPT - below, PROMPT)
    router.first_token(decision.id, now=now + seconds)
    router.finished(decision.id, now=now + seconds + 1.0, cached_tokens=below)
    return decision


@pytest.mark.parametrize(("tier", "believed"), [("cpu", 0.1), ("disk", 0.4)])
@pytest.mark.parametrize("share", [0.02, 0.75])
def test_what_loading_costs_is_learnt_and_counts(tier: str, believed: float, share: float) -> None:
    """Whatever was believed; and what it had to load is no speed of computing."""
    router = fleet("a")
    before = router.book.load(0).token_seconds

    decisions = [asked(router, each, tier=tier, share=share, now=10.0 * each) for each in range(20)]

    assert decisions[0].loads == ((tier, BELOW),)
    assert decisions[0].prefill_tokens == PROMPT - ON_GPU - round(BELOW * (1 - believed))
    assert router.learning.tiers.cost(tier) == pytest.approx(share, abs=0.03)
    assert decisions[-1].prefill_tokens == pytest.approx(PROMPT - ON_GPU - BELOW * (1 - share), abs=BELOW * 0.03)
    assert router.book.load(0).token_seconds == before
    assert router.learning.tiers.observed(tier) == 20


def test_a_tier_that_is_slower_than_computing_is_worth_nothing() -> None:
    """A broken disk: its blocks attract nobody any more."""
    router = fleet("a")

    decisions = [asked(router, each, tier="disk", share=3.0, now=30.0 * each) for each in range(40)]

    assert decisions[-1].prefill_tokens == pytest.approx(PROMPT - ON_GPU, rel=0.02)


def test_one_absurd_time_moves_little_and_is_forgotten() -> None:
    """As the engine stalls once for ten minutes."""
    router = fleet("a")
    for each in range(20):
        asked(router, each, tier="cpu", share=0.1, now=10.0 * each)
    asked(router, 20, tier="cpu", share=1000.0, now=300.0)
    moved = router.learning.tiers.cost("cpu")
    for each in range(21, 60):
        asked(router, each, tier="cpu", share=0.1, now=2000.0 + 10.0 * each)

    assert moved < 0.2
    assert router.learning.tiers.cost("cpu") == pytest.approx(0.1, abs=0.02)


def test_without_tiers_below_nothing_is_learnt_of_them() -> None:
    """Where all is on the GPU, speeds are learnt as ever."""
    router = fleet("a")
    random = Random(1)
    for each in range(30):
        decision = router.route(prompt_of(each, tokens=random.randrange(2000, 6000)), now=10.0 * each)
        router.first_token(
            decision.id, now=10.0 * each + 4.0 * computing(decision.prompt_tokens, decision.prompt_tokens)
        )
        router.finished(decision.id, now=10.0 * each + 9.0)
    router.expire(1000.0)

    assert decision.loads == ()
    assert [router.learning.tiers.observed(tier) for tier in ("cpu", "disk")] == [0, 0]
    assert router.learning.tiers.costs() == {"cpu": pytest.approx(0.1), "disk": pytest.approx(0.4)}
    assert router.book.load(0).token_seconds > 1.5 / SPEED


def test_loads_that_are_a_small_part_of_the_time_tell_nothing() -> None:
    """What is computed beside them would be taken for them."""
    costs, book = TierCosts({"cpu": 0.1}), LoadBook()
    booking = book.reserve("r", 0, prefill_tokens=7000, blocks=512, prompt_tokens=8192, now=0.0)

    assert not costs.first_token(booking, (("cpu", 500),), promised=692, prompt_tokens=8192, now=1.0)
    assert costs.cost("cpu") == pytest.approx(0.1)


@given(
    told=st.lists(
        st.tuples(st.integers(0, 1 << 22), st.integers(0, 1 << 22), st.floats(-1e6, 1e9), st.booleans()), max_size=30
    )
)
def test_no_cost_leaves_its_bounds(told: list[tuple[int, int, float, bool]]) -> None:
    """Whatever is told, in whatever order of time."""
    costs, book = TierCosts({"cpu": 0.1, "disk": 0.4}), LoadBook()
    for number, (tokens, below, now, both) in enumerate(told):
        booking = book.reserve(number, 0, prefill_tokens=tokens, blocks=0, now=0.0)
        loads = (("cpu", below), ("disk", tokens)) if both else (("disk", below),)
        costs.first_token(booking, loads, promised=16, prompt_tokens=tokens + below, now=now)

    assert all(0.0 <= cost <= 1.0 for cost in costs.costs().values())
