"""What the workers of these tests serve: one small handler for each thing that a transport must carry."""

import asyncio
import json
from collections.abc import AsyncIterator

from kvrouter.errors import TransportError
from kvrouter.transport.context import Context
from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.messages import Request

__all__ = ["Handlers"]


class Handlers:
    """The handlers and what they saw, by request id."""

    def __init__(self) -> None:
        self.stopped: list[str] = []
        self.cancelled: list[str] = []
        self.produced = 0
        self.release = asyncio.Event()

    def register(self, endpoints: Endpoints) -> None:
        """Serve them all."""
        for name in (
            "echo",
            "count",
            "upper",
            "headers",
            "fail_before",
            "fail_after",
            "until_stopped",
            "hang",
            "flood",
        ):
            endpoints.register(name, getattr(self, name))

    async def echo(self, request: Request, context: Context) -> AsyncIterator[bytes]:
        """The body, as one item."""
        yield bytes(request.body)

    async def count(self, request: Request, context: Context) -> AsyncIterator[bytes]:
        """The numbers up to that in the body."""
        for number in range(int(bytes(request.body))):
            yield b"%d" % number

    async def upper(self, request: Request, context: Context) -> AsyncIterator[bytes]:
        """Each further item in capitals, as soon as it comes."""
        async for item in request.items:
            yield item.upper()

    async def headers(self, request: Request, context: Context) -> AsyncIterator[bytes]:
        """What came with the request."""
        told = {
            "id": context.id,
            "headers": dict(context.headers),
            "codec": request.codec,
            "meta": dict(request.metadata),
        }
        yield json.dumps(told).encode()

    async def fail_before(self, request: Request, context: Context) -> AsyncIterator[bytes]:
        """Fails at once, with an error of ours or with another's."""
        if bytes(request.body) == b"typed":
            raise TransportError("no such model", code="NOT_FOUND")
        raise ValueError("a secret")

    async def fail_after(self, request: Request, context: Context) -> AsyncIterator[bytes]:
        """Fails after two items."""
        yield b"one"
        yield b"two"
        raise TransportError("out of memory", code="RESOURCE_EXHAUSTED")

    async def until_stopped(self, request: Request, context: Context) -> AsyncIterator[bytes]:
        """An item, then nothing until it is asked to stop, then a last one."""
        yield b"first"
        await context.until_stopped()
        self.stopped.append(context.id)
        yield b"last"

    async def hang(self, request: Request, context: Context) -> AsyncIterator[bytes]:
        """An item if there is a body, then nothing until `release`."""
        try:
            if request.body:
                yield bytes(request.body)
            await self.release.wait()
            yield b"released"
        except asyncio.CancelledError:
            self.cancelled.append(context.id)
            raise

    async def flood(self, request: Request, context: Context) -> AsyncIterator[bytes]:
        """As many items of 16 KiB as the body says, as fast as they are taken."""
        item = bytes(16 << 10)
        for _ in range(int(bytes(request.body))):
            self.produced += 1
            yield item
