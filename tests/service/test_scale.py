"""Many connections and many requests: nothing falls over, nothing grows."""

import asyncio
import re
import resource
import subprocess
from collections.abc import Iterator
from typing import ClassVar, cast

import httpx
import pytest

from tests.service.processes import Processes, Router, eventually

IDLE_CONNECTIONS, SPARE_FILES = 10_000, 500
WARM_REQUESTS, MORE_REQUESTS = 12_000, 12_000
GROWTH_BYTES_MAX = 6 * 1024 * 1024
ANSWER = b'{"id":"x","choices":[],"usage":{"prompt_tokens":100,"total_tokens":101}}'
MODELS = b'{"object":"list","data":[{"id":"m","object":"model"}]}'
REQUEST = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"


@pytest.fixture
def idle_connections() -> Iterator[int]:
    """Ten thousand, with room for both ends of each; fewer only where the system allows no more open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = IDLE_CONNECTIONS + SPARE_FILES
    files = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, files), hard))
    yield files - SPARE_FILES
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _resident_bytes(pid: int) -> int:
    told = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=True)
    return int(told.stdout) * 1024


async def _hold_idle(router: Router, count: int) -> tuple[int, int]:
    """Open connections, ask once on each, leave them open; return how many live and the status of one more request."""
    ask = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"

    async def open_one() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
        writer.write(ask)
        await reader.readuntil(b'{"status":"ok"}')
        return reader, writer

    held = []
    for start in range(0, count, 250):
        held += await asyncio.gather(*(open_one() for _ in range(start, min(start + 250, count))))
    async with httpx.AsyncClient() as client:
        status = (await client.post(f"{router.url}/v1/completions", json={"prompt": [1], "max_tokens": 1})).status_code
        metrics = (await client.get(f"{router.url}/metrics")).text
    open_now = next(line for line in metrics.splitlines() if line.startswith("kvrouter_client_connections "))
    for _, writer in held:
        writer.close()
        await writer.wait_closed()
    return int(float(open_now.rpartition(" ")[2])), status


async def _send(port: int, first: int, count: int, connections: int = 16) -> int:
    """Send different prompts over kept connections; return how many were answered with 200."""
    numbers = iter(range(first, first + count))

    async def one_connection() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        good = 0
        for number in numbers:
            body = b'{"model":"m","prompt":[%b],"max_tokens":1}' % b",".join(
                b"%d" % (number * 7 + each) for each in range(100)
            )
            writer.write(REQUEST % (len(body), body))
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                int(line.partition(b":")[2])
                for line in head.lower().split(b"\r\n")
                if line.startswith(b"content-length")
            )
            await reader.readexactly(length)
            good += head.startswith(b"HTTP/1.1 200")
        writer.close()
        await writer.wait_closed()
        return good

    return sum(await asyncio.gather(*(one_connection() for _ in range(connections))))


class InstantWorker(asyncio.Protocol):
    """Answers every whole request at once."""

    transports: ClassVar[list[asyncio.Transport]] = []

    def __init__(self) -> None:
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transports.append(self.transport)

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, found, body = self.received.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: *(\d+)", head)
        if found and len(body) >= (int(length[1]) if length else 0):
            self.received = b""
            answer = MODELS if b" /v1/models " in head else ANSWER
            self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(answer), answer))


async def _with_instant_worker(processes: Processes) -> tuple[int, int, int]:
    """Route many requests to a worker that answers at once; return the answers and the memory before and after."""
    server = await asyncio.get_running_loop().create_server(InstantWorker, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    router = await asyncio.to_thread(processes.router, "--worker", f"http://127.0.0.1:{port},model=m", workers=1)
    good = await _send(router.port, 0, WARM_REQUESTS)
    before = _resident_bytes(router.pid)
    good += await _send(router.port, WARM_REQUESTS, MORE_REQUESTS)
    after = _resident_bytes(router.pid)
    server.close()
    while InstantWorker.transports:
        InstantWorker.transports.pop().abort()
    await asyncio.sleep(0)
    return good, before, after


def test_ten_thousand_idle_connections_leave_room_for_requests(processes: Processes, idle_connections: int) -> None:
    """All of them are kept, and one more request is answered beside them."""
    engine = processes.engine()
    router = processes.router("--worker", engine.spec, workers=1)

    open_now, status = asyncio.run(_hold_idle(router, idle_connections))

    assert open_now >= idle_connections
    assert status == 200
    eventually(lambda: "kvrouter_client_connections 1.0" in httpx.get(f"{router.url}/metrics").text)


def test_memory_stays_flat_over_many_requests(processes: Processes) -> None:
    """After a warm-up that fills every bounded memory, thousands of new prompts cost none."""
    good, before, after = asyncio.run(_with_instant_worker(processes))

    assert good == WARM_REQUESTS + MORE_REQUESTS
    assert after - before < GROWTH_BYTES_MAX, f"{before} -> {after}"
