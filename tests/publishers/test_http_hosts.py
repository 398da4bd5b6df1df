"""Other ways to the same answers: an engine's own web server, TLS, and what a fork must not disturb."""

import asyncio
import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from kvrouter.errors import SettingsError
from kvrouter.events import decode_envelope
from kvrouter_publishers import EventsApplication, HttpEventPublisher, HttpEventServer
from kvrouter_subscribers.http_frames import split_frames
from tests.publishers.http_wire import LOOPBACK, client
from tests.publishers.wire import stored, wait_for

CERTIFICATES = Path(__file__).parents[1] / "proxy" / "certificates"


@contextmanager
def mounted(api_key: str | None = None) -> Iterator[tuple[HttpEventPublisher, EventsApplication]]:
    """A publisher that listens nowhere, and the application that answers for it."""
    with HttpEventServer(None, api_key=api_key) as server, HttpEventPublisher(server, worker_id="w") as publisher:
        publisher.publish([stored(1)])
        wait_for(lambda: publisher.statistics()["next_sequence"] == 2)
        yield publisher, EventsApplication(server)


def asking(application: EventsApplication) -> httpx.AsyncClient:
    """A client of an application."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=application), base_url="http://engine")


def test_an_engines_own_server_can_answer() -> None:
    """The same frames, headers and errors, under the engine's address."""

    async def scenario() -> None:
        with mounted(api_key="k") as (publisher, application):
            assert publisher.endpoint is None
            async with asking(application) as http:
                keyless = await http.get("/kv_events")
                reply = await http.get("/kv_events?after=-1", headers={"Authorization": "Bearer k"})
                wrong = await http.get("/kv_events?afer=1", headers={"Authorization": "Bearer k"})
                posted = await http.post("/kv_events")
                empty = await http.get("/kv_events", headers={"Authorization": "Bearer k"})

            assert keyless.status_code == 401
            assert [decode_envelope(frame).sequence for frame in split_frames(reply.content)] == [0, 1]
            assert reply.headers["kv-next-sequence"] == "2"
            assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "afer")
            assert (posted.status_code, posted.headers["allow"]) == (405, "GET")
            assert (empty.status_code, empty.content) == (204, b"")

    asyncio.run(scenario())


def test_a_poll_through_an_engines_server_waits_and_ends_with_its_client() -> None:
    """The engine's loop only waits; what is asked is answered on ours."""

    async def scenario() -> None:
        with mounted() as (publisher, application):
            async with asking(application) as http:
                poll = asyncio.create_task(http.get("/kv_events?after=1&wait=50"))
                while publisher.statistics()["polls"] != 1:
                    await asyncio.sleep(0.002)
                publisher.publish([stored(2)])
                assert len((await poll).content) > 0

            sent: list[object] = []

            async def receive() -> dict[str, object]:
                while publisher.statistics()["polls"] != 1:
                    await asyncio.sleep(0.002)
                return {"type": "http.disconnect"}

            async def send(message: object) -> None:
                sent.append(message)

            scope = {"type": "http", "method": "GET", "path": "/kv/kv_events", "root_path": "/kv", "headers": []}
            await application(scope | {"query_string": b"after=2&wait=50"}, receive, send)
            while publisher.statistics()["polls"]:
                await asyncio.sleep(0.002)

            assert sent == []

    asyncio.run(scenario())


def test_an_application_whose_server_was_closed_says_so() -> None:
    """It neither hangs nor raises into the engine's server."""

    async def scenario() -> None:
        with mounted() as (_, application):
            pass
        async with asking(application) as http:
            reply = await http.get("/kv_events")

        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "closing")

    asyncio.run(scenario())


def test_only_http_is_served_by_the_application() -> None:
    """Not the lifespan of a server, not websockets."""

    async def nothing() -> dict[str, object]:
        return {}

    async def scenario() -> None:
        with mounted() as (_, application), pytest.raises(RuntimeError, match="not websocket"):
            await application({"type": "websocket"}, nothing, None)  # type: ignore[arg-type]

    asyncio.run(scenario())


def test_events_can_be_served_over_tls() -> None:
    """With a certificate of the engine's; clients without TLS get nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATES / "certificate.pem", CERTIFICATES / "key.pem")
    with HttpEventPublisher(LOOPBACK, worker_id="w", tls=context) as publisher:
        publisher.publish([stored(1)])
        wait_for(lambda: publisher.statistics()["next_sequence"] == 2)
        assert str(publisher.endpoint).startswith("https://127.0.0.1:")
        verify = ssl.create_default_context(cafile=str(CERTIFICATES / "certificate.pem"))
        reply = httpx.get(f"{publisher.endpoint}/kv_events?after=-1", verify=verify)
        with client(publisher) as plain:
            plain.send(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            assert plain.is_closed()

    assert len(list(split_frames(reply.content))) == 2


def test_a_fork_leaves_the_parent_alone() -> None:
    """The child drops and counts, closes nothing, and the parent goes on."""
    with HttpEventPublisher(LOOPBACK, worker_id="w") as publisher:
        publisher.publish([stored(1)])
        wait_for(lambda: publisher.statistics()["next_sequence"] == 2)
        child = os.fork()
        if not child:
            publisher.publish([stored(2)])
            dropped = publisher.statistics()["events_dropped_forked"]
            publisher.close()
            publisher.server.close()
            os._exit(0 if dropped == 1 else 1)
        _, status = os.waitpid(child, 0)

        with client(publisher) as asking_parent:
            assert len(asking_parent.get("/kv_events?after=-1").envelopes) == 2
        assert os.waitstatus_to_exitcode(status) == 0


def test_a_bad_key_is_a_settings_error() -> None:
    """It could never be sent."""
    for key in ("", "a b", "a\nb", "\u00e9", "x" * 5000):
        with pytest.raises(SettingsError, match="api_key"):
            HttpEventPublisher(LOOPBACK, worker_id="w", api_key=key)


def test_a_name_that_does_not_resolve_is_a_settings_error() -> None:
    """As is one that no name can be."""
    for host in ("no-such-host.invalid", "a" * 70 + ".b", "\u00ff\u0000"):
        with pytest.raises(SettingsError, match="cannot publish events"):
            HttpEventPublisher(f"{host}:0", worker_id="w", insecure=True)


def test_ipv6_loopback_is_loopback() -> None:
    """Its address is written as a URL wants it; where there is none, that is what is said."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        with pytest.raises(SettingsError, match="cannot publish events on"):
            HttpEventPublisher("[::1]:0", worker_id="w")
        return
    with HttpEventPublisher("[::1]:0", worker_id="w") as publisher:
        assert str(publisher.endpoint).startswith("http://[::1]:")
