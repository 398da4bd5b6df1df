"""Connections to NATS outlive what a server refuses: it may say no today and yes tomorrow."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from kvrouter.errors import UnauthenticatedError
from kvrouter.transport.nats_connecting import connect_nats
from tests.servers import NatsServer, nats_server

WAIT_SECONDS = 60.0
KNOWN = "authorization { token: secret }"
UNKNOWN = "authorization { token: another }"


class Heard:
    """What comes on the subject `subject`."""

    def __init__(self) -> None:
        self._messages = 0

    async def take(self, _: Msg) -> None:
        """Count a message."""
        self._messages += 1

    async def something(self, client: Client) -> None:
        """Publish until it is heard: what is sent while the connection is lost may be lost with it."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not self._messages:
            assert time.monotonic() < deadline, "nothing was ever heard"
            if client.is_connected:
                await client.publish("subject", b"")
            await asyncio.sleep(0.05)


async def until(question: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not question():
        assert time.monotonic() < deadline, "it never came to be"
        await asyncio.sleep(0.02)


async def again(server: NatsServer, configuration: str) -> None:
    """Have the server start anew with another configuration."""
    server.kill()
    server.configuration = configuration
    await asyncio.to_thread(server.start)


def test_a_server_that_did_not_know_us_for_a_while_is_come_back_to(tmp_path: Path) -> None:
    """As while tokens are changed: the first connection fails at once, one that was there is made again."""

    async def scenario(server: NatsServer) -> None:
        url = server.url.replace("//", "//secret@")
        client = await connect_nats(url, None)
        heard = Heard()
        await client.subscribe("subject", cb=heard.take)
        await again(server, UNKNOWN)
        with pytest.raises(UnauthenticatedError):
            await connect_nats(url, None)
        refused = server.log.read_text().count("authentication error")
        await until(lambda: server.log.read_text().count("authentication error") > refused)

        await again(server, KNOWN)
        await heard.something(client)
        await client.close()

    with nats_server(tmp_path, configuration=KNOWN) as server:
        asyncio.run(scenario(server))


def test_a_server_that_refused_something_is_come_back_to(tmp_path: Path) -> None:
    """What it says no to costs the connection, and no more than that."""

    async def scenario(server: NatsServer) -> None:
        lost = asyncio.Event()

        async def disconnected() -> None:
            lost.set()

        client = await connect_nats(server.url, None, disconnected=disconnected)
        heard = Heard()
        await client.subscribe("subject", cb=heard.take)
        too_many = await client.subscribe("other")
        await until(lost.is_set)
        await too_many.unsubscribe()
        await heard.something(client)
        await client.close()

    with nats_server(tmp_path, configuration="max_subscriptions: 1") as server:
        asyncio.run(scenario(server))
