"""A worker and its client under one request plane, beside a nats-server that writes down what it hears."""

import asyncio
import json
import re
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from prometheus_client import CollectorRegistry

from kvrouter.discovery import Directory, Discovery
from kvrouter.events import BlockStored
from kvrouter.events.load import LoadReport
from kvrouter.reporting import KvMetricsApp, Reporting
from kvrouter.store import open_key_value_store
from kvrouter.transport.context import Context
from kvrouter.transport.http_client import HttpRequestClient
from kvrouter.transport.messages import Request
from kvrouter.transport.nats_client import NatsRequestClient
from kvrouter.transport.plane_client import PlaneClient
from kvrouter.transport.plane_settings import EventPlane, PlaneSettings, plane_settings
from kvrouter.transport.planes import RequestClient
from kvrouter.transport.registry import Registered, TransportRegistry
from kvrouter.transport.serve import serve
from kvrouter.transport.servers import ServerSettings
from kvrouter.transport.tcp_client import TcpRequestClient
from kvrouter_publishers import EventPublisher, JetStreamEventPublisher, ZmqEventPublisher
from tests.servers import NatsServer, free_tcp, nats_server

__all__ = ["Observed", "observe", "trace_of"]

STREAM = "namespace-demo-component-backend-kv-events"
_SPOKEN = re.compile(r"<<- \[(.+)\]")
_WAIT_SECONDS = 60.0


@dataclass
class Observed:
    """What one run has shown."""

    settings: PlaneSettings
    trace: list[str] = field(default_factory=list)
    """Each line that clients said to the server."""
    monitored: Mapping[str, Any] = field(default_factory=dict)
    """The server's `/varz` at the end, less what it was before."""
    reporting_tasks: set[str] = field(default_factory=set)
    client_tasks: set[str] = field(default_factory=set)
    """Tasks that a client of the plane has, between its requests."""
    tasks: int = 0
    answers: list[list[bytes]] = field(default_factory=list)
    polled: list[Any] = field(default_factory=list)
    page: Any = None
    gauges: list[float | None] = field(default_factory=list)


def observe(environment: Mapping[str, str], folder: Path, discovery: str) -> Observed:
    """Do everything that a worker and a client do, in the mode that `environment` says."""
    observed = Observed(plane_settings(environment))
    with nats_server(folder, configuration="debug: true\ntrace: true") as server:
        before = _varz(server)
        asyncio.run(asyncio.wait_for(_scenario(observed, server, discovery), 110))
        after = _varz(server)
        observed.monitored = {name: after[name] - before[name] for name in ("total_connections", "in_msgs", "out_msgs")}
    observed.trace = trace_of(server)
    return observed


def trace_of(server: NatsServer) -> list[str]:
    """What clients have said to a server that traces."""
    return _SPOKEN.findall(server.log.read_text())


async def _scenario(observed: Observed, server: NatsServer, discovery: str) -> None:
    planes, registry = observed.settings, CollectorRegistry()
    reporting = Reporting(
        "demo/backend",
        plane=planes.request_plane,
        nats_server=server.url,
        event_plane=planes.event_plane,
        registry=registry,
    )
    publisher = await asyncio.to_thread(_publisher, planes.event_plane, server)
    async with (
        serve(
            "demo/backend",
            reporting.handlers({"words": _words}),
            store=discovery,
            transports=(planes.request_plane,),
            nats_server=server.url,
            settings=ServerSettings(http_wrap=lambda app: KvMetricsApp(app, reporting.metrics)),
        ) as worker,
        reporting.running(worker.instance_id, worker.addresses),
    ):
        for waiting in (1, 2):
            reporting.publish(_load(waiting))
            observed.gauges.append(registry.get_sample_value("kvstats_active_blocks", {"rank": "0"}))
        publisher.publish([BlockStored(block_hashes=(1,), parent_block_hash=None, token_ids=(1, 2), block_size=2)])
        observed.reporting_tasks = {task.get_name() for task in reporting.tasks}
        async with Discovery(open_key_value_store(discovery)) as found:
            await _be_a_client(observed, server, found)
        if planes.request_plane == "http":
            address = worker.addresses["http"].removesuffix("/v1/rpc")
            async with httpx.AsyncClient(timeout=_WAIT_SECONDS) as client:
                observed.page = (await client.get(f"{address}/v1/kv_metrics")).json()
        observed.tasks = len(asyncio.all_tasks())
        if planes.request_plane == "nats":
            await _until_heard(server, "PUB $SRV.STATS", "PUB namespace.demo.kv_metrics")
        if planes.event_plane == "nats":
            await _until_heard(server, f"HPUB {STREAM}.")
    await asyncio.to_thread(publisher.close)


async def _be_a_client(observed: Observed, server: NatsServer, discovery: Discovery) -> None:
    """Requests, and the load polled every 100 ms."""
    before = asyncio.all_tasks()
    plane = observed.settings.request_plane
    transport = _client(plane, server)
    registry = TransportRegistry()
    registry.register(Registered(transport_id=plane, client=transport))
    for endpoint in ("words", "load_metrics"):
        directory = Directory(discovery, "demo", "backend", endpoint)
        await directory.start()
        client = PlaneClient(directory, registry, wait_seconds=_WAIT_SECONDS)
        if endpoint == "words":
            names = {task.get_name() for task in asyncio.all_tasks() - before}
            observed.client_tasks = names
        for _ in range(3):
            items = [item async for item in client.items(Request(endpoint=endpoint, body=b"one two three"))]
            if endpoint == "words":
                observed.answers.append(items)
            else:
                observed.polled.append(json.loads(items[0])["reports"])
                await asyncio.sleep(0.1)
        await directory.close()
    await transport.aclose()


def _client(plane: str, server: NatsServer) -> RequestClient:
    match plane:
        case "http":
            return HttpRequestClient()
        case "nats":
            return NatsRequestClient(server.url)
    return TcpRequestClient()


def _publisher(plane: EventPlane, server: NatsServer) -> EventPublisher:
    """Where the engine's cache events go; nobody reads them here, which must not matter to the engine."""
    if plane == "nats":
        return JetStreamEventPublisher(f"{server.url}/{STREAM}", worker_id="worker-a")
    return ZmqEventPublisher(free_tcp())


def _load(waiting: int) -> LoadReport:
    return LoadReport(worker_id="worker-a", num_requests_waiting=waiting, kv_active_blocks=waiting)


async def _words(request: Request, context: Context) -> Any:
    for word in bytes(request.body).split():
        if context.stopped:
            return
        yield word


async def _until_heard(server: NatsServer, *lines: str) -> None:
    async with asyncio.timeout(_WAIT_SECONDS):
        while not all(any(each.startswith(line) for each in trace_of(server)) for line in lines):
            await asyncio.sleep(0.05)


def _varz(server: NatsServer) -> Mapping[str, int]:
    with urllib.request.urlopen(f"{server.monitoring}/varz", timeout=_WAIT_SECONDS) as answer:
        found: Mapping[str, int] = json.load(answer)
    return found
