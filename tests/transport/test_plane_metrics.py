"""The planes' metrics, read as Prometheus reads them (A-142 to A-144, A-163, A-251 to A-261)."""

import asyncio
import re
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.parser import text_string_to_metric_families

from kvrouter.discovery import Directory, Discovery
from kvrouter.errors import DeadlineError, HandlerError, RefusedError, UnreachableError, WireError
from kvrouter.store.memory_keys import MemoryKeyValueStore
from kvrouter.transport.asgi_metrics import HttpMetrics, InstrumentedApp, Message
from kvrouter.transport.callhome_client import CallHomeClient
from kvrouter.transport.callhome_listener import CallHomeListener
from kvrouter.transport.callhome_worker import CallHomeWorker
from kvrouter.transport.context import Context
from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.http_app import HttpApp, HttpAppOptions
from kvrouter.transport.messages import Request
from kvrouter.transport.metrics import InstrumentedClient, PlaneMetrics, PoolMetrics, WorkHandlerMetrics
from kvrouter.transport.plane_client import PlaneClient
from kvrouter.transport.pool import PoolSettings
from kvrouter.transport.registry import Registered, TransportRegistry
from kvrouter.transport.serve import serve
from kvrouter.transport.tcp_client import TcpRequestClient
from kvrouter.transport.tcp_server import TcpRequestServer
from kvrouter.transport.tcp_v0_acks import TcpV0Sender, TcpV0Server
from kvrouter.transport.zmq_client import ZmqRequestClient
from tests.transport.conformance import eventually, run
from tests.transport.handlers import Handlers

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "planes.md").read_text(encoding="utf-8")


class Scrapes:
    """A registry that is served, and its samples by name and values of labels."""

    def __init__(self, registry: CollectorRegistry, port: int) -> None:
        self.registry, self._port = registry, port

    def read(self) -> dict[tuple[str, ...], float]:
        """What is told now."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        return {
            (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def families(self) -> set[tuple[str, str, tuple[str, ...]]]:
        """Name, kind and labels of each family that has samples."""
        found = set()
        for family in self.registry.collect():
            names = {name for sample in family.samples for name in sample.labels} - {"le"}
            suffix = "_total" if family.type == "counter" else ""
            found.add((family.name + suffix, family.type, tuple(sorted(names))))
        return found


@pytest.fixture
def scrapes() -> Iterator[Scrapes]:
    """A registry of its own, served at /metrics (A-261)."""
    registry = CollectorRegistry()
    server, thread = start_http_server(0, addr="127.0.0.1", registry=registry)
    yield Scrapes(registry, server.server_port)
    server.shutdown()
    server.server_close()
    thread.join(30)


@asynccontextmanager
async def tcp_plane(scrapes: Scrapes) -> AsyncIterator[tuple[TcpRequestServer, InstrumentedClient, Handlers]]:
    """A worker and a client over TCP, both counted."""
    endpoints, handlers, work = Endpoints(), Handlers(), WorkHandlerMetrics(scrapes.registry)
    for name in ("echo", "fail_before", "fail_after", "hang", "upper"):
        endpoints.register(name, work.handler(name, getattr(handlers, name)))
    server = TcpRequestServer(endpoints)
    client = PlaneMetrics(scrapes.registry).client(TcpRequestClient(), "tcp")
    await server.start()
    try:
        yield server, client, handlers
    finally:
        await client.aclose()
        await server.stop()


async def ask(client: InstrumentedClient, address: str, endpoint: str, body: bytes = b"") -> list[bytes]:
    """The items of one answer."""
    async with await client.request(address, Request(endpoint=endpoint, body=body), Context()) as stream:
        return await stream.collect()


def test_requests_and_answers_are_counted_by_transport_and_plane(scrapes: Scrapes) -> None:
    """A-163, A-257, A-258, A-260, A-261: while they run and when they have ended."""

    async def scenario() -> None:
        async with tcp_plane(scrapes) as (server, client, handlers):
            assert await ask(client, server.address, "echo", b"12345") == [b"12345"]
            open_one = await client.request(server.address, Request(endpoint="hang", body=b"x"), Context())
            assert await anext(open_one) == b"x"
            during = await asyncio.to_thread(scrapes.read)
            assert during["transport_active_streams", "response", "tcp"] == 1
            assert during["work_handler_inflight_requests", "hang"] == 1
            handlers.release.set()
            assert await open_one.collect() == [b"released"]

            # The last of it is told a turn of the loop after the last item.
            await eventually(lambda: client_is_idle(scrapes))
            after = await asyncio.to_thread(scrapes.read)
            for plane in ("request", "response"):
                assert after["transport_requests_total", plane, "tcp"] == 2
                assert after["transport_request_latency_seconds_count", plane, "tcp"] == 2
                assert after["transport_active_streams", plane, "tcp"] == 0
            assert after["work_handler_requests_total", "echo"] == 1
            assert after["work_handler_request_bytes_total", "echo"] == 5
            assert after["work_handler_response_bytes_total", "hang"] == 9
            assert after["work_handler_request_duration_seconds_count", "hang"] == 1
            assert after["work_handler_inflight_requests", "hang"] == 0

    run(scenario())


def client_is_idle(scrapes: Scrapes) -> bool:
    """Whether nothing is open on either side."""
    names = {"transport_active_streams", "work_handler_inflight_requests"}
    return not any(
        sample.value for family in scrapes.registry.collect() for sample in family.samples if sample.name in names
    )


def test_failures_of_transports_are_counted_by_kind(scrapes: Scrapes) -> None:
    """A-259: a deadline, nobody there, headers that are too long; a refusal and a failing handler are none."""

    async def scenario() -> None:
        async with tcp_plane(scrapes) as (server, client, _):
            with pytest.raises(UnreachableError):
                await ask(client, "127.0.0.1:1", "echo")
            with pytest.raises(WireError):
                await client.request(server.address, Request(endpoint="echo"), Context(headers={"x": "y" * 99_999}))
            deadline = asyncio.get_running_loop().time() + 0.5
            with pytest.raises(DeadlineError):
                async with await client.request(
                    server.address, Request(endpoint="hang"), Context(deadline=deadline)
                ) as stream:
                    await stream.collect()
            with pytest.raises(RefusedError):
                await ask(client, server.address, "nonsense")
            for endpoint in ("fail_before", "fail_after"):
                with pytest.raises(HandlerError):
                    await ask(client, server.address, endpoint)

            read = await asyncio.to_thread(scrapes.read)
            assert {key[1:]: value for key, value in read.items() if key[0] == "transport_errors_total"} == {
                ("connection", "tcp"): 1,
                ("protocol", "tcp"): 1,
                ("timeout", "tcp"): 1,
            }
            assert read["work_handler_errors_total", "generate"] == 2

    run(scenario())


def test_a_request_with_items_of_its_own_is_counted_too(scrapes: Scrapes) -> None:
    """The handler reads them as it would without."""

    async def words() -> AsyncIterator[bytes]:
        yield b"one"
        yield b"two"

    async def scenario() -> None:
        async with tcp_plane(scrapes) as (server, client, _):
            request = Request(endpoint="upper", many_in=True, items=words())
            async with await client.request(server.address, request, Context()) as stream:
                assert await stream.collect() == [b"ONE", b"TWO"]
            assert (await asyncio.to_thread(scrapes.read))["work_handler_response_bytes_total", "upper"] == 6

    run(scenario())


def test_a_pool_and_what_goes_over_it_are_counted(scrapes: Scrapes) -> None:
    """A-251 to A-256, A-271: by target; requests and answers are two transports, what cannot be read is an error."""

    async def scenario() -> None:
        endpoints, handlers = Endpoints(), Handlers()
        work = WorkHandlerMetrics(scrapes.registry)
        endpoints.register("echo", work.handler("echo", handlers.echo))
        worker = CallHomeWorker(endpoints, pool=PoolSettings(idle_min=0))
        PoolMetrics(scrapes.registry).pool(worker.pool)
        work.call_home(worker)
        server, listener = TcpV0Server(worker), CallHomeListener()
        inner = CallHomeClient(TcpV0Sender(ack_seconds=30.0), listener)
        client = PlaneMetrics(scrapes.registry).client(inner, "nats", response="tcp")
        await server.start()
        for _ in range(3):
            assert await ask(client, server.address, "echo", b"x") == [b"x"]
            await eventually(lambda: worker.pool.idle(listener.address) == 1)
        with pytest.raises(RefusedError):
            worker.accept(b"nonsense")

        read, target = await asyncio.to_thread(scrapes.read), listener.address
        assert read["tcp_pool_connections_created_total", target] == 1
        assert read["tcp_pool_connections_reused_total", target] == 2
        assert read["tcp_pool_validation_failures_total", target] == 0
        assert read["tcp_pool_active_connections", target] == 0
        assert read["tcp_pool_idle_connections", target] == 1
        assert read["tcp_pool_acquisition_latency_seconds_count", target] == 3
        assert read["transport_requests_total", "request", "nats"] == 3
        assert read["transport_requests_total", "response", "tcp"] == 3
        assert read["work_handler_errors_total", "invalid_message"] == 1
        assert read["work_handler_errors_total", "response_stream"] == 0
        await client.aclose()
        await server.stop()

    run(scenario())


def test_a_second_transport_can_be_tried_by_a_few_clients_first(scrapes: Scrapes) -> None:
    """A-272, A-273, A-282: one worker, two ways in; who prefers which is the client's, and both are compared."""

    async def echo(request: Request, context: Context) -> AsyncIterator[bytes]:
        yield bytes(request.body)

    async def scenario() -> None:
        store, metrics = MemoryKeyValueStore(), PlaneMetrics(scrapes.registry)
        tcp, zmq = metrics.client(TcpRequestClient(), "tcp"), metrics.client(ZmqRequestClient(), "zmq")
        directory = Directory(Discovery(store), "demo", "backend", "echo")
        async with serve("demo/backend", {"echo": echo}, store=store, transports=("tcp", "zmq")):
            await directory.start()
            for zmq_priority, requests in ((200, 3), (10, 1)):  # three of the old kind, one that tries the new one
                registry = TransportRegistry()
                registry.register(Registered(transport_id="tcp", priority=100, client=tcp))
                registry.register(Registered(transport_id="zmq", priority=zmq_priority, client=zmq))
                client = PlaneClient(directory, registry)
                for _ in range(requests):
                    assert [item async for item in client.items(Request(endpoint="echo", body=b"x"))] == [b"x"]
            await directory.close()
            await tcp.aclose()
            await zmq.aclose()

        read = await asyncio.to_thread(scrapes.read)
        for transport, requests in (("tcp", 3), ("zmq", 1)):
            assert read["transport_requests_total", "request", transport] == requests
            assert read["transport_request_latency_seconds_count", "request", transport] == requests
        assert not any(key[0] == "transport_errors_total" for key in read)

    run(scenario())


def test_http_requests_are_counted(scrapes: Scrapes) -> None:
    """A-142 to A-144, A-146, A-261: by method, route and status; paths that nobody serves are one label."""

    async def scenario() -> None:
        app = HttpApp(Endpoints(), HttpAppOptions())
        counted = InstrumentedApp(app, HttpMetrics(scrapes.registry), routes=["/v1/rpc", "/v1/rpc/response"])
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=counted), base_url="http://worker") as client:
            healthy = await client.get("/v1/rpc/health")
            await client.post("/v1/rpc/echo", content=b"no two-part message")
            await client.get("/v1/rpc/response/nobody")
            await client.request("BREW", "/tea")

        read = await asyncio.to_thread(scrapes.read)
        requests = {key[1:]: value for key, value in read.items() if key[0] == "http_requests_total"}
        assert requests["200", "GET", "/v1/rpc"] == 1
        assert requests["400", "POST", "/v1/rpc"] == 1
        assert requests["404", "GET", "/v1/rpc/response"] == 1
        assert {key[1:] for key in requests if key[2] == "other"} == {("other", "other")}
        assert read["http_request_bytes_total", "/v1/rpc"] == len(b"no two-part message")
        assert read["http_response_bytes_total", "/v1/rpc"] > len(healthy.content)
        assert read["http_request_duration_seconds_count", "other"] == 1
        assert read[("http_inflight_requests",)] == 0

    run(scenario())


def test_a_client_that_goes_and_an_application_that_fails_have_a_code(scrapes: Scrapes) -> None:
    """499 and 500; and what is no request passes uncounted."""

    async def application(scope: Message, receive: object, send: object) -> None:
        if scope["path"] == "/gone":
            raise asyncio.CancelledError
        if scope["path"] == "/broken":
            raise ValueError("broken")

    async def nothing() -> Message:
        return {}

    async def unsaid(message: Message) -> None:
        raise AssertionError(message)

    async def scenario() -> None:
        counted = InstrumentedApp(application, HttpMetrics(scrapes.registry), routes=[])
        await counted({"type": "lifespan", "path": "/"}, nothing, unsaid)
        for path, error in (("/gone", asyncio.CancelledError), ("/broken", ValueError)):
            with pytest.raises(error):
                await counted({"type": "http", "path": path, "method": "GET"}, nothing, unsaid)

        read = await asyncio.to_thread(scrapes.read)
        assert {key[1] for key in read if key[0] == "http_requests_total"} == {"499", "500"}

    run(scenario())


def test_the_metrics_of_the_page_are_those_that_there_are(scrapes: Scrapes) -> None:
    """A-115: name, kind and labels of each."""

    async def scenario() -> None:
        async with tcp_plane(scrapes) as (server, client, _):
            await ask(client, server.address, "echo")
            with pytest.raises(UnreachableError):
                await ask(client, "127.0.0.1:1", "echo")
        metrics = HttpMetrics(scrapes.registry)
        counted = InstrumentedApp(HttpApp(Endpoints(), HttpAppOptions()), metrics, routes=[])
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=counted), base_url="http://worker") as http:
            await http.get("/v1/rpc/health")
        pools = PoolMetrics(scrapes.registry)
        worker = CallHomeWorker(Endpoints())
        pools.pool(worker.pool)
        with pytest.raises(UnreachableError):
            await worker.pool.acquire("127.0.0.1:1", seconds=30)
        worker.pool.observe("127.0.0.1:1", 0.1)

    run(scenario())
    table = PAGE.partition("\n## Metrics\n")[2].partition("\n| name |")[2].partition("\n\n")[0].splitlines()[2:]
    stated = {
        (name.strip().strip("`"), kind.strip(), tuple(sorted(re.findall(r"`(\w+)`", labels))))
        for _, name, kind, labels, *_ in (line.split("|") for line in table)
    }
    assert stated == {family for family in scrapes.families() if not family[0].endswith("_created")}
