"""Service stats over a real server: each instance answers each question once, and a collector has them all."""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import nats as nats_client
import pytest
from prometheus_client import CollectorRegistry

from kvrouter.events.load import LoadReport
from kvrouter.reporting import Reporting
from kvrouter.reporting.broker import Broker
from kvrouter.reporting.stats_collector import Collected, StatsCollector, StatsGauges
from kvrouter.transport.context import Context
from kvrouter.transport.messages import Request
from tests.reporting.conftest import Run
from tests.servers import NatsServer

LONG_SECONDS = 60.0


async def echo(request: Request, context: Context) -> AsyncIterator[bytes]:
    """Say it again; some things are not said."""
    if bytes(request.body) == b"unspeakable" and not context.stopped:
        raise ValueError("a text that nobody shall see")
    yield bytes(request.body)


@contextlib.asynccontextmanager
async def worker(server: NatsServer, number: int) -> AsyncIterator[Reporting]:
    """An instance that answers questions; there are no requests, its handlers are called by hand."""
    reporting = Reporting("demo/backend", plane="nats", nats_server=server.url, collects=False)
    reporting.handlers({"echo": echo})
    async with reporting.running(number, {"nats": f"demo.backend-{number:x}"}):
        await reporting.tasks[0]  # It answers as soon as this has ended.
        yield reporting


@contextlib.asynccontextmanager
async def broker(server: NatsServer) -> AsyncIterator[Broker]:
    """A connection to ask over."""
    connection = Broker(server.url)
    await connection.connect()
    try:
        yield connection
    finally:
        await connection.close()


async def ask(client: Any, subject: str, until: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
    """Ask, and return the answers as soon as they are enough."""
    answers: list[dict[str, Any]] = []
    inbox = await client.subscribe(client.new_inbox())
    await client.publish(subject, b"", reply=inbox.subject)
    while not until(answers):
        answers.append(json.loads((await inbox.next_msg(timeout=LONG_SECONDS)).data))
    await inbox.unsubscribe()
    return answers


def test_every_instance_answers_every_question_once(nats: NatsServer, run: Run) -> None:
    """A-361, A-362: to all services, to theirs by name, to one by id; PING, INFO and STATS."""
    paths = {"": 2, ".demo_backend": 2, ".demo_backend.1a": 1}
    questions = [(verb, path) for verb in ("PING", "INFO", "STATS") for path in paths]
    # An instance answers the questions on a subject in order: after the last one's answers none of the others' come.
    last = [("PING", path) for path in paths]

    async def scenario() -> None:
        client = await nats_client.connect(nats.url)
        answers: Counter[tuple[str, str, bool, str]] = Counter()
        async with worker(nats, 0x1A), worker(nats, 0x1B):
            inbox = await client.subscribe(client.new_inbox() + ".*")
            asked = [*((*each, False) for each in questions), *((*each, True) for each in last)]
            for number, (verb, path, _) in enumerate(asked):
                await client.publish(f"$SRV.{verb}{path}", b"", reply=inbox.subject.replace("*", str(number)))
            while sum(is_last for _, _, is_last, _ in answers) < sum(paths.values()):
                message = await inbox.next_msg(timeout=LONG_SECONDS)
                record = json.loads(message.data)
                question = asked[int(message.subject.rpartition(".")[2])]
                assert record["type"] == f"io.nats.micro.v1.{question[0].lower()}_response"
                answers[(*question, record["id"])] += 1
        await client.close()
        expected = {(*each, instance) for each in asked for instance in ("1a", "1b")[: paths[each[1]]]}
        assert answers == dict.fromkeys(expected, 1)

    run(scenario())


def test_stats_tell_what_was_done(nats: NatsServer, run: Run) -> None:
    """A-361: requests, failures by their type only, time, and the load beside them."""

    async def scenario() -> None:
        client = await nats_client.connect(nats.url)
        async with worker(nats, 0x2A) as reporting:
            handler = reporting.handlers({"echo": echo})["echo"]
            for body in (b"one", b"two", b"unspeakable"):
                items = handler(Request(endpoint="echo", body=body), Context())
                assert isinstance(items, AsyncIterator)
                with contextlib.suppress(ValueError):
                    assert [item async for item in items] == [body]
            reporting.publish(LoadReport(worker_id="a", num_requests_waiting=3))
            (answer,) = await ask(client, "$SRV.STATS.demo_backend.2a", lambda found: len(found) == 1)
        await client.close()
        endpoint = next(each for each in answer["endpoints"] if each["name"] == "echo")
        assert (endpoint["num_requests"], endpoint["num_errors"], endpoint["last_error"]) == (3, 1, "ValueError")
        assert endpoint["processing_time"] > 0
        assert endpoint["subject"] == "demo.backend-2a"
        assert endpoint["data"]["worker_stats"]["num_requests_waiting"] == 3
        assert "nobody" not in json.dumps(answer)

    run(scenario())


def test_a_collector_has_every_instance_once(nats: NatsServer, run: Run) -> None:
    """A-361, A-362: whoever answers twice, or nonsense, is counted and changes nothing."""

    async def scenario() -> None:
        client = await nats_client.connect(nats.url)

        async def noisy(message: Any) -> None:
            for payload in (b"nonsense", b'{"name": "demo_backend", "id": "twice"}', b'{"name": "x", "id": "twice"}'):
                await client.publish(message.reply, payload)

        await client.subscribe("$SRV.STATS.demo_backend", cb=noisy)
        await client.flush()
        async with worker(nats, 0x3A), worker(nats, 0x3B), broker(nats) as asking:
            collector = StatsCollector(asking, "demo_backend", window_seconds=LONG_SECONDS, expected=lambda: 3)
            collected = await collector.collect()
        await client.close()
        assert [each.id for each in collected.services] == ["3a", "3b", "twice"]
        assert collected.expected == 3
        assert collected.malformed <= 1
        assert collected.repeated <= 1

    run(scenario())


def test_a_collector_that_hears_nothing_ends_with_its_window(nats: NatsServer, run: Run) -> None:
    """A-361: nobody answers for a service that is not there; the result says so."""

    async def scenario() -> None:
        async with broker(nats) as asking:
            collected = await StatsCollector(asking, "nobody", window_seconds=0.05, expected=lambda: 2).collect()
        assert collected == Collected(services=(), expected=2)

    run(scenario())


def test_gauges_show_the_sums_and_zero_without_a_server(run: Run, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A-005, A-362: while the server is there, while it is gone, and again; no instance ever answers twice."""
    server = NatsServer(tmp_path_factory.mktemp("nats")).start()
    registry = CollectorRegistry()
    gauges = StatsGauges(registry)

    answered: list[Collected] = []

    def take(collected: Collected | None) -> None:
        gauges.show("demo_backend", collected)
        if collected is not None:
            answered.append(collected)

    def shown(name: str) -> float | None:
        return registry.get_sample_value(f"nats_service_{name}", {"service": "demo_backend"})

    async def until(value: float) -> None:
        while shown("active_services") != value:
            await asyncio.sleep(0.01)

    async def scenario() -> None:
        async with worker(server, 0x4A), broker(server) as asking:
            collector = StatsCollector(asking, "demo_backend", window_seconds=0.5, interval_seconds=0.05)
            running = asyncio.create_task(collector.run(take))
            await until(1.0)
            assert shown("active_endpoints") == 2.0
            server.kill()
            await until(0.0)
            await asyncio.to_thread(server.start)
            await until(1.0)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    try:
        run(scenario())
    finally:
        server.kill()
    assert [each.repeated for each in answered] == [0] * len(answered)
