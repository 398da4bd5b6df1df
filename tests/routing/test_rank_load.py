"""What a rank is busy with: the same in Python and in the native core."""

from typing import Any

import pytest

from kvrouter import native_core
from kvrouter.routing.rank_load import RankLoad as Reference

KINDS: list[Any] = [Reference, native_core.native.RankLoad] if native_core.present else [Reference]


@pytest.fixture(params=KINDS, ids=["reference", "native"][: len(KINDS)])
def kind(request: pytest.FixtureRequest) -> Any:
    """Each implementation in turn."""
    return request.param


def test_a_load_is_three_numbers_that_change(kind: Any) -> None:
    """One by one or all at once."""
    load = kind(1, 20, 3, rank=7)

    load.add(1, -5, 4)
    load.prefill_tokens += 100
    load.turn = 9

    assert (load.active_requests, load.prefill_tokens, load.decode_blocks) == (2, 115, 7)
    assert (load.rank, load.turn) == (7, 9)
    assert repr(load) == "RankLoad(active_requests=2, prefill_tokens=115, decode_blocks=7)"


def test_equally_busy_is_equal(kind: Any) -> None:
    """Whichever rank it is, and whenever it was chosen; a load that changes cannot be a key."""
    one, other = kind(active_requests=1, decode_blocks=2), kind(1, 0, 2, rank=5)
    other.turn = 3

    assert one == other
    assert one != kind()
    assert one != (1, 0, 2)
    with pytest.raises(TypeError):
        hash(one)
