"""Ten thousand requests that nobody waits for to their end, over every transport: no socket, task or stream is left.

`ABORTED_REQUESTS=1000000` tries as many as that.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator

import pytest

from kvrouter.errors import TransportError
from kvrouter.transport.client_stream import ClientStream
from kvrouter.transport.context import Context
from kvrouter.transport.messages import Request
from tests.faults.plane_scenes import Held, PlaneScene, on_plane
from tests.servers import NatsServer, nats_server
from tests.transport.conformance import eventually

SHARES = {"tcp": 58, "call-home": 10, "http": 6, "http-attached": 2, "nats": 12, "zmq": 10, "grpc": 2}
"""Of a hundred requests; they cost differently much."""
REQUESTS = int(os.environ.get("ABORTED_REQUESTS", "10000"))
AT_A_TIME = 25
WAYS = ("before it is taken", "at once", "after an item", "in a flood", "by a kill", "by its deadline", "upwards")
UNFETCHED = ("before it is taken", "by its deadline")


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """A nats-server; subjects keep the tests apart."""
    with nats_server(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest.mark.parametrize("transport", SHARES)
def test_aborted_requests_leave_nothing(transport: str, nats: NatsServer) -> None:
    """A-275: whenever and however they are aborted, while others go on; and the worker serves as before."""

    async def scenario(scene: PlaneScene) -> None:
        await _abort_some(scene, transport, AT_A_TIME)
        assert await scene.ask("echo", b"x") == [b"x"]
        await eventually(lambda: not len(scene.endpoints))
        before = Held()
        await _abort_some(scene, transport, REQUESTS * SHARES[transport] // 100)
        assert await scene.ask("echo", b"still here") == [b"still here"]
        await eventually(lambda: not len(scene.endpoints))
        await before.settled()

    on_plane(transport, scenario, nats=nats.url, networked=False)


async def _abort_some(scene: PlaneScene, transport: str, requests: int) -> None:
    # A worker keeps answers that may still be fetched for ten seconds; test_http_faults.py waits for that.
    ways = WAYS if transport != "http-attached" else [way for way in WAYS if way not in UNFETCHED]
    for first in range(0, requests, AT_A_TIME):
        numbers = range(first, min(first + AT_A_TIME, requests))
        await asyncio.gather(*(_abort(scene, transport, ways[number % len(ways)]) for number in numbers))


async def _abort(scene: PlaneScene, transport: str, way: str) -> None:
    """One request that does not come to its end."""
    upwards = way == "upwards" and transport != "http-attached"  # whose second request has no way for items
    request = Request(
        endpoint="flood" if way == "in a flood" else "hang",
        body=b"1000000",
        many_in=upwards,
        items=_endless() if upwards else Request(endpoint="").items,
    )
    deadline = asyncio.get_running_loop().time() + 0.002 if way == "by its deadline" else None
    context = Context(deadline=deadline)
    asking = asyncio.create_task(scene.client.request(scene.address, request, context))
    if way == "before it is taken":
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        return
    if way in ("by a kill", "by its deadline"):
        with pytest.raises(TransportError) as ended:
            await _killed(asking, context if way == "by a kill" else None)
        assert ended.value.code in ("CANCELLED", "DEADLINE_EXCEEDED")
        return
    stream = await asking
    if way != "at once":
        await anext(stream)
    await stream.aclose()


async def _killed(asking: "asyncio.Task[ClientStream]", context: Context | None) -> None:
    """Read to the end of a request that has none; with a context, kill it once it was taken."""
    stream = await asking
    if context is not None:
        context.kill()
    await stream.collect()


async def _endless() -> AsyncIterator[bytes]:
    """Items as fast as they are taken."""
    while True:
        yield bytes(1024)
