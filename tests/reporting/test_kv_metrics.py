"""A worker's load: gauges, the endpoint, the page that is asked again and again, and the subject on NATS."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import nats as nats_client
from prometheus_client import CollectorRegistry

from kvrouter.events.load import LoadReport, decode_load
from kvrouter.reporting import KvMetrics, KvMetricsApp
from kvrouter.reporting.broker import Broker
from kvrouter.reporting.kv_metrics_publication import KvMetricsPublication
from kvrouter.transport.context import Context
from kvrouter.transport.messages import Request
from tests.reporting.conftest import Run
from tests.servers import NatsServer

SUBJECT = "namespace.demo.kv_metrics"


def report(waiting: int, *, rank: int = 0) -> LoadReport:
    """A load that tells how many wait."""
    return LoadReport(
        worker_id="a", rank=rank, num_requests_waiting=waiting, kv_active_blocks=waiting, kv_total_blocks=10,
        gpu_cache_usage_perc=waiting / 10,
    )  # fmt: skip


async def elsewhere(scope: Any, receive: Any, send: Any) -> None:
    """The application behind the page."""
    del scope, receive
    await send({"type": "http.response.start", "status": 418, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@contextlib.asynccontextmanager
async def page(metrics: KvMetrics) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the page."""
    transport = httpx.ASGITransport(app=KvMetricsApp(elsewhere, metrics))
    async with httpx.AsyncClient(transport=transport, base_url="http://worker", timeout=100.0) as client:
        yield client


def test_gauges_follow_each_report(run: Run) -> None:
    """A-013: by rank; what a report does not say stays as it was."""

    async def scenario() -> None:
        registry = CollectorRegistry()
        metrics = KvMetrics(registry)
        assert registry.get_sample_value("kvstats_active_blocks", {"rank": "0"}) is None
        metrics.publish(report(3))
        metrics.publish(report(4, rank=1))
        metrics.publish(LoadReport(worker_id="a", kv_active_blocks=5))

        shown = {
            (name, rank): registry.get_sample_value(f"kvstats_{name}", {"rank": rank})
            for name in ("active_blocks", "total_blocks", "gpu_cache_usage_percent", "gpu_prefix_cache_hit_rate")
            for rank in ("0", "1")
        }
        assert (shown["active_blocks", "0"], shown["active_blocks", "1"]) == (5.0, 4.0)
        assert (shown["total_blocks", "0"], shown["gpu_cache_usage_percent", "0"]) == (10.0, 0.3)
        assert shown["gpu_prefix_cache_hit_rate", "0"] is None

    run(scenario())


def test_the_page_and_the_endpoint_tell_the_newest_reports(run: Run) -> None:
    """A-014: one per rank, in the form of the publishers' page; other paths are somebody else's."""

    async def scenario() -> None:
        metrics = KvMetrics()
        metrics.publish(report(1))
        metrics.publish(report(2))
        metrics.publish(report(3, rank=1))
        async with page(metrics) as client:
            answer = await client.get("/v1/kv_metrics")
            assert (await client.get("/other")).status_code == 418
            assert (await client.post("/v1/kv_metrics")).status_code == 405
            assert (await client.head("/v1/kv_metrics")).headers["etag"] == answer.headers["etag"]
        (item,) = [item async for item in metrics.load_metrics(Request(endpoint="load_metrics"), Context())]

        assert answer.json() == json.loads(item)
        waiting = [each["data"]["worker_stats"]["num_requests_waiting"] for each in answer.json()["reports"]]
        assert waiting == [2, 3]

    run(scenario())


def test_who_knows_the_state_is_told_of_the_next_one(run: Run) -> None:
    """A-014, A-031: 304 where nothing is new, at once or when the time is over; else as soon as something is."""

    async def scenario() -> None:
        metrics = KvMetrics()
        metrics.publish(report(1))
        async with page(metrics) as client:
            known = {"If-None-Match": (await client.get("/v1/kv_metrics")).headers["etag"]}
            for path in ("/v1/kv_metrics", "/v1/kv_metrics?wait=0.01", "/v1/kv_metrics?wait=soon"):
                assert (await client.get(path, headers=known)).status_code == 304
            waiting = asyncio.create_task(client.get("/v1/kv_metrics?wait=60", headers=known))
            for _ in range(100):
                await asyncio.sleep(0)
            assert not waiting.done()
            metrics.publish(report(2))
            answer = await waiting

        assert answer.status_code == 200
        assert answer.headers["etag"] != known["If-None-Match"]

    run(scenario())


def test_reports_are_published_as_they_change(nats: NatsServer, run: Run) -> None:
    """A-002, A-009, A-305: JSON with the worker's id; the newest of each rank arrives, also after a pause."""

    async def scenario() -> None:
        client = await nats_client.connect(nats.url)
        followed = await client.subscribe(SUBJECT)
        await client.flush()
        broker, metrics = Broker(nats.url), KvMetrics()
        await broker.connect()
        metrics.publish(report(1))
        registry = CollectorRegistry()
        publication = KvMetricsPublication(broker, metrics, subject=SUBJECT, registry=registry)
        running = asyncio.create_task(publication.run())

        async def until(waiting: int, rank: int) -> None:
            while True:
                message = await followed.next_msg(timeout=60.0)
                found = decode_load(message.data)
                assert json.loads(message.data)["worker_id"] == "a"
                if (found.num_requests_waiting, found.rank) == (waiting, rank):
                    return

        await until(1, 0)
        for waiting in range(2, 6):
            metrics.publish(report(waiting))
            metrics.publish(report(waiting, rank=1))
        await until(5, 1)
        metrics.publish(LoadReport(worker_id="", num_requests_waiting=1, rank=2))
        metrics.publish(report(7))
        await until(7, 0)
        while (registry.get_sample_value("kv_metrics_published_total") or 0) < 3:
            await asyncio.sleep(0.01)
        while not registry.get_sample_value("kv_metrics_refused_total"):
            await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        metrics.publish(report(8))
        await broker.close()
        await client.close()

    run(scenario())
