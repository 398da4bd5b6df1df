"""Letting memory end at a chosen allocation, with Python's own tool for that."""

import _testcapi  # type: ignore[import-not-found]
import gc
import sys
import time
from collections.abc import Callable

from kvrouter.errors import SnapshotError

FAILURES = {"once": 1, "for-good": 10_000_000}
_ALLOCATIONS_MAX, _SUCCESSES = 5000, 8
_NEVER_SECONDS = 1000.0
_ROUNDS_MAX, _CLEAN_ROUNDS = 60, 2


def ran_out(call: Callable[[], object], allocation: int, fails: int) -> bool:
    """Call while memory ends at the given allocation; returns whether it did.

    No other thread of Python gets its turn meanwhile, such as the one that listens to whoever runs the tests.
    """
    switch_seconds = sys.getswitchinterval()
    sys.setswitchinterval(_NEVER_SECONDS)
    time.sleep(0)  # Who waits already has his turn now.
    _testcapi.set_nomemory(allocation, allocation + fails)
    try:
        call()
    except (MemoryError, SnapshotError):
        return True
    except SystemError as error:
        # Python's own, where it could not note the place of an exception. Of ours it would say which function it was.
        assert str(error) == "error return without exception set"  # noqa: PT017
        return True
    finally:
        _testcapi.remove_mem_hooks()
        sys.setswitchinterval(switch_seconds)
    return False


def at_every_allocation(attempt: Callable[[], Callable[[], object]], fails: int) -> int:
    """Make what `attempt` prepares run out of memory at its first allocation, its second, and so on to the end.

    Returns the last one that it could not do without. What it prepares is made anew each time, with memory to spare.
    Some allocations are an economy and fail without a word: the end is where several calls in a row succeed.
    """
    failures = 0
    for allocation in range(1, _ALLOCATIONS_MAX):
        if ran_out(attempt(), allocation, fails):
            failures = allocation
        elif allocation > failures + _SUCCESSES:
            return failures
    raise AssertionError(f"more than {_ALLOCATIONS_MAX} allocations")


def leaves_nothing(repeat: Callable[[], object]) -> bool:
    """Whether calls come to leave no small blocks of memory behind, as those that lose some never do.

    Python keeps this and that for itself at first. Without its own allocator it does not count, and all is well.
    """
    clean = 0
    before = sys.getallocatedblocks()
    for _ in range(_ROUNDS_MAX):
        repeat()
        gc.collect()
        after = sys.getallocatedblocks()
        clean += after <= before
        before = after
        if clean == _CLEAN_ROUNDS:
            return True
    return False
