"""The core has one thread of its own, and ThreadSanitizer finds nothing that it touches while others do.

On Linux, wherever a core may be built at all, a compiler with this sanitizer has to be there, as for `test_sanitized`.
"""

from pathlib import Path

import pytest

from tests.native.hook import make_checkout
from tests.native.sanitizers import build_for_threads, findings

SUITES = ["tests/subscribers/test_read_ahead.py", "tests/subscribers/test_streams_ahead.py"]
OTHER = """
#include <pthread.h>

static int shared;

static void *other(void *unused)
{
    shared++;
    return unused;
}
"""
RACE = "pthread_t thread; pthread_create(&thread, NULL, other, NULL); shared++; pthread_join(thread, NULL);"
_SUITE_SECONDS_MAX = 600

pytestmark = pytest.mark.timeout(_SUITE_SECONDS_MAX + 60)


def test_threads_touch_nothing_at_the_same_time(tmp_path: Path) -> None:
    """Not in what the tests of reading ahead do, alone and under connections that come and go."""
    core = build_for_threads(Path(__file__).parents[2], tmp_path)
    options = ["-q", "-x", "-s", "--timeout=500", "-p", "no:cacheprovider", "-p", "tests.native.sanitized_core"]

    process = core.start(["-m", "pytest", *options, f"--core={core.path}", f"--basetemp={tmp_path / 'own'}", *SUITES])
    output, _ = process.communicate(timeout=_SUITE_SECONDS_MAX)

    assert findings(output) == []
    assert process.returncode == 0, output
    assert " passed" in output


def test_a_race_would_be_found(tmp_path: Path) -> None:
    """A sanitizer that is not at work finds nothing either."""
    make_checkout(tmp_path, before_the_answer=RACE, functions=OTHER)
    core = build_for_threads(tmp_path, tmp_path)

    process = core.start(["-c", f"from tests.native.hook import load, Path; load(Path({str(core.path)!r})).answer()"])
    output, _ = process.communicate(timeout=120)

    [told] = findings(output)
    assert "data race" in told
