"""A router and its workers in the process of the test: real sockets, real records, nothing else."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from kvrouter.service.app import Service
from kvrouter.service.planes.environment import plane_choices
from kvrouter.settings import HealthSettings, LimitSettings, PlaneSettings, Settings
from kvrouter.transport.context import Context
from kvrouter.transport.openai import openai_handler
from kvrouter.transport.serve import ServedWorker, serve

__all__ = ["MODEL", "Routed", "Words", "admin", "eventually", "routed", "run", "worker"]

MODEL = "parrot"
_SCENARIO_SECONDS = 100.0
_POLL_SECONDS = 0.01


def run(scenario: Coroutine[Any, Any, None]) -> None:
    """Run a scenario, with a bound."""

    async def bounded() -> None:
        async with asyncio.timeout(_SCENARIO_SECONDS):
            await scenario

    asyncio.run(bounded())


async def eventually(condition: Callable[[], object]) -> None:
    """Wait until something holds; the scenario's own bound ends the wait."""
    while not condition():
        await asyncio.sleep(_POLL_SECONDS)


class Words:
    """What workers of these tests do: say each word of the last message, and their own name first."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked: list[dict[str, Any]] = []
        self.headers: list[Mapping[str, str]] = []
        self.cancelled = 0
        self.produced = 0
        self.release = asyncio.Event()

    async def __call__(self, body: dict[str, Any], context: Context) -> AsyncIterator[Mapping[str, Any]]:
        """Answer; a `wait` in the words waits for the test."""
        self.asked.append(body)
        self.headers.append(context.headers)
        words = [self.name, *body["messages"][-1]["content"].split()]
        try:
            if not body.get("stream"):
                usage = {"prompt_tokens": len(words), "completion_tokens": len(words)}
                yield {"choices": [{"index": 0, "message": {"content": " ".join(words)}}], "usage": usage}
                return
            for word in words:
                if word == "wait":
                    await self.release.wait()
                self.produced += 1
                yield {"choices": [{"index": 0, "delta": {"content": word}}]}
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


def worker(place: Path | str, answering: Any, *transports: str, handler: bool = False, **options: Any) -> ServedWorker:
    """A worker that a router finds at the same place; what answers its chats, or with `handler` everything."""
    handle = answering if handler else openai_handler([MODEL], {"/v1/chat/completions": answering})
    options = {"drain_seconds": 0.0, **options}
    return serve(
        "kvrouter/backend", {"generate": handle}, store=_store(place), transports=transports or ("tcp",), **options
    )


class Routed:
    """A running router and a client of it."""

    def __init__(self, service: Service, client: httpx.AsyncClient) -> None:
        self.service, self.client = service, client

    async def ready(self, workers: int = 1) -> None:
        """Wait until so many workers take requests."""
        await eventually(lambda: sum(not each.reasons() for each in self.service.registry) == workers)

    async def chat(self, words: str = "hello", **members: Any) -> httpx.Response:
        """The answer to a chat."""
        return await self.client.post("/v1/chat/completions", json=chat(words, **members))

    async def said(self, words: str = "hello") -> str:
        """What a worker said, its name first."""
        answer = await self.chat(words)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["message"]["content"])

    @asynccontextmanager
    async def stream(self, words: str) -> AsyncIterator[AsyncIterator[str]]:
        """The words of a streamed answer as they come; `error` and its code for an error event, `cut` for an end."""
        body = chat(words, stream=True)
        async with self.client.stream("POST", "/v1/chat/completions", json=body) as answer:
            assert answer.status_code == 200
            yield _words(answer.aiter_lines())

    def figure(self, name: str, **labels: str) -> float:
        """A sample of the metrics."""
        return self.service.metrics.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def routed(
    folder: Path,
    *,
    store: str = "",
    preferred: str = "tcp",
    nats_server: str = "",
    overload_status: int = 503,
    environment: Mapping[str, str] | None = None,
    limits: LimitSettings | None = None,
    **sections: Any,
) -> AsyncIterator[Routed]:
    """A router that follows the records in a folder."""
    planes = PlaneSettings(
        discovery=store or _store(folder),
        request_plane=preferred,
        nats_server=nats_server,
        overload_status=overload_status,
    )
    settings = Settings(
        planes=planes,
        health=HealthSettings(interval_seconds=0.2, timeout_seconds=30.0),
        limits=limits or LimitSettings(connect_seconds=30.0),
        **sections,
    )
    choices = plane_choices(settings, environment or {})
    service = Service(settings, admin_socket=str(folder / "admin.sock"), planes=choices)
    assert service.planes is not None
    tasks = [asyncio.create_task(work) for work in _works(service)]
    await service.proxy.start(host="127.0.0.1", port=0)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.proxy.port}", timeout=60) as client:
        yield Routed(service, client)
    await service.proxy.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await service.planes.close()


@asynccontextmanager
async def admin(router: Routed) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a router's admin API, on the socket that its data plane asks."""
    serving = asyncio.create_task(router.service.admin.run())
    await router.service.admin.started()
    yield router.client
    router.service.admin.stop()
    await serving


def chat(words: str, **members: Any) -> dict[str, Any]:
    """The body of a chat."""
    return {"model": MODEL, "messages": [{"role": "user", "content": words}], **members}


def _works(service: Service) -> list[Coroutine[Any, Any, None]]:
    assert service.planes is not None
    return [service.planes.run(), service.follow_config(), service.health.run()]


async def _words(lines: AsyncIterator[str]) -> AsyncIterator[str]:
    try:
        async for line in lines:
            data = line.removeprefix("data: ")
            if not data or data == "[DONE]":
                continue
            event = json.loads(data)
            if "error" in event:
                yield "error"
                yield event["error"]["code"]
            else:
                yield event["choices"][0]["delta"]["content"]
    except httpx.RemoteProtocolError:
        yield "cut"


def _store(place: Path | str) -> str:
    return place if isinstance(place, str) else f"file://{place / 'records'}"
