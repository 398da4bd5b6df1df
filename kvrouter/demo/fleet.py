"""The demo's fleet: simulated engines and a router in front of them, all real processes on loopback ports."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec

from kvrouter.demo.processes import ChildProcess, ProcessFailedError

__all__ = ["BLOCK_SIZE", "MODEL", "Fleet", "running_fleet"]

MODEL = "simulated"
BLOCK_SIZE = 16
READY_SECONDS = 20.0
READY_POLL_SECONDS = 0.05


class Fleet:
    """Where everything is, and which processes it is."""

    def __init__(self, router: dict[str, Any], engines: list[dict[str, Any]], processes: list[ChildProcess]) -> None:
        self.host, self.port = "127.0.0.1", int(router["port"])
        self.engines, self.processes = engines, processes
        self.router = processes[-1]

    @property
    def url(self) -> str:
        """The router's address."""
        return f"http://{self.host}:{self.port}"

    async def ended(self) -> None:
        """Wait until a process of the fleet ends, which none should.

        Raises:
            ProcessFailedError: it has; the text holds its last words.
        """
        watches = [asyncio.ensure_future(process.ended()) for process in self.processes]
        try:
            done, _ = await asyncio.wait(watches, return_when=asyncio.FIRST_COMPLETED)
            done.pop().result()
        finally:
            for watch in watches:
                watch.cancel()


@asynccontextmanager
async def running_fleet(*, engines: int, blocks: int, policy: str, seed: int) -> AsyncIterator[Fleet]:
    """Start a fleet with empty caches, and end every process of it at the end, however that comes.

    Raises:
        ProcessFailedError: a process does not start.
    """
    async with AsyncExitStack() as stack:
        processes: list[ChildProcess] = []

        async def start(name: str, module: str, *arguments: str) -> ChildProcess:
            process = await ChildProcess.start(name, module, [*arguments, "--exit-with-parent"])
            stack.push_async_callback(process.stop)
            processes.append(process)
            return process

        started = [
            await start(f"engine {number}", "kvrouter.replay.engine", *_engine_arguments(blocks=blocks, seed=seed))
            for number in range(engines)
        ]
        announced = [await process.announced("engine_ready") for process in started]
        router = await start("router", "kvrouter", "serve", *_router_arguments(policy, announced))
        fleet = Fleet(await router.announced("listening"), announced, processes)
        await _ready(fleet)
        yield fleet


def _engine_arguments(*, blocks: int, seed: int) -> list[str]:
    return ["--model", MODEL, "--blocks", str(blocks), "--block-size", str(BLOCK_SIZE), "--seed", str(seed)]


def _router_arguments(policy: str, engines: list[dict[str, Any]]) -> list[str]:
    arguments = ["--port", "0", "--policy", policy, "--log-format", "json", "--drain-seconds", "1"]
    for number, engine in enumerate(engines):
        fields = f"id=engine-{number},events={engine['events']},replay={engine['replay']},block_size={BLOCK_SIZE}"
        arguments += ["--worker", f"{engine['url']},{fields},model={MODEL}"]
    return arguments


async def _ready(fleet: Fleet) -> None:
    """Wait until every engine may be chosen and the events of every engine are heard."""
    readiness: dict[str, Any] = {}
    try:
        async with asyncio.timeout(READY_SECONDS):
            while not _is_ready(readiness, len(fleet.engines)):
                await asyncio.sleep(READY_POLL_SECONDS)
                readiness = await _get(fleet, "/readyz")
    except TimeoutError:
        raise ProcessFailedError(f"the router is not ready after {READY_SECONDS:g} seconds: {readiness}") from None


def _is_ready(readiness: dict[str, Any], engines: int) -> bool:
    live = readiness.get("events", {}).get("ranks", {}).get("live", 0)
    return bool(readiness.get("schedulable_workers") == engines and live == engines)


async def _get(fleet: Fleet, path: str) -> dict[str, Any]:
    reader, writer = await asyncio.open_connection(fleet.host, fleet.port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nhost: {fleet.host}\r\nconnection: close\r\n\r\n".encode())
        answer = await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()
    body = answer.partition(b"\r\n\r\n")[2]
    value = msgspec.json.decode(body)
    assert isinstance(value, dict), "the router answers with objects"
    return value
