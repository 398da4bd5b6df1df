"""ZeroMQ's own encryption over real sockets: who is let in, who is not spoken to, what is told of files."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
import zmq
import zmq.asyncio
import zmq.auth

from kvrouter.errors import SettingsError, UnauthenticatedError, UnreachableError
from kvrouter.transport.context import Context
from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.messages import Request
from kvrouter.transport.zmq_client import ZmqRequestClient
from kvrouter.transport.zmq_curve import ZmqCurve
from kvrouter.transport.zmq_server import ZmqRequestServer
from tests.transport.conformance import eventually, run
from tests.transport.handlers import Handlers
from tests.transport.secured import PATIENT_SECONDS


class Keys:
    """Key pairs of a folder, and one of public keys."""

    def __init__(self, folder: Path) -> None:
        self.clients = folder / "clients"
        self.clients.mkdir()
        self._folder = folder
        self._server_public, self._server_secret = zmq.auth.create_certificates(folder, "server")

    def server(self, *, strict: bool = True) -> ZmqCurve:
        """What the server has."""
        return ZmqCurve(secret_key_path=self._server_secret, clients_path=str(self.clients) if strict else None)

    def client(self, name: str, *, invited: bool = True) -> ZmqCurve:
        """What a client has; its public key is in the folder if it is `invited`."""
        public, secret = zmq.auth.create_certificates(self._folder, name)
        if invited:
            shutil.copy(public, self.clients)
        return ZmqCurve(secret_key_path=secret, server_key_path=self._server_public)


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    """Fresh keys."""
    return Keys(tmp_path)


@asynccontextmanager
async def served(curve: ZmqCurve | None) -> AsyncIterator[ZmqRequestServer]:
    """A started server."""
    endpoints, handlers = Endpoints(), Handlers()
    handlers.register(endpoints)
    server = ZmqRequestServer(endpoints, curve=curve)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def ask(server: ZmqRequestServer, curve: ZmqCurve | None, *, connect_seconds: float = PATIENT_SECONDS) -> bytes:
    """One request of a client of its own."""
    client = ZmqRequestClient(curve=curve, heartbeat_seconds=PATIENT_SECONDS, connect_seconds=connect_seconds)
    try:
        request = Request(endpoint="echo", body=b"x")
        async with await client.request(server.address, request, Context()) as stream:
            return b"".join(await stream.collect())
    finally:
        await client.aclose()


@pytest.mark.parametrize("strict", [True, False])
def test_requests_are_encrypted(keys: Keys, strict: bool) -> None:
    """A-139: with a folder of clients, or for whoever knows the server's key."""

    async def scenario() -> None:
        async with served(keys.server(strict=strict)) as server:
            assert await ask(server, keys.client("a", invited=strict)) == b"x"

    run(scenario())


def test_a_client_that_nobody_invited_is_told_so(keys: Keys) -> None:
    """A-139: with an error of its own, and it counts; once its key is there it is let in, without a restart."""

    async def scenario() -> None:
        async with served(keys.server()) as server:
            curve = keys.client("b", invited=False)
            with pytest.raises(UnauthenticatedError, match="does not know our key"):
                await ask(server, curve)
            assert server.endpoints.counters.refused_keys >= 1
            shutil.copy(Path(curve.secret_key_path).with_suffix(".key"), keys.clients)
            assert await ask(server, curve) == b"x"

    run(scenario())


def test_a_server_with_another_key_is_not_spoken_to(keys: Keys) -> None:
    """A-139: it cannot read what we say, so there is no handshake."""

    async def scenario() -> None:
        async with served(keys.server()) as server:
            mine = keys.client("c")
            other, _ = zmq.auth.create_certificates(keys.clients.parent, "other")
            with pytest.raises(UnreachableError):
                await ask(server, ZmqCurve(secret_key_path=mine.secret_key_path, server_key_path=other))

    run(scenario())


def test_plain_and_encrypted_do_not_mix(keys: Keys) -> None:
    """A-139: whichever end has no keys."""

    async def scenario() -> None:
        async with served(keys.server()) as server:
            with pytest.raises(UnreachableError):
                await ask(server, None)
        async with served(None) as server:
            with pytest.raises(UnreachableError):
                await ask(server, keys.client("d"))

    run(scenario())


def test_a_file_that_cannot_be_read_is_named(keys: Keys, tmp_path: Path) -> None:
    """A-139: at the start of a server, at the first request of a client."""
    rubbish = tmp_path / "rubbish.key"
    rubbish.write_text("no key")
    good = keys.client("e")
    assert good.server_key_path is not None

    async def scenario() -> None:
        for wrong, said in (
            (ZmqCurve(secret_key_path=str(tmp_path / "missing")), "missing: No such file"),
            (ZmqCurve(secret_key_path=str(rubbish)), "rubbish.key holds no key"),
            (ZmqCurve(secret_key_path=good.server_key_path or ""), "server.key holds no secret key"),
            (ZmqCurve(secret_key_path=good.secret_key_path, clients_path=str(rubbish)), "rubbish.key is no folder"),
        ):
            with pytest.raises(SettingsError, match=said):
                async with served(wrong):
                    raise AssertionError("it has started")
        async with served(keys.server()) as server:
            with pytest.raises(SettingsError, match="server's public key"):
                await ask(server, ZmqCurve(secret_key_path=good.secret_key_path))
            assert await ask(server, good) == b"x"

    run(scenario())


def test_who_asks_whether_a_client_may_come_is_answered_in_any_case(keys: Keys) -> None:
    """A-139: another mechanism, and credentials that are no key, are refused; the next client is served."""

    async def scenario() -> None:
        async with served(keys.server()) as server:
            assert server._context is not None
            asking = server._context.socket(zmq.REQ)
            with closing(asking):
                asking.connect("inproc://zeromq.zap.01")
                for mechanism, credentials in ((b"NULL", []), (b"CURVE", [b"short"]), (b"CURVE", [])):
                    question = (b"1.0", b"1", b"kvrouter", b"127.0.0.1", b"", mechanism, *credentials)
                    await asking.send_multipart(question)
                    assert (await asking.recv_multipart())[2] == b"400"
            await eventually(lambda: server.endpoints.counters.refused_keys == 3)
            assert await ask(server, keys.client("f")) == b"x"

    run(scenario())
