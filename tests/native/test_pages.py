"""Memory that the index takes in chunks from the system: none is given out twice, none is lost, and it comes back.

AddressSanitizer cannot look into chunks, and elsewhere the core is built to do without them where it watches. So
`pages.c` lives with them alone; and processes of their own show what the system says that an index takes.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import hatch_build
from tests.native.sanitizers import findings

NATIVE = Path(hatch_build.__file__).parent / "kvrouter" / "native"
FLAGS = ["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-DKVR_WITHOUT_PYTHON_H", "-DKVR_WITHOUT_WATCH"]
FLAGS += ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
# Our own, which can fail and are counted.
CALLS = ["-Dmmap=chosen_mmap", "-Dmunmap=chosen_munmap"]
_RUN_SECONDS_MAX = 600

pytestmark = pytest.mark.timeout(_RUN_SECONDS_MAX + 60)

PREPARED = """
import gc, os, resource, sys
from pathlib import Path
import numpy as np
from kvrouter.index.native import PrefixIndex

def resident():
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

def taken():
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()

random = np.random.default_rng(1)
keys = [random.integers(0, 2**63, size=40_000, dtype=np.uint64) for _ in range(24)]

def fill(index):
    for rank, each in enumerate(keys):
        index.store_chain(rank, each)

def settle(index):
    # A clear costs the same however much it clears: what it frees comes back with the changes that follow.
    for _ in range(20_000):
        index.remove(4000, [1])

PrefixIndex().store(0, keys[0][:100])
"""
MASS_REMOVAL = """
index = PrefixIndex()
before = resident()
fill(index)
full = resident() - before
assert full >= index.nbytes() * 0.9, (full, index.nbytes())
for rank, each in enumerate(keys):
    index.remove(rank, each[random.random(len(each)) < 0.95])
left = resident() - before
assert left <= full / 2, (left, full)
fill(index)
again = resident() - before
assert again <= full * 1.3, (again, full)
for rank in range(len(keys)):
    index.clear(rank)
settle(index)
assert len(index) == 0
left = resident() - before
assert left <= full / 4, (left, full)
"""
MANY = """
few = [random.integers(0, 2**63, size=3_000, dtype=np.uint64) for _ in range(4)]

def come_and_go():
    for _ in range(40):
        indexes = [PrefixIndex() for _ in range(10)]
        for index in indexes:
            for rank, each in enumerate(few):
                index.store_chain(rank, each)
        del index, indexes
        gc.collect()

come_and_go()
before, addresses = resident(), taken()
come_and_go()
# 400 indexes would be 40 MB that are used and 800 MB of addresses.
assert resident() - before < 8_000_000, resident() - before
assert taken() - addresses < 100_000_000, taken() - addresses
"""
NO_MORE = """
index, other = PrefixIndex(), PrefixIndex()
index.store_chain(0, keys[0])
expected = index.match_depths(keys[0])
resource.setrlimit(resource.RLIMIT_AS, (taken() + 6_000_000, resource.RLIM_INFINITY))
refused = None
for rank, each in enumerate(keys):
    try:
        index.store_chain(1 + rank, each)
    except MemoryError:
        refused = rank
        break
assert refused is not None
assert index.match_depths(keys[0])[0] == expected[0]
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
for rank, each in enumerate(keys):
    for at in (index, other):
        at.store_chain(1 + rank, each)
other.store_chain(0, keys[0])
assert len(index) == len(other)
for rank, each in enumerate(keys):
    assert index.match_depths(each) == other.match_depths(each)
    assert index.blocks(1 + rank) == len(each)
"""
FORKED = """
index = PrefixIndex()
fill(index)
child = os.fork()
if child == 0:
    for rank, each in enumerate(keys):
        index.remove(rank, each)
    index.store_chain(7, keys[0])
    right = len(index) == len(keys[0]) and index.match_depths(keys[0]) == {7: len(keys[0])}
    del index
    os._exit(0 if right else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
for rank, each in enumerate(keys):
    assert index.match_depths(each) == {rank: len(each)}
"""
HISTORIES = {"mass-removal": MASS_REMOVAL, "many-indexes": MANY, "no-more-memory": NO_MORE, "forked": FORKED}


def test_no_page_is_given_out_twice_or_lost(tmp_path: Path) -> None:
    """A random history beside a list of what there should be; then again while the system often has none."""
    compiler = hatch_build.find_compiler()
    assert compiler is not None
    objects = [tmp_path / "pages.o", tmp_path / "index_pages.o"]
    sources = [Path(__file__).with_name("pages.c"), NATIVE / "index_pages.c"]
    for source, built, calls in zip(sources, objects, [[], CALLS], strict=True):
        _run([*compiler.command, *FLAGS, *calls, f"-I{NATIVE}", "-c", str(source), "-o", str(built)])
    program = tmp_path / "pages"
    _run([*compiler.command, *FLAGS, *map(str, objects), "-o", str(program)])

    done = subprocess.run([program], capture_output=True, text=True, timeout=_RUN_SECONDS_MAX, check=False)

    assert findings(done.stderr) == []
    assert done.returncode == 0, done.stdout + done.stderr
    seen = json.loads(done.stdout)
    assert seen["chunks"] >= 5
    assert seen["refusals"] >= 100


@pytest.mark.parametrize("history", HISTORIES)
def test_what_an_index_takes_from_the_system(history: str) -> None:
    """It comes back after a mass removal and with an index; without more an index is whole; forks own theirs."""
    done = subprocess.run(
        [sys.executable, "-c", PREPARED + HISTORIES[history]],
        capture_output=True,
        text=True,
        timeout=_RUN_SECONDS_MAX,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_RUN_SECONDS_MAX, check=False)
    if done.returncode:
        pytest.fail(f"this needs a compiler with AddressSanitizer, such as gcc: {done.stderr}", pytrace=False)
    assert done.stderr == ""
