"""A worker that answers and cannot be heard is told to the log."""

import pytest

from kvrouter.events import Source
from kvrouter.service.event_watch import UNHEARD_SECONDS, EventWatch
from tests.service.inprocess import InProcess
from tests.service.processes import Processes

SOURCE = Source("w", 0)


@pytest.fixture
def service() -> InProcess:
    """A worker with events and one without."""
    service = InProcess()
    service.add(url="http://h:1", id="w", model="m", events="tcp://h:5557")
    service.add(url="http://h:2", id="quiet", model="m")
    return service


def test_missing_events_are_told_once_and_their_arrival_too(
    service: InProcess, caplog: pytest.LogCaptureFixture
) -> None:
    """Not at once, not every second, and never for a worker that has none."""
    watch, start = EventWatch(service.service.registry), service.clock.now
    caplog.set_level("INFO", logger="kvrouter.events")

    told = []
    for seconds, connected in ((0, False), (UNHEARD_SECONDS - 1, False), (UNHEARD_SECONDS, False), (60, False)):
        watch.look({SOURCE: connected}, now=start + seconds)
        told.append(len(caplog.records))
    watch.look({SOURCE: True}, now=start + 61)
    watch.look({SOURCE: True}, now=start + 62)

    assert told == [0, 0, 1, 1]
    assert [record.getMessage() for record in caplog.records] == ["events_not_connected", "events_connected"]


def test_a_worker_that_does_not_answer_is_not_blamed_for_its_events(
    service: InProcess, caplog: pytest.LogCaptureFixture
) -> None:
    """Its health is the news then; and a removed worker is forgotten."""
    watch, registry = EventWatch(service.service.registry), service.service.registry
    worker = registry.find("w")
    registry.connect_failed(worker, now=service.clock.now)
    caplog.clear()

    watch.look({}, now=service.clock.now + 100)
    registry.remove("w", now=service.clock.now)
    watch.look({}, now=service.clock.now + 200)

    assert not [record for record in caplog.records if record.name == "kvrouter.events"]


def test_a_real_router_says_so(processes: Processes) -> None:
    """An engine without events, and a router that was promised some."""
    engine = processes.engine("--no-events")
    router = processes.router("--worker", f"{engine.url},events=tcp://127.0.0.1:9", workers=1)

    told = router.event("events_not_connected")

    assert (told["endpoint"], told["rank"], told["level"]) == ("tcp://127.0.0.1:9", 0, "warning")
