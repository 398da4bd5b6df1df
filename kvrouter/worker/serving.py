"""What `kvrouter worker` is told, and the worker that follows from it: engine, transports, figures."""

import argparse
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Final

from prometheus_client import CollectorRegistry, start_http_server

from kvrouter.discovery.metrics import DiscoveryMetrics
from kvrouter.discovery.records import instance_key
from kvrouter.errors import SettingsError, WireError
from kvrouter.reporting import Reporting
from kvrouter.service.worker_spec import parse_worker_spec
from kvrouter.store import open_key_value_store
from kvrouter.transport.http_settings import http_plane_settings
from kvrouter.transport.metrics import PoolMetrics, WorkHandlerMetrics
from kvrouter.transport.plane_settings import (
    CALLING_HOME,
    REQUEST_PLANES,
    EventPlane,
    PlaneSettings,
    RequestPlane,
    plane_settings,
)
from kvrouter.transport.serve import ServedWorker, serve
from kvrouter.transport.servers import ServerSettings
from kvrouter.transport.variables import Variables
from kvrouter.worker.engine import engine_handler
from kvrouter.worker.engine_load import engine_load
from kvrouter.worker.open_binds import refuse_open_ways

__all__ = ["WorkerOptions", "serving", "worker_options"]

_LOOPBACK: Final = "127.0.0.1"
_NATS_SERVER: Final = "nats://127.0.0.1:4222"
_NOT_TOLD: Final = frozenset({"url", "api_key"})
"""Between the worker and its engine only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """Everything about one worker process."""

    engine: str
    api_key: str | None
    told: Mapping[str, object]
    """What its record says of it besides: fields of `POST /workers`."""
    discovery: str
    name: str
    endpoint: str
    transports: tuple[str, ...]
    host: str
    advertise: str | None
    nats_server: str | None
    answers_home: bool
    requests_max: int
    drain_seconds: float
    metrics_port: int | None
    servers: ServerSettings
    event_plane: EventPlane = "zmq"
    """Where the engine's cache events are said to go: beside silent requests, NATS is worth a warning."""

    @property
    def request_plane(self) -> RequestPlane:
        """NATS where that is a way in, else the preferred one."""
        ways = ("nats", *self.transports) if "nats" in self.transports else self.transports
        return next(plane for plane in REQUEST_PLANES if plane == ways[0])

    @property
    def worker_id(self) -> str | None:
        """The name that routers know it by, where its record says one."""
        named = self.told.get("worker_id", self.told.get("id"))
        return None if named is None else str(named)


def worker_options(arguments: argparse.Namespace, environment: Mapping[str, str]) -> WorkerOptions:
    """Read the command line, and the planes' variables where it says nothing.

    Raises:
        SettingsError: one of them has a value that is none, or everybody could ask (see `--insecure`).
    """
    spec = parse_worker_spec(arguments.engine)
    assert spec.url is not None
    _refuse_names(arguments.namespace, arguments.component, arguments.endpoint)
    planes, http, found = plane_settings(environment), http_plane_settings(environment), Variables(environment)
    transports = tuple(dict.fromkeys(arguments.transport or (planes.request_plane,)))
    answers_home = _answers_home(transports, planes, found, flag=arguments.answers_home)
    host_variable = "HTTP_RPC_HOST" if transports[0] == "http" else "TCP_REQUEST_HOST"
    host = arguments.host or found.text(host_variable, _LOOPBACK)
    refuse_open_ways(host, transports, planes, http, insecure=arguments.insecure)
    response_host = found.optional("HTTP_RESPONSE_HOST")
    if response_host is not None and "http" in transports:
        refuse_open_ways(response_host, ("http",), planes, http, insecure=arguments.insecure)
    # Who names a host for answers wants a port of their own there, whichever it is.
    free_port = None if response_host is None else 0
    nats_server = arguments.nats_server or environment.get("NATS_SERVER", "").strip() or _NATS_SERVER
    return WorkerOptions(
        engine=spec.url,
        api_key=spec.api_key,
        told={name: value for name, value in spec.fields.items() if name not in _NOT_TOLD},
        discovery=arguments.discovery,
        name=f"{arguments.namespace}/{arguments.component}",
        endpoint=arguments.endpoint,
        transports=transports,
        host=host,
        advertise=arguments.advertise,
        nats_server=nats_server if "nats" in transports else None,
        answers_home=answers_home,
        requests_max=arguments.requests_max,
        drain_seconds=arguments.drain_seconds,
        metrics_port=arguments.metrics_port,
        servers=ServerSettings(
            tcp=planes.tcp if found.found("TCP_REQUEST_PORT") else replace(planes.tcp, port=0),
            http=http if found.found("HTTP_RPC_PORT") else replace(http, rpc_port=0),
            response_port=http.response_port if found.found("HTTP_RESPONSE_PORT") else free_port,
            response_host=response_host,
            pool=planes.pool,
            security=planes.security,
        ),
        event_plane=planes.event_plane,
    )


def _refuse_names(namespace: str, component: str, endpoint: str) -> None:
    """Raise SettingsError for names that no record may have: before anything is bound."""
    try:
        instance_key(namespace, component, endpoint, 0)
    except WireError as error:
        raise SettingsError(f"--{error}") from None


def _answers_home(transports: tuple[str, ...], planes: PlaneSettings, found: Variables, *, flag: bool) -> bool:
    """Whether answers call home: the flag says so, or `RESPONSE_PLANE` where requests come over something else.

    Raises:
        SettingsError: flag and variable contradict each other, or a transport cannot answer so.
    """
    named = found.found("RESPONSE_PLANE")
    said = "" if named is None else f"{named[0]}={planes.response_plane}"
    if said and planes.response_plane == "http":
        if flag:
            raise SettingsError(f"--answers-home contradicts {said}: answers call home over TCP")
        if others := [each for each in transports if each != "http"]:
            raise SettingsError(f"{said}: answers come over HTTP where requests do, not with {', '.join(others)}")
        return False
    # Multiplexed TCP alone has its answers over TCP as it is.
    if not flag and (not said or transports == ("tcp",)):
        return False
    if not set(CALLING_HOME).issuperset(transports):
        raise SettingsError(
            f"{'--answers-home' if flag else said}: answers call home with {', '.join(CALLING_HOME)} only"
        )
    return True


@asynccontextmanager
async def serving(options: WorkerOptions) -> AsyncIterator[tuple[ServedWorker, int | None]]:
    """Serve the engine until the end of the block; gives the worker, and the port of its metrics if there is one."""
    figures = CollectorRegistry()
    work, pools = WorkHandlerMetrics(figures), PoolMetrics(figures)
    discovery = DiscoveryMetrics(figures)
    async with (
        engine_handler(options.engine, api_key=options.api_key) as handler,
        engine_load(options.engine, api_key=options.api_key) as load,
    ):
        reporting = Reporting(
            options.name,
            plane=options.request_plane,
            nats_server=options.nats_server,
            nats_access=options.servers.security.nats,
            event_plane=options.event_plane,
            registry=figures,
            refresh=load.reports,
            worker_id=options.worker_id,
        )
        async with (
            serve(
                options.name,
                reporting.handlers(work.handlers({options.endpoint: handler})),
                store=discovery.store(open_key_value_store(options.discovery)),
                transports=options.transports,
                host=options.host,
                advertise=options.advertise,
                nats_server=options.nats_server,
                answers_home=options.answers_home,
                worker=options.told,
                streams_max=options.requests_max,
                drain_seconds=options.drain_seconds,
                settings=options.servers,
            ) as worker,
            reporting.running(worker.instance_id, worker.addresses),
        ):
            work.refusals(worker.endpoints)
            discovery.registrations.inc(len(worker.registrations))
            for home in worker.homes:
                pools.pool(home.pool)
                work.call_home(home)
            with _shown(figures, options) as metrics_port:
                yield worker, metrics_port


@contextmanager
def _shown(figures: CollectorRegistry, options: WorkerOptions) -> Iterator[int | None]:
    """Show the figures where they are wanted; gives the port.

    By prometheus_client's own server, in a thread of its own: a scrape does not wait for answers, nor they for it.

    Raises:
        SettingsError: the port cannot be had.
    """
    if options.metrics_port is None:
        yield None
        return
    try:
        server, thread = start_http_server(options.metrics_port, options.host, registry=figures)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise SettingsError(
            f"--metrics-port: cannot listen on {options.host}:{options.metrics_port}: {reason}"
        ) from None
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
