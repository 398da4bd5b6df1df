"""What tests of the HTTP request plane stand on: a worker, and a plain client of HTTP/1.1 as any program is one."""

import asyncio
import http.client
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from kvrouter.transport.access import AccessGuard
from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.http_server import HttpRequestServer
from kvrouter.transport.messages import Request, encode_request
from kvrouter.transport.two_part import decode_two_part, encode_two_part
from tests.transport.conformance import eventually, run
from tests.transport.handlers import Handlers

SSE = "text/event-stream"


@dataclass
class Reply:
    """What a plain client got."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class Worker:
    """A server, and a client of HTTP/1.1 as any other program is one."""

    server: HttpRequestServer
    endpoints: Endpoints
    handlers: Handlers = field(default_factory=Handlers)

    async def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> Reply:
        """One request on a connection of its own."""
        return await asyncio.to_thread(self._ask, method, path, body, headers)

    def open(self, method: str, path: str, body: bytes = b"", **headers: str) -> http.client.HTTPConnection:
        """Send a request and leave the connection open."""
        connection = http.client.HTTPConnection(urlsplit(self.server.address).netloc, timeout=60)
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        return connection

    def _ask(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> Reply:
        connection = self.open(method, path, body, **headers)
        response = connection.getresponse()
        reply = Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        connection.close()
        return reply


def scene(scenario: Callable[[Worker], Coroutine[Any, Any, None]], *, streams_max: int = 100, **options: Any) -> None:
    """Run a scenario on a worker."""

    async def whole() -> None:
        async with worker(streams_max=streams_max, **options) as served:
            await scenario(served)
            served.handlers.release.set()
            await eventually(lambda: not len(served.endpoints) and not len(served.server.app))

    run(whole())


@asynccontextmanager
async def worker(*, streams_max: int = 100, guard: AccessGuard | None = None, **options: Any) -> AsyncIterator[Worker]:
    """A started worker with the handlers of the conformance suite."""
    endpoints, handlers = Endpoints(streams_max=streams_max, guard=guard), Handlers()
    handlers.register(endpoints)
    server = HttpRequestServer(endpoints, **options)
    await server.start()
    try:
        yield Worker(server, endpoints, handlers)
    finally:
        await server.stop()


def message(endpoint: str = "echo", body: bytes = b'{"a":1}', name: str = "r", **control: Any) -> bytes:
    """A request in JSON as two-part message; `connection_info` and other members as given."""
    encoded = encode_request(Request(endpoint=endpoint, body=body, codec="json"), id=name, headers={})
    header, rest = decode_two_part(encoded)
    return encode_two_part(json.dumps(json.loads(bytes(header)) | control).encode(), rest)


def attached(subject: str) -> dict[str, Any]:
    """Asks for an answer that is fetched."""
    return {"connection_info": {"transport": "http_response", "info": json.dumps({"subject": subject})}}
