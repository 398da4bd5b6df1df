"""`kvrouter worker` tells the load of its engine: over NATS where requests come that way, else to whoever asks."""

import argparse
import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nats as nats_client
import pytest
from prometheus_client import REGISTRY

from kvrouter.events.load import decode_load
from kvrouter.transport.context import Context
from kvrouter.transport.http_client import HttpRequestClient
from kvrouter.transport.messages import Request
from kvrouter.worker.command import add_parser
from kvrouter.worker.serving import WorkerOptions, serving, worker_options
from tests.listening import listening
from tests.reporting.conftest import Run
from tests.servers import NatsServer, nats_server

PAGE = b"""# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_running{engine="0"} 4.0
vllm:num_requests_waiting{engine="0"} 7.0
"""


@contextlib.asynccontextmanager
async def engine() -> AsyncIterator[str]:
    """An engine that has a page of figures and nothing else."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(PAGE), PAGE))

    async with listening(answer) as port:
        yield f"http://127.0.0.1:{port}"


def options(url: str, folder: Path, environment: dict[str, str]) -> WorkerOptions:
    """What the command makes of its arguments and an environment."""
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    discovery = (folder / "discovery").as_uri()
    found: argparse.Namespace = parser.parse_args(["worker", f"{url},id=engine-7", "--discovery", discovery])
    return worker_options(found, environment)


def test_over_nats_stats_are_answered_and_the_load_is_published(nats: NatsServer, run: Run, tmp_path: Path) -> None:
    """A-005, A-008, A-009, A-361: of the engine, under the name that routers know the worker by."""

    async def scenario() -> None:
        client = await nats_client.connect(nats.url)
        loads = await client.subscribe("namespace.kvrouter.kv_metrics")
        await client.flush()
        environment = {"KVROUTER_REQUEST_PLANE": "nats", "NATS_SERVER": nats.url}
        async with engine() as url, serving(options(url, tmp_path, environment)) as (worker, _):
            load = decode_load((await loads.next_msg(timeout=60.0)).data)
            stats: dict[str, Any] = {}
            while not stats:
                with contextlib.suppress(nats_client.errors.NoRespondersError, nats_client.errors.TimeoutError):
                    answer = await client.request("$SRV.STATS.kvrouter_backend", b"", timeout=10.0)
                    stats = json.loads(answer.data)
            assert stats["id"] == f"{worker.instance_id:x}"
        await client.close()
        assert (load.worker_id, load.num_requests_waiting, load.request_active_slots) == ("engine-7", 7, 4)
        assert {each["name"] for each in stats["endpoints"]} == {"generate", "load_metrics"}

    run(scenario())


def test_over_another_plane_the_load_is_there_for_who_asks(run: Run, tmp_path: Path) -> None:
    """A-011, A-014: the same command with another variable; NATS, though it is named, hears nothing."""

    async def scenario(server: NatsServer) -> None:
        environment = {"KVROUTER_REQUEST_PLANE": "http", "NATS_SERVER": server.url}
        client = HttpRequestClient()
        async with engine() as url, serving(options(url, tmp_path, environment)) as (worker, _):
            stream = await client.request(worker.addresses["http"], Request(endpoint="load_metrics"), Context())
            (item,) = [item async for item in stream]
            await client.aclose()
        (report,) = json.loads(item)["reports"]
        assert (report["worker_id"], report["data"]["worker_stats"]["num_requests_waiting"]) == ("engine-7", 7)

    with nats_server(tmp_path, configuration="debug: true\ntrace: true") as server:
        run(scenario(server))
        assert "<<- [" not in server.log.read_text()


def test_an_engine_that_tells_nothing_changes_nothing(run: Run, tmp_path: Path) -> None:
    """A-006: a worker whose engine is away serves, and knows of no load."""

    async def scenario() -> None:
        client = HttpRequestClient()
        found = options("http://127.0.0.1:1", tmp_path, {"KVROUTER_REQUEST_PLANE": "http"})
        async with serving(found) as (worker, _):
            stream = await client.request(worker.addresses["http"], Request(endpoint="load_metrics"), Context())
            assert [json.loads(item) async for item in stream] == [{"reports": []}]
            await client.aclose()

    run(scenario())


def test_gauges_are_the_workers_own() -> None:
    """A-013: nothing lands in the registry that every program of a process shares."""
    assert not [name for name in REGISTRY._names_to_collectors if name.startswith(("kvstats", "nats_service"))]


@pytest.mark.parametrize(
    ("ways", "plane"), [(["tcp"], "tcp"), (["http", "tcp"], "http"), (["tcp", "nats"], "nats"), (["nats"], "nats")]
)
def test_nats_among_the_ways_in_is_nats_mode(ways: list[str], plane: str, tmp_path: Path) -> None:
    """A-004: who asks for a way in over NATS has asked for NATS."""
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    flags = [flag for way in ways for flag in ("--transport", way)]
    found = parser.parse_args(["worker", "http://127.0.0.1:1", "--discovery", tmp_path.as_uri(), *flags])

    assert worker_options(found, {}).request_plane == plane
