"""A decision of the native core, made in one call, is the decision that Python makes step by step."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvrouter import native_core
from kvrouter.blocks import Prompt
from kvrouter.events import Source
from kvrouter.routing import Decision, Router, RoutingSettings
from kvrouter.routing.constraints import Constraints, Traits
from kvrouter.routing.fleet import Candidates, FleetRank
from kvrouter.routing.kv import KvPolicy, NativeKvPolicy
from kvrouter.routing.load import RankLoad
from kvrouter.routing.policy import Request
from tests.routing.fleets import fleet, prompt_of, stored

WORKERS = "abcd"
PARTS = st.lists(st.integers(1, 3), min_size=1, max_size=3)
STEPS = st.one_of(
    st.tuples(st.just("route"), PARTS, st.sampled_from([20, 64, 700])),
    st.tuples(st.just("place"), PARTS, st.sampled_from([20, 64, 700])),
    st.tuples(st.just("store"), st.integers(0, 3), PARTS, st.sampled_from([20, 64, 700])),
    st.tuples(st.just("lose"), st.integers(0, 3)),
    st.tuples(st.just("answers"), st.integers(0, 3), st.sampled_from([0, 100, 333, 999])),
    st.tuples(st.just("pass"), st.sampled_from([0.5, 3.0, 20.0, 700.0])),
    st.tuples(st.just("free"), st.integers(0, 30)),
    st.tuples(st.just("exclude"), PARTS, st.integers(0, 3)),
    st.tuples(st.just("offload"), st.integers(0, 3), PARTS, st.sampled_from(["cpu", "disk", "shelf"])),
    st.tuples(st.just("zones"), st.lists(st.sampled_from(["", "here", "there"]), min_size=4, max_size=4)),
    st.tuples(st.just("near"), PARTS, st.sampled_from(["here", "there"])),
    st.tuples(st.just("loses"), st.integers(0, 3), st.sampled_from([0.0, 0.05, 3.0])),
    st.tuples(st.just("fills"), st.integers(0, 3), st.sampled_from([0, 100, 1000]), st.sampled_from([0.3, 1.0])),
)


def both(**options: Any) -> list[Router]:
    """A router that decides as fast as it can, and one that has to ask a policy of its own."""
    return [fleet(*WORKERS, policy=policy, **options) for policy in ("kv", KvPolicy(RoutingSettings(**options)))]


def shown(decision: Decision) -> list[object]:
    """Everything that a decision says."""
    names = (
        "worker_id rank dense_rank overlap_tokens confirmed_tokens prefill_tokens prompt_tokens block_size blocks "
        "cost policy reason"
    )
    fields = [getattr(decision, name) for name in names.split()]
    return [*fields, *([getattr(each, name) for name in each.__slots__] for each in decision.candidates)]


@given(st.lists(STEPS, max_size=25))
@settings(max_examples=150, deadline=None)
def test_every_history_leads_to_the_same_decisions(steps: list[Any]) -> None:
    """Stored, predicted, doubted, ended, freed: the same worker, for the same reason, at the same cost."""
    routers = both()
    now, routed, sequences = 0.0, 0, dict.fromkeys(WORKERS, 0)
    for step in steps:
        said = []
        for router in routers:
            match step:
                case "route", parts, tokens:
                    decision = router.decide(Prompt(prompt_of(*parts, tokens=tokens)), now=now)
                    said.append(shown(decision))
                    router.commit(decision, id=routed, now=now)
                case "place", parts, tokens:
                    prompt = Prompt(prompt_of(*parts, tokens=tokens))
                    decision = router.place(prompt, model=None, session=None, exclude=(), id=routed, now=now)
                    said.append(shown(decision))
                case "exclude", parts, worker:
                    prompt = Prompt(prompt_of(*parts))
                    said.append(shown(router.decide(prompt, exclude={WORKERS[worker]}, now=now)))
                case "store", worker, parts, tokens:
                    name = WORKERS[worker]
                    stored(router, name, prompt_of(*parts, tokens=tokens), sequence=sequences[name], now=now)
                case "lose", worker:
                    router.ingest.disconnected(Source(WORKERS[worker], 0), now=now)
                case "answers", worker, cached:
                    load = router.book.load(worker)
                    for _ in range(16):
                        router.learning.audit.answered(load, promised=1000, cached=cached, now=now)
                case "offload", worker, parts, tier:
                    hashes = Prompt(prompt_of(*parts, tokens=100)).hashes(16)
                    router.ingest.lookup.index.store(worker, hashes, tier)
                    router.expire(now)
                case "zones", zones:
                    for name, zone in zip(WORKERS, zones, strict=True):
                        router.set_traits(name, Traits(zone=zone or None))
                case "near", parts, zone:
                    prompt = Prompt(prompt_of(*parts, tokens=100))
                    said.append(shown(router.decide(prompt, constraints=Constraints(zone=zone), now=now)))
                case "loses", worker, rate:
                    router.book.load(worker).loss_rate = rate
                    router.book.load(worker).loss_seconds = 30.0
                case "fills", worker, room, loss:
                    load = router.book.load(worker)
                    load.room_tokens, load.room_loss = room, loss
                case "free", number:
                    router.book.free(number)
                case "pass", _:
                    router.expire(now)
        assert said[:1] == said[1:]
        assert [router.book.loads() for router in routers[:1]] == [router.book.loads() for router in routers[1:]]
        assert len(routers[0].knowledge) == len(routers[1].knowledge)
        routed += step[0] in ("route", "place")
        now += step[1] if step[0] == "pass" else 0
        if step[0] == "store":
            sequences[WORKERS[step[1]]] += 1


def test_a_large_fleet_notes_the_same_candidates() -> None:
    """The chosen one first, then those that hold some of the prompt."""
    decisions = []
    for policy in ("kv", KvPolicy(RoutingSettings())):
        router = fleet(*(f"w{number}" for number in range(200)), policy=policy)
        for number in range(70, 170):
            stored(router, f"w{number}", prompt_of(1))
        router.book.reserve("busy", 70, prefill_tokens=5000, blocks=3, now=0.0)
        decisions.append(router.decide(Prompt(prompt_of(1, 2)), now=0.0))

    assert shown(decisions[0]) == shown(decisions[1])
    assert len(decisions[0].candidates) == 64


def test_blocks_in_places_that_nobody_knows_do_not_count() -> None:
    """Only what is on the GPU is confirmed, however many places there are."""
    said = []
    for router in both():
        stored(router, "a", prompt_of(1))
        hashes = Prompt(prompt_of(1, 2)).hashes(16)
        for tier in range(70):
            router.ingest.lookup.index.store(1, hashes, f"tier-{tier}")
        said.append(shown(router.decide(Prompt(prompt_of(1, 2)), now=0.0)))

    assert said[0] == said[1]
    assert said[0][0] == "a"


LOADS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 2000), st.integers(0, 40), st.integers(0, 2)), min_size=1, max_size=8
)


@pytest.mark.parametrize("policy", [NativeKvPolicy] if native_core.present else [KvPolicy])
@given(
    loads=LOADS,
    believed=st.dictionaries(st.integers(0, 7), st.sampled_from([0, 16, 160, 1600, 40_000])),
    tokens=st.integers(0, 50_000),
    affinity=st.sampled_from([0.1, 0.8, 1.0]),
)
@settings(max_examples=500, deadline=None)
def test_every_choice_is_the_choice_of_the_reference(
    policy: type[KvPolicy], loads: list[tuple[int, ...]], believed: dict[int, int], tokens: int, affinity: float
) -> None:
    """Ties included: fewer requests, then chosen longer ago, then the first."""
    ranks = []
    for number, (requests, prefill, blocks, turn) in enumerate(loads):
        load = RankLoad(requests, prefill, blocks, rank=number)
        load.turn = turn
        ranks.append(FleetRank(Source("w", number), number, load))
    candidates, request = Candidates(ranks), Request(None, tokens, believed, None)
    knobs = RoutingSettings(affinity=affinity)

    found, reason = policy(knobs).choose(candidates, request)

    assert (found, reason) == KvPolicy(knobs).choose(candidates, request)
