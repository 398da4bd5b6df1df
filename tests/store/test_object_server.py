"""The object server: who may use it, what `curl` can do with it, and how it and its clients fail (A-306, A-341)."""

import asyncio
import hashlib
import json
import signal
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from kvrouter.errors import SettingsError, StoreError
from kvrouter.store import ObjectStore, open_key_value_store, open_object_store
from kvrouter.store.http_objects import HttpObjectStore
from kvrouter.store.http_wire import FRAMED, META_BYTES_MAX
from kvrouter.store.local import LocalObjectStore
from kvrouter.store.queues import open_message_queues
from tests.listening import listening
from tests.store.backends import LocalBackend, ObjectServer
from tests.store.conftest import Run
from tests.store.test_objects import MIB, content, eventually

CERTIFICATES = Path(__file__).resolve().parents[1] / "transport" / "certificates"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ObjectServer]:
    """A server of this test alone."""
    server = ObjectServer(tmp_path)
    try:
        yield server.start()
    finally:
        server.kill()


def ask(server: ObjectServer, method: str, path: str, key: str | None = "key", **options: Any) -> httpx.Response:
    """What any HTTP client sees."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    headers |= options.pop("headers", {})
    url = f"http://127.0.0.1:{server.port}{path}"
    return httpx.request(method, url, headers=headers, timeout=60.0, **options)


def test_a_plain_client_can_do_all_of_it(object_server: ObjectServer) -> None:
    """A-390: PUT, GET, HEAD, lists and DELETE with bare bytes, as `curl` sends them."""
    server = object_server
    assert ask(server, "PUT", "/v1/objects/plain").status_code == 201
    put = ask(server, "PUT", "/v1/objects/plain/a/b", content=b"data", headers={"Kvrouter-Meta": '{"schema":"1"}'})
    got = ask(server, "GET", "/v1/objects/plain/a/b")
    head = ask(server, "HEAD", "/v1/objects/plain/a/b")

    assert (put.status_code, put.json()["size"], put.json()["meta"]) == (201, 4, {"schema": "1"})
    assert (got.status_code, got.content, got.headers["content-length"]) == (200, b"data", "4")
    assert head.headers["etag"] == f'"{hashlib.sha256(b"data").hexdigest()}"'
    assert json.loads(head.headers["kvrouter-object"]) == put.json()
    assert "plain" in ask(server, "GET", "/v1/objects").json()["buckets"]
    assert ask(server, "GET", "/v1/objects/plain").json() == {"names": ["a/b"]}
    assert ask(server, "DELETE", "/v1/objects/plain/a/b").status_code == 200
    assert ask(server, "DELETE", "/v1/objects/plain/a/b").status_code == 404
    assert ask(server, "DELETE", "/v1/objects/plain").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "reason"),
    [
        ("GET", "/v1/objects/bucket/absent", {}, 404, "missing"),
        ("GET", "/v1/other", {}, 404, "missing"),
        ("GET", "/v1/objects/buc.ket", {}, 400, "bad_name"),
        ("PUT", "/v1/objects/bucket/.hidden", {"content": b"data"}, 400, "bad_name"),
        ("PUT", "/v1/objects/bucket/name", {"headers": {"Kvrouter-Meta": "{"}, "content": b"x"}, 400, "bad_name"),
        ("PUT", "/v1/objects/bucket/name", {"headers": {"Content-Type": FRAMED}, "content": b"cut"}, 500, "corrupt"),
        ("POST", "/v1/objects/bucket/name", {"content": b"data"}, 405, "unsupported"),
        ("PUT", "/v1/objects", {}, 405, "unsupported"),
        ("PATCH", "/v1/objects/bucket", {}, 405, "unsupported"),
        ("GET", "/v1/objects", {"key": None}, 401, "unauthenticated"),
        ("PUT", "/v1/objects/bucket/name", {"key": "other", "content": b"data"}, 401, "unauthenticated"),
    ],
)
def test_what_is_refused_says_why(
    object_server: ObjectServer, method: str, path: str, options: dict[str, Any], status: int, reason: str
) -> None:
    """As JSON with a reason, and nothing was stored."""
    answer = ask(object_server, method, path, **options)

    assert answer.status_code == status
    assert answer.json()["error"]["reason"] == reason
    assert ask(object_server, "GET", "/v1/objects/bucket/name").status_code == 404


def test_a_wrong_key_is_told_before_anything_is_sent(object_server: ObjectServer, run: Run) -> None:
    """The client asks first whether it may send, so that no long body is sent in vain."""
    sent = []

    async def pieces() -> AsyncIterator[bytes]:
        sent.append(MIB)
        yield bytes(MIB)

    async def scenario() -> None:
        url = object_server.url.replace(":key@", ":wrong-key@")
        async with open_object_store(url) as store:
            for call in (store.put("bucket", "name", pieces()), store.get("bucket", "name"), store.buckets()):
                with pytest.raises(StoreError, match="key") as raised:
                    await call
                assert raised.value.reason == "unavailable"
                assert "wrong-key" not in str(raised.value)
        assert sent == []

    run(scenario())


def test_meta_data_that_are_no_header_are_refused(object_server: ObjectServer, run: Run) -> None:
    """Whatever text is in them travels; too much of it does not."""

    async def scenario() -> None:
        async with open_object_store(object_server.url) as store:
            info = await store.put("bucket", "meta", b"", meta={"line\r\n": "ä\r\nInjected: header"})
            assert await store.stat("bucket", "meta") == info
            assert info.meta == {"line\r\n": "ä\r\nInjected: header"}
            with pytest.raises(StoreError) as raised:
                await store.put("bucket", "meta", b"", meta={"key": "x" * META_BYTES_MAX})
            assert raised.value.reason == "too_large"

    run(scenario())


def test_a_server_that_dies_in_the_middle_is_told(server: ObjectServer, run: Run) -> None:
    """Half an object is neither stored nor returned; afterwards all goes on."""

    async def cut() -> AsyncIterator[bytes]:
        yield bytes(MIB)
        await asyncio.to_thread(server.kill)
        while True:
            yield bytes(MIB)

    async def read_on(store: ObjectStore) -> None:
        async with store.read("bucket", "name") as (_, pieces):
            await anext(pieces)
            await asyncio.to_thread(server.kill)
            assert [piece async for piece in pieces] == []

    async def scenario() -> None:
        async with open_object_store(server.url) as store:
            await store.put("bucket", "name", content(32 * MIB))
            with pytest.raises(StoreError) as raised:
                await store.put("bucket", "name", cut())
            assert raised.value.reason == "unavailable"
            with pytest.raises(StoreError) as raised:
                await store.get("bucket", "name")
            assert raised.value.reason == "unavailable"

            await asyncio.to_thread(server.start)
            assert await store.get("bucket", "name") == content(32 * MIB)
            with pytest.raises(StoreError) as raised:
                await read_on(store)
            assert raised.value.reason == "unavailable"

    run(scenario())


def test_the_server_ends_with_its_last_answer(server: ObjectServer, run: Run) -> None:
    """SIGTERM while an object is sent: it arrives, then the process ends with 0."""

    async def scenario() -> None:
        async with open_object_store(server.url) as store:
            data = content(16 * MIB)
            await store.put("bucket", "name", data)
            async with store.read("bucket", "name") as (_, pieces):
                found = await anext(pieces)
                assert server._process is not None
                server._process.send_signal(signal.SIGTERM)
                async for piece in pieces:
                    found += piece
            assert found == data
            assert await asyncio.to_thread(server._process.wait, 60.0) == 0

    run(scenario())


def test_objects_travel_encrypted(tmp_path: Path, run: Run) -> None:
    """Over TLS, to a server whose certificate somebody vouches for; to others nothing is said."""
    files = ("--tls-certificate", str(CERTIFICATES / "server.pem"), "--tls-key", str(CERTIFICATES / "server.key"))
    server = ObjectServer(tmp_path, *files, secure=True)
    trusting = ssl.create_default_context(cafile=str(CERTIFICATES / "authority.pem"))

    async def scenario() -> None:
        async with HttpObjectStore(server.url, tls=trusting) as store, open_object_store(server.url) as wary:
            await eventually(lambda: store.put("bucket", "name", content(MIB)))
            assert await store.get("bucket", "name") == content(MIB)
            with pytest.raises(StoreError, match=r"(?i)certificate") as raised:
                await wary.get("bucket", "name")
            assert raised.value.reason == "unavailable"

    try:
        server.start()
        run(scenario())
    finally:
        server.kill()


def test_a_body_that_its_server_finds_damaged_is_never_whole(object_server: ObjectServer, tmp_path: Path) -> None:
    """A plain client sees less than the length that was promised."""
    backend = LocalBackend(tmp_path)
    backend.folder = object_server.data
    asyncio.run(LocalObjectStore(object_server.data).put("damaged", "name", content(3 * MIB)))
    asyncio.run(backend.lose_middle("damaged", "name"))

    with pytest.raises(httpx.RemoteProtocolError):
        ask(object_server, "GET", "/v1/objects/damaged/name")


def test_where_objects_and_values_can_be() -> None:
    """One line that says what a place does not keep."""
    with pytest.raises(SettingsError, match="objects only"):
        open_key_value_store("http://127.0.0.1:1")
    with pytest.raises(SettingsError, match="no message queues"):
        open_message_queues("http://127.0.0.1:1")
    with pytest.raises(SettingsError, match="small values only"):
        open_object_store("etcd://127.0.0.1:1")
    with pytest.raises(SettingsError, match="must look like"):
        open_object_store("http://127.0.0.1:1/path")


@pytest.mark.parametrize(("option", "value"), [("--port", "99999"), ("--drain-seconds", "-1")])
def test_numbers_that_cannot_be_are_refused(option: str, value: str, tmp_path: Path) -> None:
    """One line, before anything listens."""
    with pytest.raises(AssertionError, match=f"kvrouter: {option}: {value} is"):
        ObjectServer(tmp_path, option, value).start()


Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.mark.parametrize(
    "answer",
    [
        b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnull",
        b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 50_000,
    ],
    ids=["nothing", "nonsense", "short", "no names", "null", "elsewhere", "endless head"],
)  # fmt: skip
def test_whoever_answers_otherwise_is_no_object_server(answer: bytes, run: Run) -> None:
    """Whatever comes, it is a `StoreError`, and soon."""

    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)

    async def scenario() -> None:
        async with listening(answers) as port, open_object_store(f"http://127.0.0.1:{port}") as store:
            for call in (store.list("bucket"), store.get("bucket", "name"), store.stat("bucket", "name")):
                with pytest.raises(StoreError) as raised:
                    await call
                assert raised.value.reason == "unavailable"
            with pytest.raises(StoreError):
                await store.put("bucket", "name", b"data")

    run(scenario())
