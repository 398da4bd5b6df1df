"""The server of HTTP/2 and what clients may do to it: any bytes, streams cancelled at once, bodies nobody reads."""

import asyncio
import random
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import h2.config
import h2.connection
import h2.errors
import pytest

from kvrouter.errors import DisconnectedError
from kvrouter.transport.context import Context
from kvrouter.transport.http_accepted import STREAMS_MAX
from kvrouter.transport.http_app import Application, HttpAppOptions
from kvrouter.transport.messages import Request, encode_request
from tests.transport.conformance import eventually, run
from tests.transport.test_http_faults import Plane, plane


def conversation(requests: int = 1, *, reset: bool = False) -> bytes:
    """What a client sends for some requests to `echo`."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    client.initiate_connection()
    for number in range(requests):
        stream_id = 2 * number + 1
        headers = {":method": "POST", ":path": "/v1/rpc/echo", ":scheme": "http", ":authority": "x"}
        client.send_headers(stream_id, [*headers.items(), ("accept", "text/event-stream")])
        if reset:
            client.reset_stream(stream_id, h2.errors.ErrorCodes.CANCEL)
        else:
            message = encode_request(Request(endpoint="echo", body=b"x"), id=f"r{number}", headers={})
            client.send_data(stream_id, message, end_stream=True)
    return client.data_to_send()


async def say(served: Plane, data: bytes) -> None:
    """Send bytes, read until the server has nothing more to say to them, and leave."""
    url = urlsplit(served.server.address)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    writer.write(data)
    writer.write_eof()
    try:
        while await reader.read(1 << 16):
            pass
    except OSError:
        pass
    writer.close()


@pytest.mark.parametrize("seed", range(5))
def test_damaged_conversations_are_survived(seed: int) -> None:
    """A-381: an error for that connection at most; nothing is held afterwards, and others are served."""
    choice, whole = random.Random(seed), conversation(3)

    async def scenario() -> None:
        async with plane(options=HttpAppOptions(attach_seconds=0.1)) as served:
            for _ in range(60):
                damaged = bytearray(whole)
                for _ in range(choice.randint(1, 6)):
                    damaged[choice.randrange(len(damaged))] = choice.randrange(256)
                await say(served, bytes(damaged[: choice.randint(1, len(damaged))]))
            await eventually(served.is_idle)
            assert await served.ask("echo", b"still here") == [b"still here"]

    run(scenario())


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"PRI * HTTP/2.0\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nGET /", b"nonsense\r\n\r\n"]
)
def test_what_is_no_http_is_survived(data: bytes) -> None:
    """Nothing, the beginning of something, anything else."""

    async def scenario() -> None:
        async with plane() as served:
            await say(served, data)
            assert await served.ask("echo", b"x") == [b"x"]

    run(scenario())


def test_streams_that_are_cancelled_at_once_do_not_pile_up() -> None:
    """A client that opens and cancels faster than work can end is sent away."""
    data = conversation(6 * STREAMS_MAX, reset=True)

    async def scenario() -> None:
        async with plane() as served:
            await say(served, data)
            await eventually(served.is_idle)
            assert await served.ask("echo", b"x") == [b"x"]

    run(scenario())


def test_items_that_nobody_reads_hold_up_their_sender() -> None:
    """A-212: windows are opened as the handler takes; a megabyte or two is on its way at most."""
    sent = 0

    async def items() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield bytes(16 << 10)

    async def scenario() -> None:
        async with plane() as served:
            request = Request(endpoint="hang", body=b"x", many_in=True, items=items())
            async with await served.client.request(served.server.address, request, Context()) as stream:
                assert await anext(stream) == b"x"
                seen = -1
                while seen != sent:
                    seen = sent
                    for _ in range(10):
                        await served.ask("echo", b"meanwhile")
                assert sent < 300
            await eventually(served.is_idle)

    run(scenario())


def test_an_application_that_fails_cancels_its_stream() -> None:
    """No response is left open; the connection goes on."""

    def failing(app: Application) -> Application:
        async def wrapped(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
            if scope["path"].endswith("count"):
                raise DisconnectedError("the application's own bug")
            await app(scope, receive, send)

        return wrapped

    async def scenario() -> None:
        heard: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, told: heard.append(str(told["message"])))
        async with plane(wrap=failing) as served:
            with pytest.raises(DisconnectedError, match="INTERNAL_ERROR"):
                await served.ask("count", b"3")
            assert await served.ask("echo", b"x") == [b"x"]
        await eventually(lambda: heard)

    run(scenario())
