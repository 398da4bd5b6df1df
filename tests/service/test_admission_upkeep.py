"""What admission does beside letting in: what it charges, when its work is due, what it shows and what it logs."""

import asyncio
import json
import logging

import pytest

from kvrouter.errors import (
    ShedError,
)
from kvrouter.service import admission
from kvrouter.service.admission_view import admission_record
from tests.service.waiting_fleet import TENANT, Fleet, latest, turns


async def test_a_tenant_is_charged_what_its_request_cost() -> None:
    """What had become cached while it waited is free."""
    fleet = Fleet(**TENANT)
    running = fleet.sent("other", tokens=640)
    fleet.waiting("t", tokens=640)
    fleet.waiting("t", start=50_000, tokens=640)
    fleet.service.store(fleet.service.service.registry.find("a"), list(range(50_000, 50_640)))
    (tenant,) = {each.tenant for each in fleet.admission.queue}

    fleet.end(running)
    first = tenant.served_tokens
    fleet.dispatcher.finished(latest(fleet), "ok", None)
    second = tenant.served_tokens - first

    # The first one repeats what was sent before, the second one's was announced meanwhile: both compute a last block.
    assert first == second == 240 + 16


async def test_work_is_due_when_somebody_may_have_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not while nobody waits, nor again for what was done already."""
    monkeypatch.setattr(admission, "WORK_SECONDS", 3600.0)
    fleet = Fleet()
    fleet.sent()
    idle = asyncio.create_task(fleet.admission.due())
    await turns()
    while_nobody_waits = idle.done()
    fleet.waiting()
    await idle
    again = asyncio.create_task(fleet.admission.due())
    await turns()
    for_the_same = again.done()
    fleet.waiting(x_kvrouter_deadline_ms=20_000)
    await again

    assert not while_nobody_waits
    assert not for_the_same


async def test_the_queue_can_be_looked_at() -> None:
    """Who waits for what, with which share; the largest first."""
    fleet = Fleet(**TENANT, tenant_weights=("paying=2.5",), quantum_tokens=1000)
    fleet.sent()
    for number in range(3):
        fleet.waiting("paying", start=1000 * number)
    fleet.waiting("other")
    fleet.service.clock.now += 1.5

    record = admission_record(fleet.admission, now=fleet.service.clock.now)

    assert json.loads(json.dumps(record)) == record
    assert record["waiting"]["requests"] == 4
    assert record["waiting"]["oldest_seconds"] == 1.5
    assert record["limits"]["ttft_seconds_max"] is None
    assert record["counts"]["queued"] == 4
    assert record["lanes"] == [{"model": "m", "constrained": False, "excluded": [], "requests": 4, "has_room": False}]
    first, second = record["tenants"]
    assert (first["tenant"], first["weight"], first["requests"], first["deficit_tokens"]) == ("paying", 2.5, 3, 2500)
    assert (second["tenant"], second["weight"], second["requests"]) == ("other", 1.0, 1)


async def test_requests_that_are_turned_away_are_logged_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    """Not each of them."""
    fleet = Fleet()
    with caplog.at_level(logging.WARNING, logger="kvrouter.admission"):
        for _ in range(50):
            with pytest.raises(ShedError):
                fleet.ask(tokens=8000, x_kvrouter_deadline_ms=1)
            fleet.admission.tell()
        fleet.service.clock.now += 11.0
        fleet.admission.tell()

    lines = [each for each in caplog.records if each.getMessage() == "requests_shed"]
    assert len(lines) == 2
    assert sum(each.fields["requests"] for each in lines) == 50  # type: ignore[attr-defined]
