"""What is lost, restarted or doubted over HTTP, and how the subscriber gets to the truth again."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from kvrouter.events import AllBlocksCleared, BlockRemoved
from kvrouter_publishers import HttpEventPublisher
from tests.servers import free_port
from tests.subscribers.http_scene import HASTY, PATIENT, QUICK, HttpScene, ScriptedCore, http_scene, publisher
from tests.subscribers.scene import WORKER, run, stored, until

ENGINE = """
import sys
from kvrouter.events import BlockStored
from kvrouter_publishers import HttpEventPublisher
endpoint, first = sys.argv[1:]
with HttpEventPublisher(endpoint, worker_id="worker") as publisher:
    number = int(first)
    tokens = tuple(range(4 * number, 4 * number + 4))
    publisher.publish([BlockStored(block_hashes=(number + 1,), token_ids=tokens, block_size=4, medium="GPU")])
    print(publisher.endpoint, flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def engine(endpoint: str, number: int) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that publishes one block and then lives until it is told otherwise; gives its address."""
    command = [sys.executable, "-c", ENGINE, endpoint, str(number)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def address(endpoint: str | None) -> str:
    """The `host:port` of an endpoint."""
    assert endpoint is not None
    return endpoint.removeprefix("http://")


async def in_thread(publisher: HttpEventPublisher) -> None:
    """Close a publisher without holding up the event loop that polls it."""
    await asyncio.to_thread(publisher.close)


async def held(stage: HttpScene, *numbers: int, absent: tuple[int, ...] = ()) -> None:
    """Wait until the index holds exactly what it should."""
    await until(
        lambda: (
            stage.sink.holds(*numbers)
            and not any(stage.sink.holds(number) for number in absent)
            and stage.sink.state() == "live"
        )
    )


def test_a_publisher_that_restarts_is_followed_in_its_new_life() -> None:
    """The old life's blocks go; nothing of both lives is ever mixed."""

    async def scenario() -> None:
        async with http_scene() as stage:
            first = HttpEventPublisher(f"127.0.0.1:{free_port()}", worker_id="worker")
            stage.listen(str(first.endpoint))
            for number in range(20):
                first.publish([stored(number)])
            await held(stage, *range(20))
            await in_thread(first)
            await until(lambda: not stage.status().connected)

            with HttpEventPublisher(address(first.endpoint), worker_id="worker") as second:
                for number in range(30, 35):
                    second.publish([stored(number)])
                await held(stage, *range(30, 35), absent=(0, 19))

                assert stage.status().connects == 2
                assert stage.status().disconnects == 1
                await asyncio.to_thread(second.close)

    run(scenario())


def test_a_new_life_that_counted_past_the_old_one_is_not_taken_for_it() -> None:
    """The cursor would fit; the incarnation does not."""

    async def scenario() -> None:
        async with http_scene() as stage:
            first = HttpEventPublisher(f"127.0.0.1:{free_port()}", worker_id="worker")
            stage.listen(str(first.endpoint))
            first.publish([stored(1)])
            await held(stage, 1)
            await in_thread(first)
            second = HttpEventPublisher(address(first.endpoint), worker_id="worker")
            for number in range(2, 60):
                second.publish([stored(number)])
            await held(stage, *range(2, 60), absent=(1,))
            await in_thread(second)

    run(scenario())


def test_a_new_life_without_events_empties_the_rank() -> None:
    """An engine that has just started holds nothing, and is not asked to prove it."""

    async def scenario() -> None:
        async with http_scene() as stage:
            first = HttpEventPublisher(f"127.0.0.1:{free_port()}", worker_id="worker")
            stage.listen(str(first.endpoint))
            first.publish([stored(1)])
            await held(stage, 1)
            await in_thread(first)
            second = HttpEventPublisher(address(first.endpoint), worker_id="worker")
            await held(stage, absent=(1,))
            await in_thread(second)

    run(scenario())


def test_a_late_joiner_gets_a_snapshot_of_what_is_no_longer_kept() -> None:
    """And goes on after it, without a gap."""

    async def scenario() -> None:
        with HttpEventPublisher("127.0.0.1:0", worker_id="worker", buffer_steps=3) as served:
            for number in range(40):
                served.publish([stored(number)])
            served.publish([BlockRemoved(block_hashes=(6,), medium="GPU")])
            await until(lambda: served.statistics()["outbox_batches"] == 0)
            async with http_scene() as stage:
                stage.listen(str(served.endpoint))
                await held(stage, *range(5), *range(6, 40), absent=(5,))
                served.publish([stored(50)])
                await held(stage, 50)

                assert [outcome for _, outcome in stage.sink.snapshots] == ["applied"]
                assert stage.status().snapshots == 1
                assert stage.sink.ingest.status(now=0.0)[0].gaps_lost == 0

    run(scenario())


def test_who_was_away_too_long_gets_a_snapshot() -> None:
    """The publisher moved on beyond what it keeps while its subscriber was not there."""

    async def scenario() -> None:
        with HttpEventPublisher("127.0.0.1:0", worker_id="worker", buffer_steps=3) as served:
            async with http_scene() as stage:
                stage.listen(str(served.endpoint))
                served.publish([stored(1)])
                await held(stage, 1)
                stage.subscriber.remove(WORKER)
                served.publish([BlockRemoved(block_hashes=(2,), medium="GPU")])
                for number in range(10, 30):
                    served.publish([stored(number)])
                await until(lambda: served.statistics()["outbox_batches"] == 0)
                stage.subscriber.add(WORKER, str(served.endpoint))
                await held(stage, *range(10, 30), absent=(1,))

                assert stage.status().snapshots == 1

    run(scenario())


def test_without_snapshots_what_is_kept_is_replayed() -> None:
    """The sink learns that a snapshot cannot be had, forgets what may be wrong and goes on."""

    async def scenario() -> None:
        core = ScriptedCore(kept_max=5)
        core.snapshots = False
        async with publisher(core) as served, http_scene() as stage:
            for number in range(30):
                served.publish(core, number)
            stage.listen(served.endpoint)
            await until(lambda: stage.sink.holds(*range(25, 30)))
            served.publish(core, 99)
            await until(lambda: stage.sink.holds(99))

            assert ("snapshot_failed", WORKER) in stage.sink.calls
            assert stage.status().snapshots_failed >= 1
            assert not stage.sink.holds(0)

    run(scenario())


def test_a_loss_that_the_publisher_states_costs_the_rank_and_nothing_else() -> None:
    """It skips a number that nobody can replay, and clears."""

    async def scenario() -> None:
        core = ScriptedCore()
        async with publisher(core) as served, http_scene() as stage:
            served.publish(core, 1)
            stage.listen(served.endpoint)
            await held(stage, 1)
            core.next_sequence += 1
            core.put(AllBlocksCleared())
            core.resident.clear()
            served.publish(core, 2)
            await until(lambda: stage.sink.holds(2))

            assert not stage.sink.holds(1)

    run(scenario())


def test_a_doubted_source_is_read_anew() -> None:
    """`resync` ends the poll that waits, and the answer replaces what was believed."""

    async def scenario() -> None:
        with HttpEventPublisher("127.0.0.1:0", worker_id="worker") as served:
            async with http_scene(PATIENT) as stage:
                stage.listen(str(served.endpoint))
                served.publish([stored(1), stored(2)])
                await held(stage, 1, 2)
                await until(lambda: served.statistics()["polls"] == 1)

                assert stage.subscriber.resync(WORKER)
                await until(lambda: stage.status().snapshots == 1)
                served.publish([stored(3)])
                await held(stage, 1, 2, 3)

                assert stage.status().disconnects == 0
                assert not stage.subscriber.resync(WORKER._replace(rank=7))

    run(scenario())


def test_a_digest_that_does_not_match_brings_a_snapshot() -> None:
    """The publisher says what it holds; who believes something else asks for all of it."""

    async def scenario() -> None:
        core = ScriptedCore()
        async with publisher(core) as served, http_scene() as stage:
            stage.listen(served.endpoint)
            served.publish(core, 1)
            await held(stage, 1)
            core.resident = [stored(2)]
            sequence = core.next_sequence
            core.frames.append((sequence, core.frame(sequence, (), digest=(("GPU", 0, 1, 0x1234),))))
            core.next_sequence += 1
            served.streams[WORKER].wake()
            await held(stage, 2, absent=(1,))

            assert [outcome for _, outcome in stage.sink.snapshots] == ["applied"]

    run(scenario())


def test_a_snapshot_that_is_not_whole_is_tried_again_and_then_given_up() -> None:
    """Bad parts never reach the sink; after some attempts it is told that there is none."""

    async def scenario() -> None:
        core = ScriptedCore(kept_max=2)
        good = core.snapshot
        async with publisher(core) as served, http_scene() as stage:
            for number in range(10):
                served.publish(core, number)
            core.snapshot = lambda: good()[1:]  # type: ignore[method-assign]
            stage.listen(served.endpoint)
            await until(lambda: stage.status().snapshots_failed == 1)

            assert stage.sink.snapshots == []
            assert "part 0 of the snapshot is missing" in str(stage.status().last_error)
            await until(lambda: stage.sink.holds(8, 9))

    run(scenario())


def test_a_sink_that_wants_snapshots_again_and_again_gets_them_ever_more_slowly() -> None:
    """A snapshot costs an engine a walk over its cache; live events go on meanwhile."""

    async def scenario() -> None:
        core = ScriptedCore()
        unbounded = replace(QUICK, retry_pause_seconds_max=3600.0)  # However long it takes, there is no time for many.
        async with publisher(core) as served, http_scene(unbounded) as stage:
            stage.listen(served.endpoint)
            await stage.follows()
            for number in range(200):
                stage.sink.ingest.doubt(WORKER, reason="a test", now=time.monotonic())
                served.publish(core, number)
                await until(lambda number=number: stage.sink.holds(number))  # type: ignore[misc]

            assert 2 <= core.snapshots_made < 20
            assert stage.status().connects == 1

    run(scenario())


def test_a_fault_of_the_sink_is_counted_and_ends_nothing() -> None:
    """Whatever it raises, and wherever."""

    async def scenario() -> None:
        core = ScriptedCore()
        async with publisher(core) as served, http_scene() as stage:
            for method in ("connected", "receive", "replay_finished"):
                stage.sink.failing[method] = ValueError(f"planned, in {method}")
            stage.listen(served.endpoint)
            for number in range(5):
                served.publish(core, number)
            await until(lambda: stage.sink.holds(4))

            assert stage.status().sink_errors >= 2
            assert "planned" in str(stage.status().last_error)

    run(scenario())


@pytest.mark.parametrize("method", ["snapshot", "snapshot_failed", "disconnected"])
def test_a_fault_of_the_sink_in_a_recovery_ends_nothing(method: str) -> None:
    """What it did not take is found missing later, and got again."""

    async def scenario() -> None:
        core = ScriptedCore(kept_max=3)
        core.snapshots = method == "snapshot"
        async with http_scene() as stage:
            async with publisher(core) as served:
                for number in range(10):
                    served.publish(core, number)
                stage.sink.failing[method] = ValueError("planned")
                stage.listen(served.endpoint)
                await until(lambda: stage.sink.holds(9))
            await until(lambda: not stage.status().connected)
            async with publisher(core, port=served.port) as again:
                again.publish(core, 50)
                await until(lambda: stage.sink.holds(50))

            assert stage.status().sink_errors == 1

    run(scenario())


def test_a_snapshot_that_the_sink_refuses_is_not_gone_on_from() -> None:
    """It is whole, but not understood: what is kept is replayed instead."""

    async def scenario() -> None:
        core = ScriptedCore(kept_max=3)
        core.snapshot = lambda: [  # type: ignore[method-assign]
            core.frame(core.next_sequence - 1, (), snapshot=(0, 1), payload=b"\x93\x00\x91\x81\xa4type\xa3odd\xc0")
        ]
        async with publisher(core) as served, http_scene() as stage:
            for number in range(10):
                served.publish(core, number)
            stage.listen(served.endpoint)
            await until(lambda: stage.sink.holds(7, 8, 9))
            served.publish(core, 20)
            await until(lambda: stage.sink.holds(20))

            assert "quarantined" in {outcome for _, outcome in stage.sink.snapshots}

    run(scenario())


@pytest.mark.parametrize("fatal", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_a_publisher_process_that_dies_and_comes_back_is_followed(fatal: signal.Signals) -> None:
    """Its cache died with it; the new process's is learnt."""

    async def scenario() -> None:
        async with http_scene() as stage:
            with engine(f"127.0.0.1:{free_port()}", 1) as (process, endpoint):
                stage.listen(endpoint)
                await held(stage, 1)
                process.send_signal(fatal)
                await until(lambda: not stage.status().connected)
                await asyncio.to_thread(process.wait)
            with engine(address(endpoint), 2):
                await held(stage, 2, absent=(1,))

    run(scenario())


def test_a_publisher_process_that_is_stopped_is_noticed_and_continued() -> None:
    """It answers nothing, then goes on as if nothing had been: the cursor still fits."""

    async def scenario() -> None:
        async with http_scene(HASTY) as stage:
            with engine(f"127.0.0.1:{free_port()}", 1) as (process, endpoint):
                stage.listen(endpoint)
                await held(stage, 1)
                os.kill(process.pid, signal.SIGSTOP)
                await until(lambda: not stage.status().connected)
                suspected = stage.sink.state()
                os.kill(process.pid, signal.SIGCONT)
                await held(stage, 1)

                assert suspected == "suspect"
                assert stage.sink.snapshots == []

    run(scenario())


def test_restarts_under_load_end_in_the_truth() -> None:
    """Ten lives, each publishing while it is polled, and closed at any moment."""

    async def scenario() -> None:
        async with http_scene() as stage:
            first = HttpEventPublisher(f"127.0.0.1:{free_port()}", worker_id="worker", buffer_steps=50)
            where = address(first.endpoint)
            stage.listen(str(first.endpoint))
            current = first
            for life in range(10):
                for number in range(life * 100, life * 100 + 80):
                    current.publish([stored(number)])
                    if number % 20 == 0:
                        await asyncio.sleep(0)
                await in_thread(current)
                current = HttpEventPublisher(where, worker_id="worker", buffer_steps=50)
            for number in range(5000, 5200):
                current.publish([stored(number)])
            await held(stage, *range(5000, 5200), absent=(0, 100, 979))
            await in_thread(current)

    run(scenario())
