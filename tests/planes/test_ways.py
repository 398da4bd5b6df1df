"""The transports of a router: made when they are needed, preferred as told, and missing in words."""

import asyncio
import sys
from collections.abc import AsyncIterator, Coroutine
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from kvrouter.discovery import Discovery, Instance, TransportEndpoint
from kvrouter.discovery.metrics import DiscoveryMetrics
from kvrouter.errors import (
    DeadlineError,
    DisconnectedError,
    HandlerError,
    MissingExtraError,
    NoInstancesError,
    ProtocolError,
    RefusedError,
    StoreError,
    TransportError,
    UnreachableError,
)
from kvrouter.service.planes.connection import PlaneConnection, upstream_error
from kvrouter.service.planes.discovered import DiscoveredWorkers
from kvrouter.service.planes.figures import PlaneFigures
from kvrouter.service.planes.ways import PlaneChoices, Ways, home_listener
from kvrouter.service.proxy import Endpoint, UpstreamError
from kvrouter.store.key_values import Change, KeyValueBucket, Synced
from kvrouter.store.memory_keys import MemoryKeyValueStore
from kvrouter.transport.client_stream import ClientStream
from kvrouter.transport.context import Context
from kvrouter.transport.http_settings import HttpPlaneSettings
from kvrouter.transport.messages import Request
from kvrouter.transport.metrics import PlaneMetrics
from kvrouter.transport.plane_settings import CallHomeSettings, PlaneSettings, RequestPlane, TcpPlaneSettings
from kvrouter.transport.registry import NoTransportError
from kvrouter.transport.tls import PlaneTls
from tests.planes.inprocess import Words, eventually, routed, run, worker
from tests.service.inprocess import InProcess

INSTANCE = Instance(
    namespace="n", component="c", endpoint="e", instance_id=1,
    transports=(TransportEndpoint(transport_id="http", address="http://127.0.0.1:1/v1/rpc"),),
)  # fmt: skip


def choices(preferred: RequestPlane = "tcp", *, host: str = "127.0.0.1", home: str = "") -> PlaneChoices:
    """What a router that listens on `host` is told."""
    return PlaneChoices(
        preferred=preferred, nats_server="", host=host, connect_seconds=1.0,
        planes=PlaneSettings(call_home=CallHomeSettings(host=home)), http=HttpPlaneSettings(),
    )  # fmt: skip


def ways(preferred: RequestPlane = "tcp") -> Ways:
    """The transports of a router."""
    return Ways(choices(preferred), PlaneMetrics(CollectorRegistry()))


def order(of: Ways) -> list[str]:
    """Ids in the order in which they are taken."""
    return [each.transport_id for each in of.registry.transports()]


def test_the_preferred_plane_goes_first_and_the_others_have_an_order() -> None:
    """A-226, A-228: whoever calls home is the same plane; preferring another one turns the order, not the rest."""
    found = ways("http")

    assert order(found) == ["http", "http+tcp", "tcp", "tcp+tcp", "nats", "nats+tcp", "zmq", "grpc"]
    found.prefer("grpc")
    assert order(found)[:3] == ["grpc", "tcp", "tcp+tcp"]


def test_a_missing_part_is_said_once_at_the_start_or_leads_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A-227, A-232: the preferred plane must be there; another one is one that this router has not."""
    for name in ("client", "connection", "origins"):
        monkeypatch.delitem(sys.modules, f"kvrouter.transport.http_{name}", raising=False)
    for name in ("kvrouter.transport.http2", "h2.config", "h2.connection", "h2.events", "h2.exceptions", "h2.settings"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "h2", None)
    with pytest.raises(MissingExtraError, match=r"kvrouter\[http2\]"):
        ways("http").ready()

    async def scenario() -> None:
        found = ways("tcp")
        found.ready()
        with pytest.raises(NoTransportError, match=r"kvrouter\[http2\]"):
            await found.instances.request(INSTANCE, Request(endpoint="e"), Context())
        await found.close()

    run(scenario())


def test_a_way_that_lacks_a_file_is_none_and_the_next_one_is_taken(tmp_path: Path) -> None:
    """A file that somebody has taken away fails the ways that need it, and says which it was."""
    tcp = TcpPlaneSettings(tls=PlaneTls(ca_path=str(tmp_path / "gone.pem")))
    over_tcp = TransportEndpoint(transport_id="tcp", address="127.0.0.1:1")

    async def ask(found: Ways, *transports: TransportEndpoint) -> None:
        instance = msgspec.structs.replace(INSTANCE, transports=transports)
        await found.instances.request(instance, Request(endpoint="e"), Context())

    async def scenario() -> None:
        found = Ways(replace(choices(), planes=PlaneSettings(tcp=tcp)), PlaneMetrics(CollectorRegistry()))
        with pytest.raises(NoTransportError, match=r"gone\.pem"):
            await ask(found, over_tcp)
        with pytest.raises(UnreachableError, match=r"127\.0\.0\.1"):
            await ask(found, over_tcp, *INSTANCE.transports)
        await found.close()

    run(scenario())


@pytest.mark.parametrize(
    ("host", "home"), [("0.0.0.0", ""), ("127.0.0.1", ""), ("localhost", ""), ("10.255.255.1", "0.0.0.0")]
)
def test_answers_are_called_home_to_an_address_that_others_reach(host: str, home: str) -> None:
    """B.4: one of this machine's own where it listens on every address; the environment's word goes first."""

    async def scenario() -> None:
        listener = home_listener(choices(host=host, home=home))
        await listener.start()
        address = ip_address(listener.address.rpartition(":")[0])
        await listener.close()
        assert not address.is_unspecified
        assert address.is_loopback or "0.0.0.0" in (host, home)

    run(scenario())


class Refusing(MemoryKeyValueStore):
    """A store that says no to whoever follows it, as long as the test likes."""

    def __init__(self) -> None:
        super().__init__()
        self.refuses = True
        self.asked = 0

    def bucket(self, name: str) -> Any:
        return _RefusingBucket(super().bucket(name), self)


class _RefusingBucket:
    def __init__(self, bucket: KeyValueBucket, store: Refusing) -> None:
        self._bucket, self._store = bucket, store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bucket, name)

    async def watch(self, prefix: str = "") -> AsyncIterator[Change | Synced]:
        self._store.asked += 1
        async for each in self._bucket.watch(prefix):
            if self._store.refuses:
                raise StoreError("not with these rights", reason="unsupported")
            yield each


def test_a_store_that_says_no_is_told_and_asked_again() -> None:
    """A-135: what was known stands meanwhile, and what went in between is gone afterwards."""

    async def scenario() -> None:
        store, service = Refusing(), InProcess().service
        discovery = Discovery(store)
        discovered = DiscoveredWorkers(
            service.registry, discovery, ("n", "c", "e"),
            endpoint_of=lambda key, instance: Endpoint("", 0, host_header=b"worker"),
            gone=lambda instance: None, metrics=DiscoveryMetrics(CollectorRegistry()), clock=service.clock,
            retry_seconds=0.01,
        )  # fmt: skip
        first, second = [
            await discovery.register(msgspec.structs.replace(INSTANCE, instance_id=number)) for number in (1, 2)
        ]
        following = asyncio.create_task(discovered.run())
        await eventually(lambda: discovered.last_error == "not with these rights")
        assert not len(service.registry)
        store.refuses = False
        await eventually(lambda: len(service.registry) == 2)
        assert discovered.last_error is None

        store.refuses = True
        second.set_health("degraded")  # news, on which the store says no again
        await eventually(lambda: discovered.last_error)
        await first.close()
        assert len(service.registry) == 2
        store.refuses = False
        await eventually(lambda: len(service.registry) == 1)
        following.cancel()
        await discovery.close()

    run(scenario())


def test_a_record_whose_worker_has_another_name_is_another_worker(tmp_path: Path) -> None:
    """A-222: the old one goes, with what was known of it; a record that cannot be read any more goes too."""

    async def scenario() -> None:
        async with worker(tmp_path, Words("a"), worker={"id": "first"}) as served, routed(tmp_path) as router:
            await router.ready()
            [registration] = served.registrations
            told = dict(registration.instance.worker)
            told["id"] = "second"
            registration.instance = type(registration.instance)(
                **{name: getattr(registration.instance, name) for name in registration.instance.__struct_fields__}
                | {"worker": told}
            )
            registration.set_health("healthy")
            await eventually(lambda: [each.spec.worker_id for each in router.service.registry] == ["second"])
            await router.ready()
            assert await router.said() == "a hello"

    run(scenario())


class Faulty:
    """A caller with a bug (`Caller`)."""

    endpoint, overload_status = "e", 503

    def __init__(self) -> None:
        self.figures = PlaneFigures(CollectorRegistry())
        self.tasks: list[asyncio.Task[None]] = []

    async def call(self, request: Request, context: Context) -> ClientStream:
        raise ZeroDivisionError

    def spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        self.tasks.append(asyncio.create_task(work))
        return self.tasks[-1]


class Told:
    """The consumer of an answer (`ResponseConsumer`)."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def response_data(self, data: bytes) -> None:
        raise AssertionError(data)

    def response_ended(self, error: Exception | None) -> None:
        self.error = error


def test_an_exchange_that_fails_by_a_bug_ends_at_once() -> None:
    """A-210: the client is told and need not wait; whoever runs the exchange gets the bug."""

    async def scenario() -> None:
        caller, told = Faulty(), Told()
        connection = PlaneConnection(caller)
        connection.consumer = told
        connection.send(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        [bug] = await asyncio.gather(*caller.tasks, return_exceptions=True)
        assert isinstance(bug, ZeroDivisionError)
        assert isinstance(told.error, UpstreamError)
        assert told.error.outcome == "bad_response"

    run(scenario())


def test_a_router_that_closes_ends_what_is_under_way(tmp_path: Path) -> None:
    """A-307: handlers are not left to work for nobody."""

    async def scenario() -> None:
        words = Words("a")
        async with worker(tmp_path, words) as served:
            async with routed(tmp_path) as router:
                await router.ready()
                asking = asyncio.create_task(router.chat("wait", stream=True))
                await eventually(lambda: words.asked)
                assert router.service.planes is not None
                await router.service.planes.close()
                await eventually(lambda: words.cancelled == 1)
                asking.cancel()
            assert not len(served.endpoints)

    run(scenario())


def test_an_endpoint_of_a_plane_needs_no_address() -> None:
    """A-116: what it is reached by is the pool's only question."""
    endpoint = Endpoint("", 0, host_header=b"worker")
    assert (endpoint.open, endpoint.host_header) == (None, b"worker")


@pytest.mark.parametrize(
    ("error", "outcome", "status"),
    [
        (RefusedError("busy", code="RESOURCE_EXHAUSTED", retry_after_seconds=1.2), "saturated", 529),
        (HandlerError("busy", code="RESOURCE_EXHAUSTED"), "saturated", 529),
        (RefusedError("draining", code="UNAVAILABLE"), "saturated", None),
        (RefusedError("no such endpoint", code="NOT_FOUND"), "connect_failed", None),
        (RefusedError("who are you", code="UNAUTHENTICATED"), "connect_failed", None),
        (RefusedError("taken before", code="ALREADY_EXISTS"), "upstream_lost", None),
        (UnreachableError("refused"), "connect_failed", None),
        (NoInstancesError("nobody listens"), "connect_failed", None),
        (NoTransportError("none in common"), "connect_failed", None),
        (DisconnectedError("lost"), "upstream_lost", None),
        (DeadlineError("late"), "timeout", None),
        (HandlerError("failed"), "error_status", None),
        (ProtocolError("nonsense"), "bad_response", None),
    ],
)
def test_how_a_call_failed_is_said_in_the_data_planes_words(
    error: TransportError, outcome: str, status: int | None
) -> None:
    """A-210: which decide whether others are asked, and what a worker is blamed for."""
    told = upstream_error(error, overload_status=529)

    assert (told.outcome, told.status, str(told)) == (outcome, status, str(error))
    assert told.retry_after_seconds == (2 if getattr(error, "retry_after_seconds", None) else 1)
