"""What requests ask of their worker: what narrows, what only costs, and what is said where nothing fits."""

from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvrouter.blocks import Prompt
from kvrouter.errors import NoWorkerError, UnmetConstraintError
from kvrouter.events import Source
from kvrouter.routing import POLICIES, Router
from kvrouter.routing.constraints import Constraints, LabelTerm, Role, Taint, Traits, fitting

PROMPT = Prompt(list(range(64)))


def _fleet(policy: str = "kv", /, **traits: Traits) -> Router:
    router = Router(policy=policy)
    for name, each in traits.items():
        router.add_worker(name, now=0.0)
        router.set_traits(name, each)
    return router


def _labels(**labels: str) -> Traits:
    return Traits(labels=MappingProxyType(labels), names=frozenset(f"{key}={value}" for key, value in labels.items()))


def _term(key: str, *values: str) -> LabelTerm:
    return LabelTerm(key, frozenset(values))


def _chosen(router: Router, constraints: Constraints | None = None) -> set[str]:
    """Every worker that is chosen while load grows; it is given back."""
    found = set()
    for number in range(12):
        decision = router.decide(None, constraints=constraints, now=0.0)
        router.commit(decision, id=number, now=0.0)
        found.add(decision.worker_id)
    for number in range(12):
        router.finished(number, now=0.0)
    return found


GPUS = {"a": _labels(gpu="h100", tier="gold"), "b": _labels(gpu="a100"), "c": _labels(tier="spot")}


@pytest.mark.parametrize(
    ("constraints", "chosen"),
    [
        (Constraints(), {"a", "b", "c"}),
        (Constraints(required=(_term("gpu"),)), {"a", "b"}),
        (Constraints(required=(_term("gpu", "a100", "h200"),)), {"b"}),
        (Constraints(required=(_term("gpu"), _term("tier", "gold"))), {"a"}),
        (Constraints(forbidden=(_term("tier", "spot"),)), {"a", "b"}),
        (Constraints(forbidden=(_term("tier"),)), {"b"}),
        (Constraints(names=frozenset({"tier=spot"})), {"c"}),
        (Constraints(allowed=frozenset({"b", "nobody"})), {"b"}),
        (Constraints(exclude=frozenset({"b"})), {"a", "c"}),
        (Constraints(pinned_worker="c"), {"c"}),
        (Constraints(pinned=Source("b", 0)), {"b"}),
    ],
)
def test_conditions_leave_those_that_meet_them(constraints: Constraints, chosen: set[str]) -> None:
    """All conditions must hold at once."""
    assert _chosen(_fleet("kv", **GPUS), constraints) == chosen


@pytest.mark.parametrize(
    ("constraints", "said"),
    [
        (Constraints(required=(_term("gpu", "b200"),)), "label gpu=b200; there is gpu = a100, h100"),
        (Constraints(required=(_term("nvlink"),)), "label nvlink; labels there are: gpu, tier"),
        (Constraints(names=frozenset({"x"})), "routing_constraints x; known: gpu=a100, gpu=h100, tier=gold, tier=spot"),
        (Constraints(pinned_worker="d"), "worker 'd', to which this is pinned, is not available; there is: a, b, c"),
        (Constraints(pinned=Source("a", 3)), "rank 3 of worker 'a', to which this is pinned, is not available"),
        (Constraints(allowed=frozenset("xy")), r"allowed workers \(x, y\) is there; there is: a, b, c"),
        (Constraints(required=(_term("gpu"),), forbidden=(_term("gpu"),)), "have label gpu, which is forbidden: a, b"),
    ],
)
def test_what_nobody_is_is_named_with_what_there_is(constraints: Constraints, said: str) -> None:
    """So that whoever asks can see what he misspelt."""
    with pytest.raises(UnmetConstraintError, match=said):
        _fleet("kv", **GPUS).decide(PROMPT, constraints=constraints, now=0.0)


def test_who_fits_but_is_not_there_now_may_be_there_later() -> None:
    """That is another error than a condition that nobody meets."""
    router = _fleet("kv", **GPUS)
    router.set_routable("a", False, now=0.0)

    with pytest.raises(NoWorkerError, match="not routable: a") as raised:
        router.decide(PROMPT, constraints=Constraints(required=(_term("tier", "gold"),)), now=0.0)

    assert not isinstance(raised.value, UnmetConstraintError)


def test_a_taint_keeps_away_what_does_not_tolerate_it() -> None:
    """By key, by key and value, or all of them; a pin does not ask."""
    router = _fleet(a=Traits(), b=Traits(taints=(Taint("dedicated", "batch", soft=False),)))

    assert _chosen(router) == {"a"}
    for tolerated in ("dedicated", "dedicated=batch", "*"):
        assert _chosen(router, Constraints(tolerated=frozenset({tolerated}))) == {"a", "b"}
    assert _chosen(router, Constraints(tolerated=frozenset({"dedicated=other"}))) == {"a"}
    assert _chosen(router, Constraints(pinned_worker="b")) == {"b"}
    assert router.decide(PROMPT, pinned=Source("b", 0), now=0.0).worker_id == "b"


def test_where_all_are_tainted_the_taints_are_named() -> None:
    """A request that asks for nothing is not at fault."""
    router = _fleet(a=Traits(taints=(Taint("spot", "", soft=False),)))

    with pytest.raises(NoWorkerError, match=r"\(a\) has taints that this does not tolerate: spot:NoSchedule") as raised:
        router.decide(PROMPT, now=0.0)

    assert not isinstance(raised.value, UnmetConstraintError)


@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_preferred_is_taken_until_it_is_busier_by_its_price(policy: str) -> None:
    """A-155: zones, soft taints and conversations are prices, whatever the policy: nothing is refused for them."""
    soft = Traits(taints=(Taint("old", "", soft=True),))
    for traits, constraints in (
        ({"a": Traits(zone="near"), "b": Traits(zone="far")}, Constraints(zone="near", zone_seconds=0.3)),
        ({"a": Traits(), "b": soft}, Constraints(taint_seconds=0.3)),
        ({"a": Traits(), "b": Traits()}, Constraints(affine=Source("a", 0), affine_seconds=0.3)),
        ({"a": Traits(names=frozenset("n")), "b": Traits()}, Constraints(preferred=(("n", 0.3),))),
        ({"a": Traits(), "b": Traits(names=frozenset("n"))}, Constraints(preferred=(("n", -0.3),))),
    ):
        router = _fleet(policy, **traits)
        first = router.decide(PROMPT, constraints=constraints, now=0.0)
        for number in range(3000):
            router.book.reserve(number, first.dense_rank, prefill_tokens=8000, blocks=500, now=0.0)
            if router.decide(PROMPT, constraints=constraints, now=0.0).worker_id == "b":
                break

        assert first.worker_id == "a"
        assert router.decide(PROMPT, constraints=constraints, now=0.0).worker_id == "b"


def test_a_preference_that_all_meet_or_none_decides_nothing() -> None:
    """So it costs the usual way nothing either."""
    near = Traits(zone="near")
    for workers, zone, extra in (
        ({"a": near, "b": near}, "near", None),
        ({"a": near, "b": near}, "far", None),
        ({"a": near, "b": Traits()}, "near", (0.0, 0.5)),
    ):
        router = _fleet("kv", **workers)
        assert router.fleet.candidates(None, Constraints(zone=zone)).extra_seconds == extra


def test_roles_keep_parts_of_requests_and_whole_ones_apart() -> None:
    """Workers without a role take no part in split requests."""
    roles: dict[str, Role | None] = {"p": "prefill", "d": "decode", "x": "both", "w": None}
    router = _fleet("kv", **{name: Traits(role=role, whole=role != "prefill") for name, role in roles.items()})

    assert _chosen(router) == {"d", "x", "w"}
    assert _chosen(router, Constraints(role="prefill")) == {"p", "x"}
    assert _chosen(router, Constraints(role="decode")) == {"d", "x"}
    with pytest.raises(NoWorkerError, match="no worker has role decode or both; there is: p"):
        _fleet(p=Traits(role="prefill", whole=False)).decide(PROMPT, constraints=Constraints(role="decode"), now=0.0)
    with pytest.raises(NoWorkerError, match="only a part of a request"):
        _fleet(p=Traits(role="prefill", whole=False)).decide(PROMPT, now=0.0)


def test_a_change_of_the_fleet_is_seen_by_the_next_request() -> None:
    """What was narrowed before is not kept."""
    router, asked = _fleet("kv", **GPUS), Constraints(required=(_term("gpu", "h100"),))
    assert _chosen(router, asked) == {"a"}

    router.set_traits("b", _labels(gpu="h100"))
    assert _chosen(router, asked) == {"a", "b"}
    router.remove_worker("a", now=0.0)
    assert _chosen(router, asked) == {"b"}


class _Worker:
    def __init__(self, number: int, traits: Traits) -> None:
        self.worker_id, self.traits = f"w{number}", traits


_KEYS = st.sampled_from(["k", "l", "m"])
_VALUES = st.sampled_from(["1", "2", ""])
_TRAITS = st.builds(
    lambda labels, taints, role: Traits(labels=MappingProxyType(labels), taints=tuple(taints), role=role),
    st.dictionaries(_KEYS, _VALUES, max_size=3),
    st.lists(st.builds(Taint, _KEYS, _VALUES, soft=st.booleans()), max_size=2),
    st.sampled_from([None, "decode", "both"]),
)
_TERMS = st.lists(st.builds(LabelTerm, _KEYS, st.frozensets(_VALUES, max_size=2)), max_size=2).map(tuple)
_ASKED = st.builds(
    Constraints,
    required=_TERMS,
    forbidden=_TERMS,
    tolerated=st.frozensets(st.sampled_from(["k", "l=1", "*"]), max_size=2),
    allowed=st.none() | st.frozensets(st.sampled_from(["w0", "w1", "w2"])),
    pinned_worker=st.none() | st.sampled_from(["w0", "w9"]),
    role=st.sampled_from([None, "decode"]),
)


def _fits(worker: _Worker, asked: Constraints) -> bool:
    """The rules once more, as one would say them."""
    labels, pin = worker.traits.labels, asked.pinned_worker
    wanted = all(term.key in labels and (not term.values or labels[term.key] in term.values) for term in asked.required)
    unwanted = any(
        term.key in labels and (not term.values or labels[term.key] in term.values) for term in asked.forbidden
    )
    kept_away = any(
        not taint.soft and not asked.tolerated & {"*", taint.key, f"{taint.key}={taint.value}"}
        for taint in worker.traits.taints
    )
    listed = asked.allowed is None or worker.worker_id in asked.allowed
    if pin is not None:
        return worker.worker_id == pin and listed and wanted and not unwanted
    plays = asked.role is None or worker.traits.role in (asked.role, "both")
    return listed and wanted and not unwanted and plays and not kept_away


@settings(deadline=None, max_examples=200)
@given(st.lists(_TRAITS, min_size=1, max_size=4), _ASKED)
def test_who_fits_is_who_meets_every_rule(traits: list[Traits], asked: Constraints) -> None:
    """Whatever the order in which conditions are looked at; an empty result is always an error."""
    workers = [_Worker(number, each) for number, each in enumerate(traits)]
    expected = [worker.worker_id for worker in workers if _fits(worker, asked)]

    try:
        found = [worker.worker_id for worker in fitting(workers, asked)]
    except NoWorkerError:
        found = []

    assert found == expected
