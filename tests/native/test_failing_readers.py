"""When memory ends, readers of prompts, messages and hashes raise MemoryError, and nothing is left behind."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from kvrouter import native_core
from tests.native.calls import CALLS
from tests.native.failing_memory import FAILURES, at_every_allocation, leaves_nothing


def _outcome(call: Callable[[Any], object]) -> object:
    try:
        return call(native_core.native)
    except (ValueError, TypeError, OverflowError) as error:
        return type(error), str(error)


@pytest.mark.parametrize("fails", FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize("name", CALLS)
def test_every_call_survives_every_failing_allocation(name: str, fails: int) -> None:
    """It says that there is no memory, or what it would have said; the next one is answered as ever."""
    call = CALLS[name]
    expected = _outcome(call)

    def again() -> Callable[[], object]:
        return partial(_expect, call, expected)

    def sweep() -> None:
        at_every_allocation(again, fails)

    assert leaves_nothing(sweep)
    assert _outcome(call) == expected


def _expect(call: Callable[[Any], object], expected: object) -> None:
    with suppress(ValueError, TypeError, OverflowError):
        assert call(native_core.native) == expected
