"""A real gateway between a client and a real NATS server, with a service behind it that does as it is told."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import nats
from prometheus_client.parser import text_string_to_metric_families

from tests.servers import NatsServer
from tests.service.processes import Process, eventually

__all__ = ["GatewayProcess", "ScriptedProcess", "events_of", "gateway", "infer", "scripted_service"]

INFER = "/ai/llm/infer"
_SECONDS = 60.0


class GatewayProcess(Process):
    """A `kvrouter gateway` process."""

    def __init__(self, folder: Path, nats_url: str, *options: str, environment: dict[str, str] | None = None) -> None:
        address = ("--port", "0", "--nats-url", nats_url)
        self.client = httpx.Client(timeout=_SECONDS)
        super().__init__(folder, "gateway", "kvrouter", "gateway", *address, *options, environment=environment)
        listening = self.event("all_listening" if "--processes" in options else "listening")
        scheme = listening.get("scheme", "http")
        self.url = f"{scheme}://127.0.0.1:{listening['port']}"
        self.client.base_url = self.url

    def post(self, path: str, values: object = None, **headers: str) -> httpx.Response:
        """Post JSON; in names of headers underscores stand for hyphens."""
        spelled = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.post(path, json={} if values is None else values, headers=spelled)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        text = self.client.get("/metrics").text
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def eventually_metric(self, name: str, at_least: float, **labels: str) -> float:
        """Wait until a metric has reached a value."""
        return eventually(lambda: value if (value := self.metric(name, **labels)) >= at_least else None)

    def stop(self) -> None:
        self.client.close()
        super().stop()


class ScriptedProcess(Process):
    """The service of `scripted_service.py`."""

    def __init__(self, folder: Path, server: NatsServer) -> None:
        self._server = server
        super().__init__(folder, "service", "tests.gateway.scripted_service", server.url)
        self.event("serving")

    def go(self, prompt: str) -> None:
        """Tell it to go on with what it does for a prompt."""

        async def publish() -> None:
            client = await nats.connect(self._server.url)
            await client.publish(f"test.go.{prompt}", b"")
            await client.drain()

        asyncio.run(publish())


@contextmanager
def gateway(
    folder: Path, server: NatsServer, *options: str, environment: dict[str, str] | None = None
) -> Iterator[GatewayProcess]:
    """Run a gateway until the end of the block."""
    process = GatewayProcess(folder, server.url, *options, environment=environment)
    try:
        yield process
    finally:
        process.stop()


@contextmanager
def scripted_service(folder: Path, server: NatsServer) -> Iterator[ScriptedProcess]:
    """Run the service until the end of the block."""
    process = ScriptedProcess(folder, server)
    try:
        yield process
    finally:
        process.stop()


def infer(act: str, prompt: str = "hello", *, stream: bool = False, **more: Any) -> dict[str, Any]:
    """The body of a request that has the service do something."""
    return {"model_id": act, "input": {"prompt": prompt}, "params": {"stream": stream}, **more}


def events_of(text: str) -> list[tuple[str, Any]]:
    """The events of a stream: their names (`message` where they have none) and data."""
    events = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":"))
        if lines:
            events.append((lines.get("event", "message"), json.loads(lines["data"])))
    return events
