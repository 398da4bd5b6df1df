"""Processes, load and the pretended workers, with each other and with nothing else."""

import sys
import time
from collections.abc import Iterator

import pytest

from benchmarks.fleet.answers import CHUNKS
from benchmarks.fleet.workers import Fleet, start_streaming_fleet
from benchmarks.load.run import LoadError, Runner
from benchmarks.load.workload import ready_bodies, token_completions
from benchmarks.processes import Children, Cores, NotReadyError, free_port, free_ports

ANYWHERE = Cores(router=(), backend=(), load=(), pinned=False)


@pytest.fixture
def children() -> Iterator[Children]:
    """Processes that end with the test."""
    with Children() as children:
        yield children


@pytest.fixture
def fleet(children: Children) -> Fleet:
    """Workers of our own."""
    return start_streaming_fleet(children, ANYWHERE)


def test_full_load_counts_what_was_answered(children: Children, fleet: Fleet) -> None:
    """Every answer is counted, none has failed."""
    came = Runner(children, ()).full(
        token_completions("a", 1024, conversations=False), fleet.ports[0], seconds=0.3, connections=4
    )

    assert came.requests > 0
    assert came.failed == 0
    assert came.bytes > came.requests * 100


def test_paced_load_times_the_first_byte_and_the_last(children: Children, fleet: Fleet) -> None:
    """A stream begins long before it ends."""
    workload = token_completions("stream", 1024, conversations=False, stream=True)

    came = Runner(children, ()).paced(workload, fleet.ports[0], seconds=0.5, rate=20)

    assert came.failed == 0
    assert came.first_byte_p50 < came.p50


def test_a_streamed_answer_has_all_its_chunks(children: Children, fleet: Fleet) -> None:
    """Streams are counted in bytes, so a whole one must be known."""
    workload = token_completions("stream", 1024, conversations=False, stream=True)

    assert Runner(children, ()).answer_bytes(workload, fleet.ports[-1]) > CHUNKS * 100


def test_failed_answers_are_counted_as_such(children: Children, fleet: Fleet) -> None:
    """A router that answers fast with errors is not fast."""
    came = Runner(children, ()).full(ready_bodies("b", "/nowhere", ["{}"]), fleet.ports[0], seconds=0.3, connections=2)

    assert came.requests == 0
    assert came.failed > 0


def test_paced_load_without_any_good_answer_is_an_error(children: Children, fleet: Fleet) -> None:
    """There is no latency of nothing."""
    with pytest.raises(LoadError, match="answered with 200"):
        Runner(children, ()).paced(ready_bodies("c", "/nowhere", ["{}"]), fleet.ports[0], seconds=0.2, rate=50)


def test_the_pass_through_passes_requests_through(children: Children, fleet: Fleet) -> None:
    """The floor of the comparison works as a proxy."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.fleet.passthrough", str(port), *map(str, fleet.ports)]
    children.start("passthrough", command).wait_for_port(port)

    came = Runner(children, ()).full(
        token_completions("d", 1024, conversations=False), port, seconds=0.3, connections=4
    )

    assert came.requests > 0
    assert came.failed == 0


def test_cpu_time_of_a_child_grows_with_its_work(children: Children) -> None:
    """What a process used is read while it runs."""
    child = children.start("busy", [sys.executable, "-c", "while True: pass"])

    deadline = time.monotonic() + 90
    while child.cpu_seconds() < 0.2 and time.monotonic() < deadline:
        time.sleep(0.01)

    assert child.cpu_seconds() >= 0.2
    assert child.memory_bytes() > 0


def test_a_child_that_dies_says_why(children: Children) -> None:
    """The last line of its output becomes the reason in the result."""
    child = children.start("broken", [sys.executable, "-c", "raise SystemExit('no such model')"])

    with pytest.raises(NotReadyError, match="broken ended with 1: no such model"):
        child.wait_for_port(free_port())


def test_children_end_with_their_block() -> None:
    """Nothing is left running after a benchmark."""
    with Children() as children:
        child = children.start("sleeper", [sys.executable, "-c", "import time; time.sleep(600)"])

    assert child.process.poll() is not None
    assert not children.folder.exists()


def test_free_ports_are_different() -> None:
    """Two servers never get the same port."""
    assert len(set(free_ports(20))) == 20
