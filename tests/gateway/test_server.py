"""The gateway's connections: what clients that take nothing, or never end their heads, may cost."""

import asyncio
import socket
from collections.abc import Callable

import pytest
from starlette.types import Receive, Scope, Send

from kvrouter.gateway.server import HEAD_BYTES_MAX, ConnectionBounds, gateway_server
from tests.service.processes import eventually

ANSWER = b"x" * (8 << 20)
FOREVER = 3600.0


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """One long answer, written at once."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(ANSWER))]})
    await send({"type": "http.response.body", "body": ANSWER})


def cut(
    request: bytes,
    behave: Callable[[socket.socket, list[str]], None],
    *,
    head_seconds: float = FOREVER,
    idle_seconds: float = FOREVER,
) -> list[str]:
    """Let a client send something and behave as it does, in a thread; returns why connections were cut."""
    reasons: list[str] = []

    def live(address: tuple[str, int]) -> None:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(60)
            connection.connect(address)
            connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n" + request)
            behave(connection, reasons)

    async def scenario() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        server = gateway_server(application, listener, ConnectionBounds(head_seconds, idle_seconds, reasons.append))
        serving = asyncio.create_task(server.run())
        await server.started()
        await asyncio.to_thread(live, listener.getsockname())
        server.stop()
        await serving

    asyncio.run(scenario())
    return reasons


def waits(_: socket.socket, reasons: list[str]) -> None:
    """Take nothing until it is cut."""
    eventually(lambda: reasons)


@pytest.mark.parametrize("head", [b"\r\n", b"connection: close\r\n\r\n"], ids=["kept", "closed"])
def test_a_whole_answer_is_not_kept_for_who_takes_nothing(head: bytes) -> None:
    """Also where the connection is to be closed after it, which would wait for what is written."""
    assert cut(head, waits, idle_seconds=0.2) == ["slow_client"]


def test_who_reads_gets_all_of_it() -> None:
    """And is not cut."""
    sizes: list[int] = []

    def reads(connection: socket.socket, _: list[str]) -> None:
        size = 0
        while size < len(ANSWER):
            size += len(connection.recv(1 << 20))
        sizes.append(size)

    assert cut(b"\r\n", reads) == []
    assert sizes[0] > len(ANSWER)


def test_heads_that_never_end_are_cut() -> None:
    """By their size and by their time."""
    assert cut(b"a: " + b"b" * HEAD_BYTES_MAX + b"\r\n", waits) == ["head_bytes"]
    assert cut(b"", waits, head_seconds=0.2) == ["head_seconds"]
