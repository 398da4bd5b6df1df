"""A sink that wants one snapshot after the other is served ever more slowly: each costs its publisher a whole cache."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvrouter_subscribers import Receipt
from tests.subscribers.planes import BROKERS, Plane, plane
from tests.subscribers.redis_scene import QUICK
from tests.subscribers.scene import RecordingSink, run, stored, until

SNAPSHOTS = 6


@pytest.fixture(params=BROKERS)
def broker_plane(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Plane]:
    """Each transport that has a broker; over the others attempts are counted."""
    with plane(request.param, tmp_path) as made:
        yield made


class InsatiableSink(RecordingSink):
    """No state that it gets is the one that it wants, as when a batch of another life cannot be read."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def snapshot(self, *args: Any, **options: Any) -> Receipt:
        self.times.append(time.monotonic())
        receipt: Any = super().snapshot(*args, **options)
        return replace(receipt, snapshot_wanted=True)  # type: ignore[no-any-return]


def test_snapshots_that_do_not_help_come_ever_more_slowly(broker_plane: Plane) -> None:
    """Only the pauses between them are waited for here, never a bound."""

    async def scenario() -> None:
        sink = InsatiableSink()
        with broker_plane.publisher(digest_seconds=None) as publisher:
            publisher.publish([stored(1)])
            await until(lambda: publisher.statistics()["outbox_batches"] == 0)
            async with broker_plane.subscriber(sink) as subscriber:
                broker_plane.follow(subscriber, sink, publisher)
                await until(lambda: sink.holds(1))
                assert subscriber.resync(next(iter(sink.calls))[1])
                await until(lambda: len(sink.times) >= SNAPSHOTS)

        pauses = [later - sooner for sooner, later in zip(sink.times, sink.times[1:], strict=False)]
        assert min(pauses) >= 0.9 * QUICK.recovery_pause_seconds
        assert sum(pauses) >= 3 * QUICK.recovery_pause_seconds_max

    run(scenario())
