"""NATS goes and comes back under load: requests fail at once and by name, streams end by an error, all goes on."""

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import nats
import pytest
from nats.aio.msg import Msg

from kvrouter.errors import TransportError
from kvrouter.gateway.nats_link import NatsLink
from tests.gateway.scene import INFER, events_of, gateway, infer, scripted_service
from tests.servers import nats_server
from tests.service.processes import eventually

CLIENTS = 2
WAIT_SECONDS = 60.0


def test_nats_restarts_under_load(tmp_path: Path) -> None:
    """A-407, A-438, A-439: 503 and 504 while it is away and nothing else, ready says so, and it recovers by itself."""
    with (
        nats_server(tmp_path) as server,
        scripted_service(tmp_path, server) as service,
        gateway(tmp_path, server, "--timeout-seconds", "20") as running,
    ):
        statuses: Counter[int] = Counter()
        ending = threading.Event()

        def load(number: int) -> None:
            with httpx.Client(base_url=running.url, timeout=60) as client:
                while not ending.is_set():
                    statuses[client.post(INFER, json=infer("echo", f"load {number}")).status_code] += 1

        threads = [threading.Thread(target=load, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            with running.client.stream("POST", INFER, json=infer("one_then_wait", "open", stream=True)) as answer:
                lines = answer.iter_lines()
                first = json.loads(next(lines).removeprefix("data: "))
                eventually(lambda: statuses[200] >= 20)
                server.kill()
                rest = events_of("\n".join(lines))
            eventually(lambda: running.client.get("/ready").status_code == 503)
            health = running.client.get("/health")
            eventually(lambda: statuses[503] >= 20)
            away = running.post(INFER, infer("echo"))
            live = running.client.get("/live").status_code
            connected = running.metric("gateway_nats_connected")
            server.start()
            eventually(lambda: running.client.get("/ready").status_code == 200)
            before = statuses[200]
            eventually(lambda: statuses[200] >= before + 20)
            streamed = eventually(
                lambda: (
                    answer
                    if (answer := running.post(INFER, infer("chunks:2", stream=True))).status_code == 200
                    else None
                )
            )
        finally:
            ending.set()
            for thread in threads:
                thread.join()

    assert first["index"] == 0
    assert (rest[-1][0], rest[-1][1]["error"]["code"]) == ("error", "UNAVAILABLE")
    assert (health.status_code, health.json()["nats_connected"], live, connected) == (503, False, 200, 0)
    assert (away.status_code, away.headers["retry-after"]) == (503, "5")
    assert set(statuses) <= {200, 503, 504}
    assert events_of(streamed.text)[-1][1]["is_final"] is True
    assert service is not None


def test_a_server_that_refuses_something_is_come_back_to(tmp_path: Path) -> None:
    """A-438: the client library closes for ever where a server says why it ends a connection; we do not."""
    told: list[str] = []
    failures: list[Exception] = []

    async def scenario(url: str) -> None:
        service = await nats.connect(url)

        async def answer(message: Msg) -> None:
            await message.respond(b"answer")

        await service.subscribe("service", cb=answer)
        await service.flush()
        link = NatsLink([url], reconnect_seconds=0.05, told=told.append, failed=failures.append)
        await link.connect(seconds=WAIT_SECONDS)
        stream = await link.open_stream("service", b"", headers=None, queue_messages_max=1)
        await stream.next(timeout_seconds=WAIT_SECONDS)
        with pytest.raises(TransportError):
            await one_too_many(link)
        await until(lambda: "disconnected" in told)
        await stream.aclose()

        assert await answered(link) == b"answer"
        await link.close()
        await service.close()

    with nats_server(tmp_path, configuration="max_subscriptions: 2") as server:
        asyncio.run(scenario(server.url))

    assert told[:3] == ["connected", "disconnected", "reconnected"]
    assert any("maximum subscriptions" in str(failure).lower() for failure in failures)


async def one_too_many(link: NatsLink) -> None:
    """Open a stream that takes one subscription more than the server allows, and read from it."""
    stream = await link.open_stream("service", b"", headers=None, queue_messages_max=1)
    await stream.next(timeout_seconds=WAIT_SECONDS)


async def answered(link: NatsLink) -> bytes:
    """Ask until there is an answer: what was refused may be refused once more before it is taken back."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            return (await link.request("service", b"", headers=None, timeout_seconds=WAIT_SECONDS)).data
        except TransportError:
            assert time.monotonic() < deadline, "it never came back"
            await asyncio.sleep(0.02)


async def until(question: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not question():
        assert time.monotonic() < deadline, "it never came to be"
        await asyncio.sleep(0.02)
