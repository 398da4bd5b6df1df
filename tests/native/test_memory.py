"""Nothing that the core makes outlives its use, whether a call succeeds or fails."""

import tracemalloc
from contextlib import suppress

import pytest

from kvrouter import native_core
from tests.native.calls import CALLS


@pytest.mark.parametrize("name", CALLS)
def test_repeated_calls_leave_no_memory_behind(name: str) -> None:
    """A thousand lost results would be megabytes."""
    call, core = CALLS[name], native_core.native

    def repeat() -> int:
        for _ in range(1000):
            with suppress(ValueError, TypeError, OverflowError):
                call(core)
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        repeat()
        before = repeat()
        after = repeat()
    finally:
        tracemalloc.stop()

    assert after - before < 20_000
