"""The server inside our event loop."""

import asyncio
import socket

import pytest
from starlette.types import Receive, Scope, Send

from kvrouter.service.embedded import EmbeddedServer


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer nothing; nobody asks."""


def test_who_waits_for_a_server_that_cannot_begin_waits_in_vain_but_not_for_ever() -> None:
    """Its task ends with the reason."""

    async def scenario() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        server = EmbeddedServer(application, listener=listener)
        listener.close()
        serving = asyncio.create_task(server.run())

        await asyncio.wait_for(server.started(), 30)

        assert serving.done()
        with pytest.raises(OSError, match="descriptor"):
            await serving

    asyncio.run(scenario())
