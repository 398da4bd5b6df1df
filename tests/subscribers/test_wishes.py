"""What a sink's answers ask for is done on every transport, whichever call they answer; events go on meanwhile."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvrouter.events import Source
from kvrouter_subscribers import Receipt
from tests.subscribers.planes import BROKERS, TRANSPORTS, Plane, plane
from tests.subscribers.scene import WORKER, RecordingSink, run, stored, until


@pytest.fixture(params=TRANSPORTS)
def any_plane(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Plane]:
    """Each transport in turn."""
    with plane(request.param, tmp_path) as made:
        yield made


@pytest.fixture(params=BROKERS)
def broker_plane(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Plane]:
    """Each transport with a broker in turn."""
    with plane(request.param, tmp_path) as made:
        yield made


class WishfulSink(RecordingSink):
    """Wants the whole state when a replay is over, once, however complete it was."""

    def __init__(self) -> None:
        super().__init__()
        self.wishes = 1

    def replay_finished(self, source: Source, *, now: float, complete: bool) -> Receipt:
        receipt: Any = super().replay_finished(source, now=now, complete=complete)
        if self.wishes:
            self.wishes -= 1
            return replace(receipt, snapshot_wanted=True)
        return receipt  # type: ignore[no-any-return]


def test_a_snapshot_that_is_wanted_when_a_replay_is_over_is_brought(any_plane: Plane) -> None:
    """As it is when a batch makes the sink want it."""

    async def scenario() -> None:
        sink = WishfulSink()
        with any_plane.publisher(digest_seconds=None) as publisher:
            publisher.publish([stored(number) for number in range(20)])
            await until(lambda: publisher.statistics()["outbox_batches"] == 0)
            async with any_plane.subscriber(sink) as subscriber:
                any_plane.follow(subscriber, sink, publisher)
                await until(lambda: sink.wishes == 0)
                await until(lambda: ("snapshot", WORKER) in sink.calls)
                publisher.publish([stored(20)])
                await until(lambda: sink.holds(*range(21)))

    run(scenario())


class DoubtfulSink(RecordingSink):
    """Wants the whole state of every new life."""

    def receive(self, *args: Any, **options: Any) -> Receipt:
        receipt: Any = super().receive(*args, **options)
        return replace(receipt, snapshot_wanted=receipt.outcome == "restarted")


def test_a_snapshot_that_is_wanted_of_another_life_is_brought(broker_plane: Plane) -> None:
    """Also where the life was seen from its first batch on, so that no replay is needed."""

    async def scenario() -> None:
        sink = DoubtfulSink()
        async with broker_plane.subscriber(sink) as subscriber:
            with broker_plane.publisher() as publisher:
                broker_plane.follow(subscriber, sink, publisher)
                publisher.publish([stored(1)])
                await until(lambda: sink.holds(1) and not subscriber.status(WORKER).replaying)
            known = sink.calls.count(("snapshot", WORKER))
            with broker_plane.publisher() as publisher:
                publisher.publish([stored(2)])
                await until(lambda: sink.calls.count(("snapshot", WORKER)) > known)
                await until(lambda: sink.holds(2) and not sink.holds(1))

    run(scenario())


def test_events_go_on_while_a_snapshot_is_made(any_plane: Plane) -> None:
    """A cache of millions of blocks takes its publisher seconds to describe: nobody waits for that but who asked."""

    async def scenario() -> None:
        sink, asked, released = RecordingSink(), [0], [False]
        with any_plane.publisher(digest_seconds=None) as publisher:
            prepare = publisher._core.prepare_snapshot

            def slowly(**options: Any) -> Iterator[list[bytes]]:
                """Make no more of it than a step at a time, until the test has seen what it wants to see."""
                asked[0] += 1
                steps = prepare(**options)
                while not released[0]:
                    yield []
                yield from steps

            publisher._core.prepare_snapshot = slowly
            async with any_plane.subscriber(sink) as subscriber:
                any_plane.follow(subscriber, sink, publisher)
                publisher.publish([stored(0)])
                await until(lambda: sink.holds(0))
                await until(lambda: subscriber.resync(WORKER))
                await until(lambda: asked[0])
                others = RecordingSink()
                async with any_plane.subscriber(others) as other:
                    any_plane.follow(other, others, publisher)
                    for number in range(1, 10):
                        publisher.publish([stored(number)])
                    await until(lambda: others.holds(*range(10)))
                    assert ("snapshot", WORKER) not in sink.calls
                    released[0] = True
                    await until(lambda: ("snapshot", WORKER) in sink.calls)
                    await until(lambda: sink.holds(*range(10)))

    run(scenario())
