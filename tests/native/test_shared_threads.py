"""A shared index under ThreadSanitizer: its writer and its readers in threads of one process.

Nothing is touched at the same time but what readers check afterwards, and no reader finds what never was. Processes
map a file at different addresses, of which the sanitizer would see nothing; here readers use the writer's. On Linux,
wherever a core may be built at all, a compiler with this sanitizer has to be there, as for `test_sanitized`.
"""

import ctypes
import json
import subprocess
from functools import partial
from pathlib import Path

import pytest

import hatch_build
from tests.native.sanitizers import findings

NATIVE = Path(hatch_build.__file__).parent / "kvrouter" / "native"
PARTS = ["index_core", "index_table", "index_sets", "index_stretches", "index_budget", "index_share", "index_arena"]
PARTS += ["index_map", "index_map_match", "index_pages", "index_reach", "xxh3"]
FLAGS = ["-std=gnu11", "-O1", "-g", "-DKVR_WITHOUT_PYTHON_H", "-fsanitize=thread", "-Wno-tsan"]
_FIXED_ADDRESSES = 0x0040000  # ADDR_NO_RANDOMIZE of <sys/personality.h>
_RUN_SECONDS_MAX = 600

pytestmark = pytest.mark.timeout(_RUN_SECONDS_MAX + 60)


def build(folder: Path, *definitions: str) -> Path:
    """The program `shared_threads.c` with the core's own files; fails the test, in a sentence, where that cannot be."""
    compiler = hatch_build.find_compiler()
    assert compiler is not None
    program = folder / "shared_threads"
    sources = [Path(__file__).with_name("shared_threads.c"), *(NATIVE / f"{part}.c" for part in PARTS)]
    done = subprocess.run(
        [*compiler.command, *FLAGS, *definitions, f"-I{NATIVE}", *map(str, sources), "-lpthread", "-o", str(program)],
        capture_output=True,
        text=True,
        timeout=_RUN_SECONDS_MAX,
        check=False,
    )
    if done.returncode:
        pytest.fail(f"this needs a compiler with ThreadSanitizer, such as gcc: {done.stderr}", pytrace=False)
    return program


def run(program: Path, folder: Path) -> tuple[int, str, str]:
    """Its end, what it printed, and the first thing that the sanitizer said."""
    done = subprocess.run(
        [str(program), str(folder / "index-XXXXXX")],
        capture_output=True,
        text=True,
        timeout=_RUN_SECONDS_MAX,
        check=False,
        env={"TSAN_OPTIONS": "halt_on_error=1:exitcode=66"},
        # Where addresses are very random, the sanitizer may find its own taken.
        preexec_fn=partial(ctypes.CDLL(None).personality, _FIXED_ADDRESSES),
    )
    return done.returncode, done.stdout, done.stderr


def test_readers_and_the_writer_agree_on_who_touches_what(tmp_path: Path) -> None:
    """Versions, the head of the file, names of tiers; and every match is of one moment."""
    status, printed, told = run(build(tmp_path), tmp_path)

    assert findings(told) == []
    assert status == 0, told
    found = [json.loads(line) for line in printed.splitlines()]
    assert [each["wrong"] for each in found] == [0, 0]
    assert all(each["matched"] >= 100 for each in found)


def test_a_read_that_is_not_checked_would_be_found(tmp_path: Path) -> None:
    """The sanitizer sees both sides: watching what is read on purpose as well, it tells of that."""
    status, _, told = run(build(tmp_path, "-DKVR_WATCH_ALL_READS"), tmp_path)

    assert status == 66
    assert "data race" in findings(told)[0]
