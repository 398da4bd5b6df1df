"""Policies that are put together from parts, and how they get their names."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

from kvrouter.blocks import Prompt
from kvrouter.events import Source
from kvrouter.routing import (
    ENTRY_POINTS,
    Pipeline,
    Policy,
    Request,
    RoutingSettings,
    make_policy,
    overlap_share,
    softmax,
)
from kvrouter.routing.fleet import Candidates
from tests.routing.fleets import fleet, prompt_of, stored


def only(*workers: str) -> object:
    """A filter that leaves these."""
    return lambda candidates, _: [each.worker_id in workers for each in candidates]


def favours(worker: str) -> object:
    """A scorer that rates one worker 1."""
    return lambda candidates, _: [float(each.worker_id == worker) for each in candidates]


def test_filters_come_before_scores() -> None:
    """The best of those that are left."""
    policy = Pipeline("own", filters=[only("a", "b")], scorers=[(5.0, favours("c")), (1.0, favours("b"))])  # type: ignore[list-item]

    decision = fleet("a", "b", "c", policy=policy).decide(None, now=0.0)

    assert (decision.worker_id, decision.policy, decision.reason) == ("b", "own", "score")


def test_a_filter_that_leaves_nobody_does_not_count() -> None:
    """The others still do."""
    policy = Pipeline("own", filters=[only("z"), only("c")], scorers=[(1.0, favours("a"))])  # type: ignore[list-item]

    assert fleet("a", "b", "c", policy=policy).decide(None, now=0.0).worker_id == "c"


def test_equal_scores_go_round() -> None:
    """To the rank that was chosen longest ago."""
    router = fleet("a", "b", "c", policy=Pipeline("own", scorers=[(1.0, overlap_share)]))

    assert [router.decide(None, now=0.0).worker_id for _ in range(6)] == ["a", "b", "c"] * 2


def test_a_low_temperature_nearly_always_takes_the_best() -> None:
    """A high one takes all of them; the same seed does the same."""
    taken = {}
    for temperature in (0.05, 50.0):
        policy = Pipeline("own", scorers=[(1.0, overlap_share)], pick=softmax(temperature, seed=1))
        router = fleet("a", "b", "c", policy=policy)
        stored(router, "b", prompt_of(1, 2, 3, 4))
        taken[temperature] = [router.decide(Prompt(prompt_of(1, 2, 3, 4)), now=0.0).worker_id for _ in range(200)]

    assert taken[0.05].count("b") > 190
    assert {taken[50.0].count(worker) > 40 for worker in "abc"} == {True}
    with pytest.raises(ValueError, match="temperature"):
        softmax(0.0)


def test_the_example_of_the_page_is_a_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is printed in docs/routing.md: a filter and a scorer of one's own, beside built-in ones."""
    page = (Path(__file__).parents[2] / "docs" / "routing.md").read_text(encoding="utf-8")
    found = re.search(r"## A policy of your own.*?```python\n(.*?)```", page, re.DOTALL)
    assert found is not None
    (tmp_path / "policy_of_the_page.py").write_text(found[1])
    monkeypatch.syspath_prepend(str(tmp_path))
    router = fleet("a", "b", policy="policy_of_the_page:make")
    stored(router, "b", prompt_of(1, 2, 3, 4))

    near = router.decide(Prompt(prompt_of(1, 2, 3, 4)), now=0.0)
    for _ in range(32):
        router.commit(router.decide(None, pinned=Source("b", 0), now=0.0), id=object(), now=0.0)
    full = router.decide(Prompt(prompt_of(1, 2, 3, 4)), now=0.0)

    assert (near.worker_id, full.worker_id) == ("b", "a")
    assert (near.policy, near.reason) == ("own", "score")


class First:
    """A policy that is no pipeline."""

    name = "first"

    def choose(self, candidates: Candidates, request: Request) -> tuple[object, str]:
        """Return the first one."""
        return candidates[0], "first"


def make(settings: RoutingSettings, seed: int) -> First:
    """What a name leads to."""
    assert settings.block_size
    assert seed >= 0
    return First()


def names() -> Sequence[str]:
    """Ways to write it."""
    return [f"{__name__}:make", "offered"]


@pytest.fixture
def offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package that offers a policy, and one that is broken."""
    module = ModuleType("offered_policies")
    vars(module)["make"] = make
    monkeypatch.setitem(sys.modules, "offered_policies", module)
    folder = tmp_path / "offered-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: offered\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(
        f"[{ENTRY_POINTS}]\noffered = offered_policies:make\nbroken = offered_policies:nothing\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("offered")
@pytest.mark.parametrize("name", names())
def test_a_policy_is_found_by_its_name(name: str) -> None:
    """That of an entry point, or of a function in a module."""
    policy: Policy = make_policy(name, RoutingSettings(), seed=1)

    assert policy.name == "first"
    assert fleet("a", "b", policy=name).decide(None, now=0.0).reason == "first"


@pytest.mark.usefixtures("offered")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("unheard", "known: kv, .*, broken, offered, or package.module:function"),
        ("broken", r"'broken' \(offered_policies:nothing\) cannot be loaded"),
        ("offered_policies:nothing", "'offered_policies:nothing' cannot be loaded"),
        ("nowhere:make", "No module named 'nowhere'"),
        (":make", "cannot be loaded"),
    ],
)
def test_what_cannot_be_found_is_said(name: str, words: str) -> None:
    """With what there is, or with the reason."""
    with pytest.raises(ValueError, match=words):
        make_policy(name, RoutingSettings())
