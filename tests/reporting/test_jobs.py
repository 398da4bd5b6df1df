"""The request plane decides which jobs there are, where they are started; none of them keeps a worker from serving."""

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest

from kvrouter.events.load import LoadReport
from kvrouter.events.nats_names import NatsCredentials
from kvrouter.reporting import Reporting
from kvrouter.reporting.kv_metrics import LOAD_METRICS
from kvrouter.transport.context import Context
from kvrouter.transport.messages import Request
from kvrouter.transport.nats_access import NatsAccess
from kvrouter.transport.plane_settings import EventPlane, RequestPlane, plane_settings
from kvrouter.transport.serve import serve
from tests.listening import listening
from tests.reporting.conftest import Run
from tests.servers import NatsServer, nats_server

NATS_JOBS = {"service stats", "service stats collector", "kv metrics"}


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Everything that reporting logs."""
    with caplog.at_level(logging.DEBUG, logger="kvrouter.reporting"):
        yield caplog


def logged(lines: pytest.LogCaptureFixture, event: str) -> list[Mapping[str, Any]]:
    """The fields of each line of an event, with its level."""
    return [
        {"level": record.levelname, **record.__dict__["fields"]}
        for record in lines.records
        if record.getMessage() == event
    ]


async def silent(request: Request, context: Context) -> AsyncIterator[bytes]:
    """Answer nothing."""
    for word in bytes(request.body).split():
        if not context.stopped:
            yield word


@pytest.mark.parametrize("plane", sorted(set(get_args(RequestPlane)) - {"nats"}))
def test_other_planes_have_no_job_and_say_so(plane: RequestPlane, lines: pytest.LogCaptureFixture, run: Run) -> None:
    """A-001, A-002, A-005, A-007, A-008, A-011, A-022: a DEBUG line each, with service or worker and the plane."""

    async def scenario() -> None:
        before = asyncio.all_tasks()
        reporting = Reporting("demo/backend", plane=plane, nats_server="nats://127.0.0.1:1")
        async with reporting.running(0x1F):
            assert asyncio.all_tasks() == before
            assert reporting.tasks == ()

    run(scenario())
    plane_field = {"level": "DEBUG", "request_plane": plane}
    assert logged(lines, "service_stats_skipped") == [{**plane_field, "service": "demo_backend"}]
    assert logged(lines, "kv_metrics_skipped") == [{**plane_field, "worker": "1f"}]


def test_nats_has_all_of_them(nats: NatsServer, lines: pytest.LogCaptureFixture, run: Run) -> None:
    """A-005, A-008, A-009, A-024: and says so, with the worker's id."""

    async def scenario() -> None:
        reporting = Reporting("demo/backend", plane="nats", nats_server=nats.url)
        async with reporting.running(0x1F):
            assert {task.get_name() for task in reporting.tasks} == NATS_JOBS
        assert reporting.tasks == ()
        assert not {task.get_name() for task in asyncio.all_tasks()} & NATS_JOBS

    run(scenario())
    assert logged(lines, "kv_metrics_published") == [
        {"level": "DEBUG", "worker": "1f", "subject": "namespace.demo.kv_metrics"}
    ]


@pytest.mark.parametrize(
    ("environment", "talks"),
    [
        ({}, False),
        ({"DYN_REQUEST_PLANE": "nats"}, True),
        ({"KVROUTER_REQUEST_PLANE": "nats"}, True),
        ({"DYN_REQUEST_PLANE": "http"}, False),
        ({"DYN_REQUEST_PLANE": "tcp"}, False),
        ({"KVROUTER_COMPAT": "seed"}, True),
        ({"KVROUTER_COMPAT": "seed", "DYN_REQUEST_PLANE": "http"}, False),
        ({"KVROUTER_COMPAT": "seed", "DYN_REQUEST_PLANE": ""}, True),
    ],
    ids=str,
)
def test_the_environment_is_the_switch(environment: dict[str, str], talks: bool, nats: NatsServer, run: Run) -> None:
    """A-004, A-010, A-018, A-028: nothing else changes between the modes, and taking it back is enough."""

    async def scenario() -> None:
        planes = plane_settings(environment)
        reporting = Reporting("demo/backend", plane=planes.request_plane, nats_server=nats.url)
        async with reporting.running(1):
            assert {task.get_name() for task in reporting.tasks} == (NATS_JOBS if talks else set())

    run(scenario())


@pytest.mark.parametrize("fault", ["closes at once", "another protocol", "no extra"])
def test_stats_that_cannot_start_do_not_keep_a_worker_from_serving(
    fault: str, lines: pytest.LogCaptureFixture, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A-006: it serves; a DEBUG line names the service and the error."""
    if fault == "no extra":
        monkeypatch.setitem(sys.modules, "nats", None)
        monkeypatch.delitem(sys.modules, "kvrouter.reporting.broker", raising=False)

    async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        del reader
        if fault == "another protocol":
            writer.write(b"220 mail.example.org\r\n")

    async def scenario() -> None:
        events = ("report_not_started", "reporting_not_started")
        async with listening(nonsense) as port:
            reporting = Reporting("demo/backend", plane="nats", nats_server=f"nats://127.0.0.1:{port}")
            handlers = reporting.handlers({"silent": silent})
            async with (
                serve("demo/backend", handlers, store=tmp_path.as_uri()) as worker,
                reporting.running(worker.instance_id, worker.addresses),
            ):
                assert worker.addresses["tcp"]
                assert set(worker.endpoints.names()) == {"silent", LOAD_METRICS}
                while not any(logged(lines, event) for event in events):
                    await asyncio.sleep(0.01)

    run(scenario())
    told = [fields for record in lines.records if (fields := record.__dict__["fields"]).get("error")]
    assert {fields["service"] for fields in told} == {"demo_backend"}
    assert all(record.levelno == logging.DEBUG for record in lines.records)


@pytest.mark.parametrize("events", get_args(EventPlane))
def test_events_over_nats_are_pointed_out_where_requests_are_not(
    events: EventPlane, lines: pytest.LogCaptureFixture, run: Run
) -> None:
    """A-003, A-029: the event plane is a choice of its own, and one that is not silent is a warning."""

    async def scenario() -> None:
        async with Reporting("demo/backend", plane="http", event_plane=events).running(1):
            pass

    run(scenario())
    expected = [{"level": "WARNING", "request_plane": "http", "service": "demo_backend"}] if events == "nats" else []
    assert logged(lines, "events_use_nats") == expected


def test_a_server_that_asks_who_we_are_is_told(
    lines: pytest.LogCaptureFixture, run: Run, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A-006, A-009: by the URL or beside it; whom it does not know is not told elsewhere what was shown."""

    async def scenario(server: NatsServer) -> None:
        known = NatsAccess(credentials=NatsCredentials(token="open-sesame"))
        by_url = server.url.replace("nats://", "nats://open-sesame@")
        for url, access in ((by_url, None), (server.url, known)):
            reporting = Reporting("demo/backend", plane="nats", nats_server=url, nats_access=access)
            async with reporting.running(1):
                await reporting.tasks[0]
        assert logged(lines, "report_not_started") == []

        stranger = Reporting("demo/backend", plane="nats", nats_server=by_url.replace("open", "shut"))
        async with stranger.running(1):
            while not logged(lines, "report_not_started"):
                await asyncio.sleep(0.01)

    with nats_server(tmp_path_factory.mktemp("nats"), configuration='authorization { token: "open-sesame" }') as server:
        run(scenario(server))
    assert "sesame" not in str([record.__dict__["fields"] for record in lines.records])


def test_jobs_that_overhear_their_end_are_told_again(
    nats: NatsServer, lines: pytest.LogCaptureFixture, run: Run
) -> None:
    """A-006: neither a library that swallows a cancellation nor a fault of who knows the load outlives the worker."""

    async def scenario() -> None:
        begun, waiting, ended = asyncio.Event(), asyncio.Event(), list[str]()

        async def load() -> list[LoadReport]:
            if not begun.is_set():
                begun.set()
                raise ValueError("the engine says nonsense")
            waiting.set()
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                ended.append("overheard")
            return []

        reporting = Reporting("demo/backend", plane="nats", nats_server=nats.url, refresh=load)
        async with reporting.running(1):
            await waiting.wait()
        assert ended == ["overheard"]
        assert logged(lines, "load_unknown") == [{"level": "DEBUG", "service": "demo_backend", "error": "ValueError"}]
        assert "load" not in {task.get_name() for task in asyncio.all_tasks()}

    run(scenario())
