"""Plans of split requests: whether, and where to. Nothing is booked by a plan."""

from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvrouter.blocks import Prompt
from kvrouter.events import Source
from kvrouter.routing import Router
from kvrouter.routing.constraints import UNCONSTRAINED, Constraints, LabelTerm, Role, Traits
from kvrouter.routing.disaggregation import Asked, SplitPlanner

LONG, SHORT = Prompt(list(range(1600))), Prompt(list(range(64)))


def _traits(role: Role | None, engine: str = "vllm", **labels: str) -> Traits:
    whole = role != "prefill" and not (role == "decode" and engine == "sglang")
    return Traits(role=role, whole=whole, labels=MappingProxyType({"engine": engine, **labels}))


def _fleet(**workers: Traits) -> tuple[Router, SplitPlanner]:
    router = Router()
    for name, traits in workers.items():
        router.add_worker(name, now=0.0)
        router.set_traits(name, traits)
    return router, SplitPlanner(router, tokens_min=512)


def _asked(prompt: Prompt | None = LONG, constraints: Constraints = UNCONSTRAINED, exclude: Any = ()) -> Asked:
    return Asked(prompt, None, None, exclude, constraints)


def _plan(planner: SplitPlanner, asked: Asked, *, splittable: bool = True) -> tuple[str, str | None, str | None]:
    verdict, prefill, decode = planner.plan(asked, splittable=splittable, now=0.0)
    return verdict, None if prefill is None else prefill.worker_id, None if decode is None else decode.worker_id


P, D, X, W = _traits("prefill"), _traits("decode"), _traits("both"), _traits(None)
SP, SD, SW = _traits("prefill", "sglang"), _traits("decode", "sglang"), _traits(None, "sglang")


@pytest.mark.parametrize(
    ("workers", "prompt", "plan"),
    [
        ({"p": P, "d": D}, LONG, ("split", "p", "d")),
        ({"p": P, "d": D}, SHORT, ("short", None, "d")),
        ({"p": P, "d": D}, None, ("short", None, "d")),
        ({"p": P, "x": X}, SHORT, ("short", None, "x")),
        ({"x": X}, LONG, ("same_worker", None, "x")),
        ({"p": P, "w": W}, LONG, ("no_decode", None, None)),
        ({"d": D, "w": W}, LONG, ("no_prefill", None, "d")),
        ({"sp": SP, "sd": SD}, LONG, ("split", "sp", "sd")),
        ({"sp": SP, "sd": SD}, SHORT, ("split", "sp", "sd")),
        ({"sp": SP, "sd": SD, "sw": SW}, SHORT, ("short", None, None)),
        ({"sd": SD, "sw": SW}, LONG, ("no_prefill", None, None)),
        ({"sd": SD}, LONG, ("no_prefill", None, None)),
        ({"p": P, "sd": SD}, LONG, ("no_prefill", None, None)),
        ({"p": P, "sp": SP, "sd": SD}, LONG, ("split", "sp", "sd")),
    ],
)
def test_a_plan_follows_from_who_is_there_and_what_is_left_to_compute(
    workers: dict[str, Traits], prompt: Prompt | None, plan: tuple[str, str | None, str | None]
) -> None:
    """And engines of two kinds are never paired."""
    _, planner = _fleet(**workers)

    assert _plan(planner, _asked(prompt)) == plan


def test_what_cannot_be_split_is_not_where_anybody_takes_it_whole() -> None:
    """However long it is."""
    assert _plan(_fleet(p=P, d=D)[1], _asked(), splittable=False) == ("unsplittable", None, "d")
    assert _plan(_fleet(p=SP, d=SD)[1], _asked(), splittable=False) == ("split", "p", "d")


def test_a_prompt_is_short_where_the_decode_rank_has_most_of_it() -> None:
    """What was answered there once need not be computed elsewhere again."""
    router, planner = _fleet(p=P, d=D)
    router.commit(router.decide(LONG, pinned=Source("d", 0), now=0.0), id=1, now=0.0)

    assert _plan(planner, _asked(Prompt([*range(1536), *range(9000, 9200)]))) == ("short", None, "d")
    assert _plan(planner, _asked(Prompt(list(range(5000, 6600))))) == ("split", "p", "d")


def test_a_rank_that_has_it_but_is_busy_makes_it_long() -> None:
    """Then the policy would compute it elsewhere, which is what prefill workers are for."""
    router, planner = _fleet(p=P, d=D, e=D)
    router.commit(router.decide(LONG, pinned=Source("d", 0), now=0.0), id=1, now=0.0)
    for number in range(60):
        router.book.reserve(("busy", number), 1, prefill_tokens=8000, blocks=500, now=0.0)

    verdict, prefill, decode = _plan(planner, _asked())

    assert (verdict, prefill, decode) == ("split", "p", "e")


def test_the_decode_rank_has_the_least_to_generate_and_to_fetch() -> None:
    """Prompts that wait there do not count: this one is computed elsewhere."""
    router, planner = _fleet(p=P, d=D, e=D)
    router.book.reserve("prompt", 1, prefill_tokens=100_000, blocks=0, now=0.0)
    router.book.reserve("answer", 2, prefill_tokens=0, blocks=400, now=0.0)
    router.book.reserve("another", 2, prefill_tokens=0, blocks=400, now=0.0)
    assert _plan(planner, _asked()) == ("split", "p", "d")

    router, planner = _fleet(p=P, d=D, e=D)
    router.commit(router.decide(Prompt(list(range(800))), pinned=Source("e", 0), now=0.0), id=1, now=0.0)
    router.book.free(1)
    assert _plan(planner, _asked(Prompt(list(range(3200))))) == ("split", "p", "e")


def test_a_decode_rank_is_charged_no_prompt_and_the_prefill_rank_all_of_it() -> None:
    """Each is booked for what it does."""
    router, planner = _fleet(p=P, d=D)

    plan = planner.plan(_asked(), splittable=True, now=0.0)

    assert plan.prefill is not None
    assert plan.decode is not None
    assert (plan.prefill.prefill_tokens, plan.decode.prefill_tokens) == (1600, 0)
    assert len(router.book) == 0


def test_equal_ranks_take_turns_in_both_parts() -> None:
    """A plan looks at each rank once."""
    router, planner = _fleet(p=P, q=P, d=D, e=D)
    plans = []
    for number in range(8):
        plan = planner.plan(_asked(Prompt(list(range(number * 2000, number * 2000 + 1600)))), splittable=True, now=0.0)
        assert plan.prefill is not None
        assert plan.decode is not None
        plans.append((plan.prefill.worker_id, plan.decode.worker_id))

    assert [plans.count((p, d)) for p, d in (("p", "d"), ("q", "e"))] == [4, 4]
    assert len(router.book) == 0


def test_what_is_asked_holds_for_both_and_a_pin_for_the_one_that_answers() -> None:
    """Labels narrow both stages."""
    gold = {"tier": "gold"}
    workers = {"p": P, "q": _traits("prefill", **gold), "d": D, "e": _traits("decode", **gold)}
    _, planner = _fleet(**workers)
    asked = Constraints(required=(LabelTerm("tier", frozenset({"gold"})),))

    assert _plan(planner, _asked(constraints=asked)) == ("split", "q", "e")
    verdict, prefill, decode = _plan(planner, _asked(constraints=Constraints(pinned_worker="d")))
    assert (verdict, decode) == ("split", "d")
    assert prefill in ("p", "q")


def test_who_failed_is_left_out_of_either_part() -> None:
    """Until nobody is left for it."""
    _, planner = _fleet(p=P, q=P, d=D, e=D)

    assert _plan(planner, _asked(exclude={"p", "d"})) == ("split", "q", "e")
    assert _plan(planner, _asked(exclude={"p", "q", "d"})) == ("no_prefill", None, "e")


_ROLES = st.sampled_from([P, D, X, W, SP, SD, SW])


@settings(deadline=None, max_examples=150)
@given(st.lists(_ROLES, min_size=1, max_size=5), st.sampled_from([LONG, SHORT, None]), st.booleans())
def test_whatever_the_fleet_a_plan_can_be_carried_out(
    traits: list[Traits], prompt: Prompt | None, splittable: bool
) -> None:
    """Parts go to who plays them, of one engine; a request that is whole goes to who takes it, or nobody does."""
    workers = {f"w{number}": each for number, each in enumerate(traits)}
    router, planner = _fleet(**workers)

    verdict, prefill, decode = _plan(planner, _asked(prompt), splittable=splittable)

    assert len(router.book) == 0
    if prefill is not None:
        assert decode is not None
        one, other = workers[prefill], workers[decode]
        assert prefill != decode
        assert (one.role in ("prefill", "both"), other.role in ("decode", "both")) == (True, True)
        assert one.labels["engine"] == other.labels["engine"]
        assert verdict == "split"
    elif decode is not None:
        assert workers[decode].whole
    elif verdict == "short":
        assert any(each.whole for each in traits)
