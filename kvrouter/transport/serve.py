"""A worker in ten lines: handlers by name, reached over the transports that are asked for, found by discovery.

async def generate(request, context):
    for token in ...:
        yield token

async with serve("demo/backend", {"generate": generate}, store="etcd://127.0.0.1:2379") as worker:
    await worker.serve_forever()
"""

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from kvrouter.discovery import Discovery, Instance, Registration, TransportEndpoint
from kvrouter.errors import TransportError
from kvrouter.store import open_key_value_store
from kvrouter.store.key_values import KeyValueStore
from kvrouter.transport.access import AccessGuard
from kvrouter.transport.callhome_worker import CallHomeWorker
from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.planes import RequestServer
from kvrouter.transport.server_stream import Handler
from kvrouter.transport.servers import ServerSettings, make_call_home_server, make_server

__all__ = ["ServedWorker", "serve"]

_CALL_HOME = TransportEndpoint(transport_id="tcp", address="", metadata={"mode": "call_home"})
_CAPABILITIES: dict[str, bool | int] = {"streaming": True, "persistent_connections": True, "bidirectional": True}


class ServedWorker:
    """A running worker; an asynchronous context manager. Leaves discovery first, then finishes what runs."""

    def __init__(
        self,
        name: str,
        handlers: Mapping[str, Handler],
        servers: Mapping[str, RequestServer],
        *,
        endpoints: Endpoints,
        store: KeyValueStore,
        instance_id: int,
        zone: str | None,
        drain_seconds: float,
        response_transport: TransportEndpoint | None = None,
        worker: Mapping[str, Any] | None = None,
        homes: Sequence[CallHomeWorker] = (),
    ) -> None:
        self.endpoints, self.instance_id = endpoints, instance_id
        self._namespace, _, self._component = name.partition("/")
        if not self._component or "/" in self._component:
            raise TransportError(f"{name!r} must be written NAMESPACE/COMPONENT", code="INVALID_ARGUMENT")
        self._handlers, self._servers = handlers, servers
        self._discovery = Discovery(store)
        self._zone, self._drain_seconds, self._response_transport = zone, drain_seconds, response_transport
        self._worker = dict(worker or {})
        self.homes = tuple(homes)
        """What calls home with answers, for its figures."""
        self.registrations: list[Registration] = []

    @property
    def addresses(self) -> dict[str, str]:
        """Where each transport is reached."""
        return {transport_id: server.address for transport_id, server in self._servers.items()}

    async def serve_forever(self) -> None:
        """Wait until the task is cancelled."""
        await asyncio.Event().wait()

    async def __aenter__(self) -> Self:
        for name, handler in self._handlers.items():
            self.endpoints.register(name, handler)
        try:
            for server in self._servers.values():
                await server.start()
            for name in self._handlers:
                self.registrations.append(await self._discovery.register(self._record(name)))
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def _stop(self) -> None:
        await self._discovery.close()
        await asyncio.gather(*(server.stop(drain_seconds=self._drain_seconds) for server in self._servers.values()))

    def _record(self, endpoint: str) -> Instance:
        return Instance(
            namespace=self._namespace,
            component=self._component,
            endpoint=endpoint,
            instance_id=self.instance_id,
            transports=tuple(
                TransportEndpoint(transport_id=transport_id, address=server.address, capabilities=_CAPABILITIES)
                for transport_id, server in self._servers.items()
            ),
            response_transport=self._response_transport,
            zone=self._zone,
            worker=self._worker,
        )


def serve(
    name: str,
    handlers: Mapping[str, Handler],
    *,
    store: str | KeyValueStore,
    transports: Sequence[str] = ("tcp",),
    host: str = "127.0.0.1",
    advertise: str | None = None,
    nats_server: str | None = None,
    answers_home: bool = False,
    zone: str | None = None,
    worker: Mapping[str, Any] | None = None,
    streams_max: int = 4096,
    drain_seconds: float = 30.0,
    settings: ServerSettings | None = None,
    guard: AccessGuard | None = None,
) -> ServedWorker:
    """Serve handlers under `NAMESPACE/COMPONENT`, each as an endpoint of its name.

    Args:
        name: namespace and component, `demo/backend`.
        handlers: what answers, by endpoint.
        store: where discovery is kept, a store or its URL.
        transports: ways in, the preferred one first: tcp, http, zmq, nats, grpc, ucx.
        host: address to bind.
        advertise: host that others reach it by; needed where `host` is a wildcard.
        nats_server: URL of the NATS server, where `nats` is a way in.
        answers_home: whether answers go home over TCP connections that this worker dials; with nats, http and tcp,
            which is then Dynamo's first one.
        zone: where this worker stands.
        worker: what routers are told of it besides, fields of `POST /workers` such as `events`.
        streams_max: requests worked on at a time.
        drain_seconds: how long what runs may take to finish at the end.
        settings: how servers are made besides; by default they have free ports.
        guard: who may ask, and how often; by default what `settings` say of that.

    Raises:
        TransportError: the name or a transport is not one; `INVALID_ARGUMENT`.
        SettingsError: a file that `settings` name cannot be read.
    """
    if guard is None and settings is not None:
        guard = settings.security.guard()
    endpoints = Endpoints(streams_max=streams_max, guard=guard)
    instance_id = secrets.randbits(53)
    subject = f"{name}-{instance_id:x}".replace("/", ".")
    options: dict[str, Any] = {
        "host": host, "advertise": advertise, "nats_server": nats_server, "subject": subject, "settings": settings,
    }  # fmt: skip
    servers, homes = _servers(transports, endpoints, answers_home=answers_home, **options)
    kept = open_key_value_store(store) if isinstance(store, str) else store
    return ServedWorker(
        name, handlers, servers,
        endpoints=endpoints, store=kept, instance_id=instance_id, zone=zone, drain_seconds=drain_seconds,
        response_transport=_CALL_HOME if answers_home else None, worker=worker, homes=homes,
    )  # fmt: skip


def _servers(
    transports: Sequence[str], endpoints: Endpoints, *, answers_home: bool, **options: Any
) -> tuple[dict[str, RequestServer], list[CallHomeWorker]]:
    """A server for each way in, and what calls home where answers do."""
    if not answers_home:
        return {each: make_server(each, endpoints, **options) for each in transports}, []
    made = {each: make_call_home_server(each, endpoints, **options) for each in transports}
    return {each: server for each, (server, _) in made.items()}, [home for _, home in made.values()]
