"""Each policy keeps its one promise."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvrouter.blocks import Prompt
from kvrouter.routing import POLICIES, Router, RoutingSettings, make_policy
from tests.routing.fleets import fleet, prompt_of, stored


def chosen(router: Router, count: int, **options: object) -> list[str]:
    """The workers of `count` decisions that are not booked."""
    return [router.decide(None, now=0.0, **options).worker_id for _ in range(count)]  # type: ignore[arg-type]


def test_every_policy_has_its_name() -> None:
    """The registry, the policies themselves and decisions agree."""
    for name in POLICIES:
        assert make_policy(name, RoutingSettings()).name == name
        assert fleet("a", policy=name).decide(Prompt([1]), now=0.0).policy == name


def test_round_robin_is_even() -> None:
    """Over ranks, in order, whatever the load."""
    router = fleet("a", "b", "c", policy="round-robin")
    router.book.reserve("x", 0, prefill_tokens=10**6, blocks=9, now=0.0)

    assert chosen(router, 7) == ["a", "b", "c", "a", "b", "c", "a"]


def test_round_robin_stays_even_when_the_fleet_changes() -> None:
    """A new worker gets its turn, not a flood; one that is left out for a while is not owed everything."""
    router = fleet("a", "b", policy="round-robin")
    chosen(router, 10)
    router.add_worker("c", now=0.0)

    assert Counter(chosen(router, 30)) == {"a": 10, "b": 10, "c": 10}


def test_random_is_fair_and_repeatable() -> None:
    """Each seed has its own sequence."""
    sequences = [chosen(fleet("a", "b", "c", policy="random", seed=seed), 300) for seed in (1, 1, 2)]

    assert sequences[0] == sequences[1] != sequences[2]
    assert all(count > 60 for count in Counter(sequences[0]).values())


def test_least_loaded_evens_out_requests() -> None:
    """Fewest running requests first, then least prefill work."""
    router = fleet("a", "b", "c", policy="least-loaded")
    for number in range(9):
        router.commit(router.decide(Prompt(prompt_of(number)), now=0.0), id=number, now=0.0)
    assert {router.book.load(rank).active_requests for rank in range(3)} == {3}

    router.book.prefill_complete(4, now=0.0)

    assert router.decide(None, now=0.0).dense_rank == 1


def test_a_session_sticks() -> None:
    """To one worker each, and sessions spread over all."""
    router = fleet("a", "b", "c", "d", policy="sticky")
    homes = {f"s{number}": chosen(router, 1, session=f"s{number}")[0] for number in range(400)}

    assert all(chosen(router, 2, session=name) == [home, home] for name, home in homes.items())
    assert all(60 < count < 140 for count in Counter(homes.values()).values())


def test_only_the_sessions_of_a_gone_worker_move_and_they_return() -> None:
    """Losing one of four workers moves a quarter of the sessions."""
    router = fleet("a", "b", "c", "d", policy="sticky")
    names = [f"s{number}" for number in range(200)]
    before = {name: chosen(router, 1, session=name)[0] for name in names}

    router.set_routable("b", False, now=0.0)
    during = {name: chosen(router, 1, session=name)[0] for name in names}
    router.set_routable("b", True, now=0.0)

    assert all(during[name] == before[name] for name in names if before[name] != "b")
    assert "b" not in during.values()
    assert {name: chosen(router, 1, session=name)[0] for name in names} == before


def test_without_a_session_the_beginning_of_the_prompt_sticks() -> None:
    """Prompts that begin with the same 2048 tokens go together; without a whole block load decides."""
    router = fleet("a", "b", "c", "d", policy="sticky")
    homes = {
        router.decide(Prompt(prompt_of(1, tokens=2048) + prompt_of(number)), now=0.0).worker_id
        for number in range(2, 20)
    }

    assert len(homes) == 1
    assert len({router.decide(Prompt(prompt_of(n, tokens=2048)), now=0.0).worker_id for n in range(40)}) == 4
    assert router.decide(Prompt([1, 2]), now=0.0).reason == "load"
    assert router.decide(None, now=0.0).reason == "load"


def test_equal_costs_go_round() -> None:
    """An idle fleet shares strangers evenly."""
    assert Counter(chosen(fleet("a", "b", "c"), 9)) == {"a": 3, "b": 3, "c": 3}


@given(st.lists(st.integers(0, 2000), min_size=1, max_size=6), st.lists(st.integers(0, 20), min_size=6, max_size=6))
def test_kv_never_takes_a_rank_that_is_worse_in_every_way(queues: list[int], held: list[int]) -> None:
    """No other rank has both more of the prompt and less to do."""
    names = [f"w{number}" for number in range(len(queues))]
    router = fleet(*names)
    prompt = prompt_of(1, tokens=400)
    for rank, queue in enumerate(queues):
        router.book.reserve(rank, rank, prefill_tokens=queue, blocks=0, now=0.0)
        if held[rank]:
            stored(router, names[rank], prompt[: held[rank] * 16])

    decision = router.decide(Prompt(prompt), now=0.0)

    mine = next(each for each in decision.candidates if each.worker_id == decision.worker_id)
    for other in decision.candidates:
        assert not (other.overlap_tokens > mine.overlap_tokens and other.prefill_tokens < mine.prefill_tokens)
        assert other.cost >= mine.cost or other.overlap_tokens < mine.overlap_tokens


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"prefill_tokens_per_second": 0.0}, "prefill_tokens_per_second"), ({"affinity": 0.0}, "affinity")],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float], words: str) -> None:
    """A division by zero is not found out later."""
    with pytest.raises(ValueError, match=words):
        RoutingSettings(**wrong)  # type: ignore[arg-type]
