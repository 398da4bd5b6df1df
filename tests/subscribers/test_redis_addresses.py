"""Where a Redis stream is, and with what right one reads it: addresses, passwords, TLS, settings."""

import asyncio
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from kvrouter.errors import MissingExtraError, SettingsError
from kvrouter.events.redis_names import RedisTls, parse_redis_endpoint
from kvrouter.redis_client import RedisClient, RedisError
from kvrouter_subscribers import RedisEventSubscriber
from tests.servers import redis_server
from tests.subscribers.redis_scene import STREAM, following, working
from tests.subscribers.scene import WORKER, RecordingSink, run, until

CERTIFICATES = Path(__file__).parents[1] / "proxy" / "certificates"


def test_password_and_database_are_used_and_never_shown(tmp_path: Path) -> None:
    """A wrong one is an error in the status, without the password in it."""

    async def scenario() -> None:
        with redis_server(tmp_path, "--requirepass", "s3cret") as server:
            right = f"redis://:s3cret@127.0.0.1:{server.port}/3/{STREAM}"
            wrong = f"redis://:wr0ng@127.0.0.1:{server.port}/3/{STREAM}"
            async with following() as scene, following() as refused:
                scene.listen(right)
                refused.listen(wrong)
                with working(right) as worker:
                    worker.work(5)
                    await scene.heals(worker)
                await until(lambda: refused.status().last_error)

                told = [
                    scene.status(),
                    scene.stream(),
                    refused.status(),
                    refused.stream(),
                    scene.subscriber.positions(),
                ]
                assert "s3cret" not in str(told)
                assert "wr0ng" not in str(told)
                assert not refused.status().connected

    run(scenario())


@pytest.mark.parametrize(
    "endpoint",
    ["redis://host/stream", "redis://host/0/", "redis://host/x/stream", "redis:///0/stream", "nats://host/stream",
     "redis://host/0/a/b", "redis://host/0/{braces}", "redis://user:s3cret@host/0"],
)  # fmt: skip
def test_a_malformed_endpoint_is_refused_without_its_password(endpoint: str) -> None:
    """When it is added, not in the background."""
    subscriber = RedisEventSubscriber(RecordingSink())

    with pytest.raises(SettingsError) as raised:
        subscriber.add(WORKER, endpoint)

    assert "s3cret" not in str(raised.value)


def test_wrong_settings_are_refused() -> None:
    """Each with a sentence of its own."""
    sink: Any = RecordingSink()
    good = "redis://host/0/stream"
    with pytest.raises(SettingsError, match="mode"):
        RedisEventSubscriber(sink, mode="both")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="name"):
        RedisEventSubscriber(sink, name="")
    with pytest.raises(SettingsError, match="entry"):
        RedisEventSubscriber(sink, positions={good: "tomorrow"})
    with pytest.raises(SettingsError, match="neither"):
        RedisEventSubscriber(sink).add(WORKER, good, topic="x")
    with pytest.raises(SettingsError, match="neither"):
        RedisEventSubscriber(sink).add(WORKER, good, replay_endpoint=good)


def test_an_address_says_all_there_is() -> None:
    """Ports, databases, users and streams, percent-encoded where they must be."""
    address = parse_redis_endpoint("rediss://us%40er:p%2Fw@[::1]:7000/12/a%20stream")

    assert (address.host, address.port, address.database, address.stream) == ("::1", 7000, 12, "a stream")
    assert (address.username, address.password, address.secure) == ("us@er", "p/w", True)
    assert str(address) == "rediss://[::1]:7000/12/a stream"
    assert "p/w" not in repr(address)


def test_a_missing_client_library_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it."""
    monkeypatch.setitem(sys.modules, "redis", None)
    monkeypatch.setattr("kvrouter_subscribers.redis_subscriber.find_spec", lambda _: None)

    with pytest.raises(MissingExtraError, match=r"kvrouter\[redis\]"):
        RedisEventSubscriber(RecordingSink())


@pytest.mark.parametrize("turns", range(1, 6))
def test_a_client_whose_closing_is_cancelled_leaves_no_connection(tmp_path: Path, turns: int) -> None:
    """Whoever ends a router cancels what is about to end by itself."""

    async def scenario() -> None:
        with redis_server(tmp_path) as server:
            async with RedisClient({"port": server.port}, answer_seconds=20.0) as other:
                client = RedisClient({"port": server.port}, answer_seconds=20.0)
                await client.command("PING")
                closing = asyncio.create_task(client.close())
                for _ in range(turns):
                    await asyncio.sleep(0)
                closing.cancel()
                await asyncio.wait({closing})

                while bytes(await other.command("CLIENT", "LIST")).count(b"\n") > 1:  # `run` bounds it.
                    await asyncio.sleep(0.01)

    run(scenario())


@asynccontextmanager
async def behind_tls(port: int) -> AsyncIterator[int]:
    """A port on which TLS is spoken for a server that cannot: the wheel's is built without."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(CERTIFICATES / "certificate.pem", CERTIFICATES / "key.pem")
    connections: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        ways = [asyncio.ensure_future(pump(reader, back)), asyncio.ensure_future(pump(there, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for end in (writer, back):
                end.close()
                with suppress(OSError):
                    await end.wait_closed()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(asyncio.get_running_loop().create_task(serve(reader, writer)))

    listener = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        for each in connections:
            each.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


def test_a_server_must_prove_itself_where_tls_is_asked_for(tmp_path: Path) -> None:
    """Who does not know the server's authority does not talk to it."""

    async def scenario() -> None:
        tls = RedisTls(ca_file=str(CERTIFICATES / "certificate.pem"))
        with redis_server(tmp_path) as server:
            async with behind_tls(server.port) as port:
                address = parse_redis_endpoint(f"rediss://localhost:{port}/0/{STREAM}")
                async with RedisClient(address.client_options(tls), answer_seconds=5.0) as trusting:
                    assert await trusting.command("PING") is True
                async with RedisClient(address.client_options(), answer_seconds=5.0) as distrustful:
                    with pytest.raises(RedisError, match="CERTIFICATE_VERIFY_FAILED"):
                        await distrustful.command("PING")

    run(scenario())
