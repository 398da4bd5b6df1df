"""Small parts on their own: bodies that are slow, keys, lines of the log, where callers stand."""

import asyncio
import logging
from typing import Any

import pytest

from kvrouter.errors import GatewayError
from kvrouter.gateway.bodies import BodyReader, ClientGoneError
from kvrouter.gateway.cutover import bucket_of
from kvrouter.gateway.guard import Guard
from kvrouter.gateway.quiet_log import QuietLog


def read(*messages: dict[str, Any], seconds: float = 60.0, length: str | None = None) -> bytes:
    """Read a body that comes in these messages, and then not at all."""
    waiting = list(messages)

    async def receive() -> Any:
        if not waiting:
            await asyncio.Event().wait()
        return waiting.pop(0)

    async def run() -> bytes:
        headers = [] if length is None else [(b"content-length", length.encode())]
        return await BodyReader(bytes_max=10, seconds=seconds).read(headers, receive)

    return asyncio.run(run())


def piece(body: bytes, *, more: bool) -> dict[str, Any]:
    """A part of a body."""
    return {"type": "http.request", "body": body, "more_body": more}


def test_a_body_is_put_together() -> None:
    """However it was cut."""
    assert read(piece(b"abc", more=True), piece(b"", more=True), piece(b"def", more=False)) == b"abcdef"
    assert read(piece(b"", more=False)) == b""


@pytest.mark.parametrize(
    ("messages", "length", "status"),
    [
        ([], "11", 413),
        ([piece(b"x" * 11, more=False)], None, 413),
        ([piece(b"x" * 6, more=True), piece(b"x" * 5, more=True)], None, 413),
        ([piece(b"x", more=True)], None, 408),
        ([], None, 408),
    ],
)
def test_a_body_has_a_size_and_a_time(messages: list[dict[str, Any]], length: str | None, status: int) -> None:
    """A-436: it is refused as soon as it is known, and a client that stops sending does not hold a request for ever."""
    with pytest.raises(GatewayError) as caught:
        read(*messages, seconds=0.05 if status == 408 else 60.0, length=length)

    assert caught.value.status == status


def test_a_client_that_leaves_within_its_body_is_not_answered() -> None:
    """There is nobody to tell."""
    with pytest.raises(ClientGoneError):
        read(piece(b"x", more=True), {"type": "http.disconnect"})


def refused(guard: Guard, path: str, **headers: str) -> int:
    """The status that a request is refused with; 0 if it passes."""
    spelled = [(name.encode(), value.encode()) for name, value in headers.items()]
    try:
        guard.check({"type": "http", "path": path, "headers": [(b"host", b"here"), *spelled]})
    except GatewayError as error:
        return error.status
    return 0


@pytest.mark.parametrize(
    ("api", "admin", "expected"),
    [
        ((), (), [0, 0, 0]),
        (("k",), (), [401, 0, 0]),
        (("k",), ("a",), [401, 0, 403]),
        ((), ("a",), [0, 0, 401]),
    ],
)
def test_keys_are_asked_for_where_there_are_some(
    api: tuple[str, ...], admin: tuple[str, ...], expected: list[int]
) -> None:
    """Routes without a key, routes with it, the admin API with it."""
    guard = Guard(api_keys=api, admin_keys=admin, insecure=False)

    found = [refused(guard, "/x"), refused(guard, "/x", authorization="Bearer k")]
    found.append(refused(guard, "/admin/x", authorization="bearer k"))

    assert found == expected
    assert refused(guard, "/ready") == 0
    assert refused(guard, "/admin/x", authorization="Bearer a") == (0 if admin or not api else 401)


def test_pages_of_other_sites_are_for_browsers_without_keys() -> None:
    """With --insecure somebody in front decides."""
    assert refused(Guard(api_keys=(), admin_keys=(), insecure=False), "/x", origin="https://evil") == 403
    assert refused(Guard(api_keys=(), admin_keys=(), insecure=False), "/x", origin="http://here") == 0
    assert refused(Guard(api_keys=(), admin_keys=(), insecure=True), "/x", origin="https://evil") == 0


def test_a_flood_of_failures_is_a_line_per_second(caplog: pytest.LogCaptureFixture) -> None:
    """The next line says how many were not logged; other routes have lines of their own."""
    now = 0.0
    log = QuietLog(logging.getLogger("kvrouter.test"), clock=lambda: now)

    with caplog.at_level(logging.WARNING, "kvrouter.test"):
        for now in (0.0, 0.1, 0.2, 1.5):  # noqa: B007 - the clock reads it
            log.tell(logging.WARNING, "request_failed", "a", status=502)
        log.tell(logging.WARNING, "request_failed", "b", status=502)

    told = [getattr(record, "fields", {}) for record in caplog.records]
    assert [(line["route"], line["unlogged"]) for line in told] == [("a", 0), ("a", 2), ("b", 0)]


def test_callers_are_spread_evenly_and_differently_on_each_route() -> None:
    """A-428: ten per cent of the users are ten per cent, and not the same ones everywhere."""
    users = [f"user-{number}" for number in range(4000)]

    first = {user for user in users if bucket_of("a", user) < 1000}
    second = {user for user in users if bucket_of("b", user) < 1000}

    assert 300 <= len(first) <= 500
    assert len(first & second) < 100
