"""A NATS server hears nothing of a worker and its clients, unless their request plane is NATS.

Everything runs beside a real server that traces its protocol: requests, streams, discovery (in etcd), load reports,
cache events, gauges and polling. docs/http-mode.md is the page; examples/http_mode/check.sh does it with processes.
"""

import asyncio
import os
import re
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kvrouter.store.key_values import KeyValueStore
from kvrouter.transport.callhome_client import CallHomeClient
from kvrouter.transport.callhome_listener import CallHomeListener
from kvrouter.transport.context import Context
from kvrouter.transport.http_client import HttpAckClient
from kvrouter.transport.messages import Request
from kvrouter.transport.serve import serve
from tests.e2e.wiretap import STREAM, Observed, observe, trace_of
from tests.servers import EtcdServer, nats_server

CHECKOUT = Path(__file__).resolve().parents[2]
SILENT = {
    "unset": {},
    "http": {"DYN_REQUEST_PLANE": "http"},
    "tcp": {"KVROUTER_REQUEST_PLANE": "tcp"},
    "seed-http": {"KVROUTER_COMPAT": "seed", "DYN_REQUEST_PLANE": "http"},
}
TALKING = {"nats": {"DYN_REQUEST_PLANE": "nats"}, "seed": {"KVROUTER_COMPAT": "seed"}}


@pytest.fixture(scope="module", params=SILENT)
def silent(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, etcd: EtcdServer) -> Observed:
    """A run under a plane that is not NATS."""
    return observe(SILENT[request.param], tmp_path_factory.mktemp("nats"), f"{etcd.url}/{secrets.token_hex(4)}")


@pytest.fixture(scope="module", params=TALKING)
def talking(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, etcd: EtcdServer) -> Observed:
    """A run under NATS."""
    return observe(TALKING[request.param], tmp_path_factory.mktemp("nats"), f"{etcd.url}/{secrets.token_hex(4)}")


def test_nothing_is_said_to_nats(silent: Observed) -> None:
    """A-001, A-002, A-003, A-011, A-012, A-020, A-023: no connection, no message, not a line of its protocol."""
    assert silent.monitored == {"total_connections": 0, "in_msgs": 0, "out_msgs": 0}
    assert silent.trace == []


def test_the_rest_works_as_ever(silent: Observed) -> None:
    """A-013, A-014, A-015, A-016, A-030, A-031: discovery, requests, gauges, and the load that is polled."""
    assert silent.answers == [[b"one", b"two", b"three"]] * 3
    assert silent.gauges == [1.0, 2.0]
    assert [reports[0]["data"]["kv_stats"] for reports in silent.polled] == [{"kv_active_blocks": 2}] * 3
    if silent.settings.request_plane == "http":
        assert silent.page == {"reports": silent.polled[-1]}


def test_what_is_not_needed_does_not_exist(silent: Observed) -> None:
    """A-022, A-030: no job that reports; what a client has in the background follows discovery, and nothing else."""
    assert silent.reporting_tasks == set()
    assert any(name.startswith("directory ") for name in silent.client_tasks)
    assert not {name for name in silent.client_tasks if "nats" in name or "stats" in name}


def test_nats_mode_is_as_it_was(talking: Observed) -> None:
    """A-009, A-020, A-024: stats are asked for with an inbox to answer to, and the load is published."""
    said = [line.split() for line in talking.trace]

    assert ["PUB", "$SRV.STATS.demo_backend"] in [line[:2] for line in said if line[2:3] and "_INBOX." in line[2]]
    assert any(line[:2] == ["PUB", "namespace.demo.kv_metrics"] for line in said)
    assert any(line[0] == "SUB" and line[1].startswith("_INBOX.") for line in said)
    assert any(line[:2] == ["SUB", "$SRV.*.demo_backend"] for line in said)
    assert talking.reporting_tasks == {"service stats", "service stats collector", "kv metrics"}


def test_nats_mode_serves_the_same(talking: Observed) -> None:
    """A-013, A-014, A-018: whoever changes the variable finds requests, gauges and polling unchanged."""
    assert talking.answers == [[b"one", b"two", b"three"]] * 3
    assert talking.gauges == [1.0, 2.0]
    assert [reports[0]["data"]["kv_stats"] for reports in talking.polled] == [{"kv_active_blocks": 2}] * 3


def test_cache_events_take_the_plane_of_their_own(talking: Observed) -> None:
    """A-003, A-029: over NATS where the first releases' defaults are asked for, not because requests are."""
    published = [line for line in talking.trace if line.startswith(f"HPUB {STREAM}.")]

    assert bool(published) == (talking.settings.event_plane == "nats")


def test_other_modes_have_fewer_tasks(
    tmp_path_factory: pytest.TempPathFactory, etcd: EtcdServer, talking: Observed
) -> None:
    """A-022: counted in one process each, with everything running."""
    folder, store = tmp_path_factory.mktemp("nats"), f"{etcd.url}/{secrets.token_hex(4)}"
    assert observe({"KVROUTER_REQUEST_PLANE": "tcp"}, folder, store).tasks < talking.tasks


def test_answers_call_home_without_nats(tmp_path: Path) -> None:
    """A-016, A-017: requests over HTTP, answers streamed over TCP connections that the worker dials."""

    async def words(request: Request, context: Context) -> AsyncIterator[bytes]:
        for word in bytes(request.body).split():
            if not context.stopped:
                yield word

    async def scenario(url: str, store: str | KeyValueStore) -> list[bytes]:
        client = CallHomeClient(HttpAckClient(), CallHomeListener())
        async with serve(
            "demo/backend", {"words": words}, store=store, transports=("http",), nats_server=url, answers_home=True
        ) as worker:
            stream = await client.request(
                worker.addresses["http"], Request(endpoint="words", body=b"one two"), Context()
            )
            items = [item async for item in stream]
            await client.aclose()
        return items

    with nats_server(tmp_path, configuration="trace: true\ndebug: true") as server:
        items = asyncio.run(asyncio.wait_for(scenario(server.url, (tmp_path / "store").as_uri()), 110))

    assert items == [b"one", b"two"]
    assert trace_of(server) == []


def test_the_script_finds_the_same_with_processes() -> None:
    """A-010, A-018, A-019, A-021, A-028: one program, and only its environment changes: unset, `nats`, `http`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("KVROUTER_", "DYN_"))}
    answer = subprocess.run(
        [str(CHECKOUT / "examples" / "http_mode" / "check.sh"), "unset", "nats", "http"],
        env={**clean, "PYTHON": sys.executable, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip

    assert answer.returncode == 0, answer.stdout + answer.stderr
    found = re.findall(r"^(\w+) +(silent|talks) .* polled 5 of 5$", answer.stdout, re.MULTILINE)
    assert found == [("unset", "silent"), ("nats", "talks"), ("http", "silent")]
