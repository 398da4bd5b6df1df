"""The thread that publishers share: it wakes up, ends in time, and its faults are told; whatever the transport does."""

import asyncio
import threading
import time

import pytest

from kvrouter_publishers.core import Frame, PublisherCore
from kvrouter_publishers.threaded import ThreadedPublisher
from tests.publishers.wire import WAIT_SECONDS, stored, wait_for

_NEVER = 3600.0


class _Plain(ThreadedPublisher):
    """Sends into a list."""

    def __init__(self, **options: object) -> None:
        super().__init__(PublisherCore(worker_id="worker", rank=0, **options))  # type: ignore[arg-type]
        self.sent: list[Frame] = []
        self.released = 0
        self._start()

    def _run(self) -> None:
        while not self._is_finished():
            while (frame := self._core.take(time.monotonic())) is not None:
                self.sent.append(frame)
            self._wait_for_work(_NEVER)

    def _release(self) -> None:
        self.released += 1


class _OnLoop(_Plain):
    """The same on an event loop of its own."""

    def _run(self) -> None:
        asyncio.run(self._run_on_loop())

    async def _run_on_loop(self) -> None:
        while not self._is_finished():
            while (frame := self._core.take(time.monotonic())) is not None:
                self.sent.append(frame)
            await self._work(_NEVER)


class _Disconnected(_Plain):
    """Its broker never comes back."""

    def _run(self) -> None:
        while not self._is_finished():
            self._pause(_NEVER)


class _DisconnectedOnLoop(_Plain):
    def _run(self) -> None:
        asyncio.run(self._run_on_loop())

    async def _run_on_loop(self) -> None:
        while not self._is_finished():
            await self._rest(_NEVER)


class _Late(_Plain):
    """Its machine has no time for it until `woken`."""

    def _run(self) -> None:
        self.woken = threading.Event()
        self.woken.wait()
        super()._run()


class _Faulty(_Plain):
    def _run(self) -> None:
        raise RuntimeError("broken")


@pytest.mark.parametrize("kind", [_Plain, _OnLoop])
def test_a_sleeping_thread_wakes_for_each_step(kind: type[_Plain]) -> None:
    """It would sleep for an hour otherwise."""
    with kind() as publisher:
        for number in range(50):
            publisher.publish([stored(number)])
            wait_for(lambda: len(publisher.sent) == number + 2)  # noqa: B023 - awaited in this turn


@pytest.mark.parametrize("kind", [_Plain, _OnLoop])
def test_a_sleeping_thread_wakes_for_its_digest(kind: type[_Plain]) -> None:
    """Nothing is published, and consumers still hear what is held."""
    with kind(digest_seconds=0.02) as publisher:
        wait_for(lambda: publisher.statistics()["digests_published"] >= 5)


@pytest.mark.parametrize("kind", [_Plain, _OnLoop])
def test_closing_sends_what_waits(kind: type[_Plain]) -> None:
    """And frees what the transport holds, in the thread of whoever closes."""
    publisher = kind()
    for number in range(1000):
        publisher.publish([stored(number)])

    publisher.close(timeout_seconds=WAIT_SECONDS)

    assert len(publisher.sent) == 1001
    assert publisher.released == 1
    assert publisher.statistics()["running"] == 0


@pytest.mark.parametrize("kind", [_Disconnected, _DisconnectedOnLoop])
def test_closing_does_not_wait_for_a_broker(kind: type[_Plain]) -> None:
    """What cannot be sent is given up at the deadline."""
    publisher = kind()
    publisher.publish([stored(1)])

    publisher.close(timeout_seconds=0.1)
    wait_for(lambda: not publisher.statistics()["running"])

    assert publisher.sent == []


def test_a_thread_that_ends_late_frees_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever closed it has gone on by then; nothing stays open."""
    monkeypatch.setattr("kvrouter_publishers.threaded._JOIN_SECONDS", 0.0)
    publisher = _Late()
    wait_for(lambda: hasattr(publisher, "woken"))

    publisher.close(timeout_seconds=0.0)
    left = publisher.released
    publisher.woken.set()
    wait_for(lambda: publisher.released)

    assert left == 0
    assert publisher.statistics()["running"] == 0


def test_a_stalled_thread_does_not_lose_what_matters() -> None:
    """The engine goes on for a long time; the outbox stays within its bound and ends as the sum."""
    publisher = _Disconnected(max_queue_size=10)
    for number in range(5000):
        publisher.publish([stored(number % 20)])

    assert publisher.statistics()["outbox_batches"] <= 300
    publisher.close(timeout_seconds=0.0)


def test_a_fault_of_the_transport_is_counted_and_told(caplog: pytest.LogCaptureFixture) -> None:
    """The engine never notices; whoever looks at the statistics does."""
    publisher = _Faulty()
    wait_for(lambda: publisher.statistics()["running"] == 0)

    publisher.publish([stored(1), stored(2)])

    statistics = publisher.statistics()
    assert (statistics["crashes"], statistics["events_dropped_not_running"]) == (1, 2)
    assert "kvrouter_publisher_stopped" in caplog.text
    publisher.close()


def test_many_threads_may_close_and_look() -> None:
    """Shutting down is where threads meet."""
    publisher = _Plain()
    publisher.publish([stored(1)])
    others = [threading.Thread(target=publisher.close) for _ in range(8)]

    for other in others:
        other.start()
    while any(other.is_alive() for other in others):
        publisher.statistics()
    publisher.close()

    assert len(publisher.sent) == 2


@pytest.mark.parametrize("nonsense", [None, 42, object()])
def test_nonsense_after_the_close_is_counted_not_raised(nonsense: object) -> None:
    """A guest never raises into its host."""
    publisher = _Plain()
    publisher.close()

    publisher.publish(nonsense)  # type: ignore[arg-type]

    assert publisher.statistics()["events_dropped_not_running"] == 1
