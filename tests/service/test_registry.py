"""Which workers take requests, by what was seen of them; with a real router, and time as a number."""

from typing import Any

import pytest

from kvrouter.errors import NoWorkerError, RequestError
from kvrouter.events import Source
from kvrouter.service.workers import EJECTION_SECONDS_FIRST, LOSSES_BEFORE_EJECTION, Worker
from kvrouter.settings import HealthSettings
from tests.service.inprocess import InProcess

TOKENS = list(range(64))


@pytest.fixture
def service() -> InProcess:
    """Three failed checks make a worker unroutable, two good ones bring it back."""
    return InProcess(health=HealthSettings(failures=3, successes=2))


def _routable(service: InProcess, worker: Worker) -> bool:
    try:
        decision = service.service.router.decide(None, allowed=[worker.spec.worker_id], now=service.clock.now)
    except NoWorkerError:
        return False
    return decision.worker_id == worker.spec.worker_id


def _fail(service: InProcess, worker: Worker, times: int) -> None:
    for _ in range(times):
        service.service.registry.check_failed(worker, "connection refused", now=service.clock.now)


def _pass(service: InProcess, worker: Worker, times: int = 1) -> None:
    for _ in range(times):
        service.service.registry.check_passed(worker, now=service.clock.now)


def test_a_worker_takes_requests_after_its_first_good_check(service: InProcess) -> None:
    """Before it, it is shown with its reason."""
    worker = service.add(healthy=False, url="http://h:1", model="m")
    before = (_routable(service, worker), worker.lifecycle, worker.reasons())

    _pass(service, worker)

    assert before == (False, "incomplete", ["not reached yet"])
    assert (_routable(service, worker), worker.lifecycle, worker.reasons()) == (True, "schedulable", [])


def test_a_worker_without_models_waits_for_them(service: InProcess) -> None:
    """A good health check is not enough to know what it serves."""
    worker = service.add(url="http://h:1")
    waiting = _routable(service, worker)

    service.service.registry.models_found(worker, [{"id": "m"}, {"id": 5}, {}], now=service.clock.now)

    assert not waiting
    assert _routable(service, worker)
    assert worker.models == ("m",)


def test_failed_checks_take_it_out_and_good_ones_bring_it_back(service: InProcess) -> None:
    """Both only after as many in a row as the settings say."""
    worker = service.add(url="http://h:1", model="m")

    _fail(service, worker, 2)
    assert _routable(service, worker)
    _fail(service, worker, 1)
    assert not _routable(service, worker)
    assert worker.reasons() == ["health checks fail: connection refused"]
    _pass(service, worker, 1)
    assert not _routable(service, worker)
    _pass(service, worker, 1)
    assert _routable(service, worker)


def test_a_worker_that_cannot_be_reached_is_logged_once(service: InProcess, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever misspelt an address sees it in the log, and not every few seconds."""
    worker = service.add(healthy=False, url="http://h:1", model="m")

    with caplog.at_level("WARNING"):
        _fail(service, worker, 5)

    assert [record.getMessage() for record in caplog.records] == ["worker_not_reached"]


def test_a_refused_connection_ejects_at_once_and_longer_each_time(service: InProcess) -> None:
    """A good check within the back-off does not count; after it, it does."""
    worker = service.add(url="http://h:1", model="m")
    registry, waits = service.service.registry, []

    for _ in range(4):
        registry.connect_failed(worker, now=service.clock.now)
        registry.connect_failed(worker, now=service.clock.now)
        waits.append(worker.ejected_until - service.clock.now)
        _pass(service, worker, 3)
        assert not _routable(service, worker)
        service.clock.now = worker.next_check_at
        _pass(service, worker, 2)
        assert _routable(service, worker)

    assert waits == [EJECTION_SECONDS_FIRST * factor for factor in (1, 2, 4, 8)]
    registry.answered(worker)
    registry.connect_failed(worker, now=service.clock.now)
    assert worker.ejected_until - service.clock.now == EJECTION_SECONDS_FIRST
    assert worker.counters.ejections == 5


def test_cut_answers_ask_for_a_check_and_eject_only_when_they_go_on(service: InProcess) -> None:
    """One lost connection may be bad luck."""
    worker = service.add(url="http://h:1", model="m")
    registry = service.service.registry
    worker.next_check_at = service.clock.now + 100

    registry.upstream_lost(worker, now=service.clock.now)
    assert worker.next_check_at == service.clock.now
    assert _routable(service, worker)
    for _ in range(LOSSES_BEFORE_EJECTION - 1):
        registry.upstream_lost(worker, now=service.clock.now)

    assert not _routable(service, worker)


def test_a_draining_worker_takes_nothing_new_and_keeps_its_blocks(service: InProcess) -> None:
    """And comes back when it is told to."""
    worker = service.add(url="http://h:1", model="m", events="tcp://h:5557")
    service.store(worker, TOKENS)
    registry = service.service.registry

    registry.set_draining("h:1", draining=True, now=service.clock.now)
    drained = (_routable(service, worker), worker.lifecycle, worker.reasons())
    registry.set_draining("h:1", draining=False, now=service.clock.now)

    assert drained == (False, "draining", ["draining"])
    assert _routable(service, worker)
    assert service.service.ingest.status(now=service.clock.now)[0].blocks == 4


def test_a_removed_worker_takes_its_blocks_along(service: InProcess) -> None:
    """And its number may be given to another one."""
    worker = service.add(url="http://h:1", model="m", events="tcp://h:5557")
    service.store(worker, TOKENS)

    service.service.registry.remove("h:1", now=service.clock.now)
    other = service.add(url="http://h:2", model="m")

    assert other.ranks == worker.ranks
    assert service.service.ingest.status(now=service.clock.now)[0].blocks == 0
    with pytest.raises(RequestError) as caught:
        service.service.registry.find("h:1")
    assert caught.value.status == 404


def test_a_dead_workers_blocks_are_forgotten(service: InProcess) -> None:
    """Dead is who answers no checks and sends no events; one of both is not enough."""
    worker = service.add(url="http://h:1", model="m", events="tcp://h:5557")
    service.store(worker, TOKENS)

    def blocks() -> int:
        return service.service.ingest.status(now=service.clock.now)[0].blocks

    service.service.registry.forget_dead({Source("h:1", 0): False})
    silent = blocks()
    _fail(service, worker, 3)

    assert (silent, blocks()) == (4, 0)


def test_the_same_registration_again_changes_nothing(service: InProcess) -> None:
    """A controller may repeat itself."""
    fields: dict[str, Any] = {"url": "http://h:1", "model": "m", "events": "tcp://h:5557"}
    worker = service.add(**fields)
    service.store(worker, TOKENS)

    again = service.add(healthy=False, **fields)

    assert again is worker
    assert _routable(service, worker)
    assert service.service.ingest.status(now=service.clock.now)[0].blocks == 4


def test_another_address_is_another_process(service: InProcess) -> None:
    """It must be reached before it is used; what it shares with the old one is only the name."""
    worker = service.add(url="http://h:1", worker_id="a", model="m")

    service.add(healthy=False, url="http://h:2", worker_id="a", model="m")

    assert worker.health == "starting"
    assert not _routable(service, worker)


def test_other_ranks_are_another_worker(service: InProcess) -> None:
    """The old ranks and their blocks go."""
    old = service.add(url="http://h:1", worker_id="a", model="m", events="tcp://h:5557")
    service.store(old, TOKENS)

    new = service.add(url="http://h:1", worker_id="a", model="m", events="tcp://h:5557", ranks=3)

    assert len(new.ranks) == 3
    assert [each.blocks for each in service.service.ingest.status(now=service.clock.now)] == [0, 0, 0]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"url": "http://h:1", "worker_id": "b"}, "duplicate_url"),
        ({"url": "http://h:3", "events": "tcp://h:5557"}, "duplicate_event_endpoint"),
    ],
)
def test_addresses_belong_to_one_worker(service: InProcess, fields: dict[str, Any], code: str) -> None:
    """Two names for one process would count its cache twice."""
    service.add(url="http://h:1", worker_id="a", model="m", events="tcp://h:5557")

    with pytest.raises(RequestError) as caught:
        service.add(**fields)

    assert (caught.value.status, caught.value.code) == (409, code)


def test_a_gateways_worker_is_selectable_unseen_but_not_proxied_to(service: InProcess) -> None:
    """Registered by `endpoint`: the gateway answers for it; our own requests wait for a good check."""
    worker = service.add(healthy=False, endpoint="http://h:1", worker_id=1, model="m")
    registry = service.service.registry

    assert worker.lifecycle == "schedulable"
    assert registry.unproxied == {"1"}
    _pass(service, worker)
    assert registry.unproxied == frozenset()


def test_ranks_beyond_what_the_router_serves_are_refused_and_lose_nobody(service: InProcess) -> None:
    """A worker that cannot grow stays as it was."""
    for number in range(15):
        service.add(url=f"http://h:{number + 1}", id=str(number), ranks=256)
    small = service.add(url="http://h:99", id="small", model="m")
    service.add(url="http://h:98", id="last", ranks=255)

    with pytest.raises(RequestError, match="more ranks would exceed the 4096") as grown:
        service.add(url="http://h:99", id="small", model="m", ranks=2)
    with pytest.raises(RequestError, match="more ranks would exceed the 4096"):
        service.add(url="http://h:97", id="new")

    assert grown.value.status == 422
    assert service.service.registry.find("small") is small
    assert _routable(service, small)
