"""The native core trusts nobody about what an object is."""

from typing import Any

import pytest

from kvrouter import native_core
from kvrouter.blocks import Prompt
from kvrouter.index import RANKS_MAX, PrefixIndex
from tests.routing.fleets import prompt_of

native: Any = native_core.native  # what is given here is wrong on purpose


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda kind: kind(rank=RANKS_MAX), ValueError),
        (lambda kind: kind(rank=-1), ValueError),
        (lambda kind: kind("many"), TypeError),
        (lambda kind: kind().add(1, 2), TypeError),
        (lambda kind: kind().add(1, 2**70, 3), OverflowError),
        (lambda kind: kind().add("a", 2, 3), TypeError),
        (lambda kind: setattr(kind(), "rank", 1), AttributeError),
        (lambda kind: kind().observe(1.0), TypeError),
        (lambda kind: kind().observe("soon", 1.0), TypeError),
        (lambda kind: kind().observe(1.0, "late"), TypeError),
        (lambda kind: kind().take(1, 2, 3), TypeError),
        (lambda kind: kind().take("a", 2, 3, 0.0), TypeError),
        (lambda kind: kind().take(1, 2**70, 3, 0.0), OverflowError),
        (lambda kind: kind().take(1, 2, 3, "now"), TypeError),
        (lambda kind: kind().take(1, 2, 3, 0.0).computed("now"), TypeError),
        (lambda kind: kind().take(1, 2, 3, 0.0).end("now"), TypeError),
        (lambda kind: setattr(kind().take(1, 2, 3, 0.0), "rank", 1), AttributeError),
        (lambda _: native.Booking(), TypeError),
        (lambda kind: kind.choose((), {}, 1, (1.0,) * 7, 0.0), ValueError),
        (lambda kind: kind.choose([kind()], {}, 1, (1.0,) * 7, 0.0), TypeError),
        (lambda kind: kind.choose((kind(), 5), {}, 1, (1.0,) * 7, 0.0), TypeError),
        (lambda kind: kind.choose((kind(),), [], 1, (1.0,) * 7, 0.0), TypeError),
        (lambda kind: kind.choose((kind(),), {0: "a"}, 1, (1.0,) * 7, 0.0), TypeError),
        (lambda kind: kind.choose((kind(),), {RANKS_MAX: 1}, 1, (1.0,) * 7, 0.0), ValueError),
        (lambda kind: kind.choose((kind(),), {}, "a", (1.0,) * 7, 0.0), TypeError),
        (lambda kind: kind.choose((kind(),), {}, 1, (1.0,) * 6, 0.0), TypeError),
        (lambda kind: kind.choose((kind(),), {}, 1, ("a",) * 7, 0.0), TypeError),
        (lambda kind: kind.choose((kind(),), {}, 1), TypeError),
    ],
)
def test_a_load_refuses_what_is_none(call: Any, error: type[Exception]) -> None:
    """Numbers, bounds and other loads are looked at."""
    with pytest.raises(error):
        call(native.RankLoad)


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({0: []}, TypeError),
        ({0: ()}, ValueError),
        ({1: None}, TypeError),
        ({2: [1]}, TypeError),
        ({3: 0}, ValueError),
        ({3: "a"}, TypeError),
        ({4: -1}, ValueError),
        ({5: None}, TypeError),
        ({5: 7}, TypeError),
        ({6: "now"}, TypeError),
        ({7: 0.0}, TypeError),
        ({7: ()}, TypeError),
        ({7: ("a",)}, TypeError),
        ({8: None}, TypeError),
        ({8: ("cpu",)}, TypeError),
        ({8: (("cpu", "much"),)}, TypeError),
        ({8: (("cpu", 0.5, 1),)}, TypeError),
        ({8: ((1, 0.5),)}, TypeError),
        ({8: (("cpu", -0.5),)}, ValueError),
    ],
)
def test_the_core_refuses_what_it_cannot_weigh(changed: dict[int, object], error: type[Exception]) -> None:
    """Whatever is given in the place of an argument."""
    index = PrefixIndex()
    index.store(0, Prompt(prompt_of(1)).hashes(16))
    weigher = native.Weigher(index, (1.0,) * 7, (1.0,) * 4)
    good = [(native.RankLoad(),), native.PredictedBlocks(), Prompt(prompt_of(1)).hash_bytes(16), 16, 64, {5}, 0.0]
    good += [None, ()]

    assert weigher.weigh(*good)[:4] == (0, 1, 48, 48)
    with pytest.raises(error):
        weigher.weigh(*(changed.get(place, each) for place, each in enumerate(good)))
    with pytest.raises(error):
        weigher.place(*(changed.get(place, each) for place, each in enumerate(good)), 1)
    with pytest.raises(TypeError):
        weigher.weigh(*good[1:])
    with pytest.raises(TypeError):
        weigher.place(*good)
    with pytest.raises(TypeError):
        weigher.place(*good, "next")
    with pytest.raises(TypeError):
        native.Weigher(index, (1.0,) * 7, (1.0,) * 3)
    with pytest.raises(TypeError):
        native.Weigher(object(), (1.0,) * 7, (1.0,) * 4)
    with pytest.raises(TypeError):
        native.Weigher(index, (1.0,) * 6, (1.0,) * 4)
    assert weigher.weigh(*good[:5], {0}, 0.0, None, ()) is None
