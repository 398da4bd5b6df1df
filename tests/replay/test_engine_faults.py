"""An engine that fails on command fails in exactly the way that was asked for, and recovers."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import zmq
import zmq.asyncio

from kvrouter.events import AllBlocksCleared, BlockStored, decode_batch
from kvrouter.replay.engine.simulated import SimulatedEngine
from tests.replay.serving import engine, engine_process, eventually, run, within_deadline

COMPLETION = "/v1/completions"
BODY = {"prompt": list(range(9)), "max_tokens": 4, "ignore_eos": True}
STREAM = {**BODY, "stream": True, "max_tokens": 50}


async def inject(client: httpx.AsyncClient, kind: str, **more: object) -> None:
    """Ask for a fault."""
    reply = await client.post("/fault", json={"kind": kind, **more})
    assert reply.status_code == 200, reply.text


async def status(client: httpx.AsyncClient) -> int:
    """Return the status of an ordinary request."""
    return (await client.post(COMPLETION, json=BODY)).status_code


def test_errors_come_as_often_as_asked() -> None:
    """With the status asked for, and not once more."""

    async def work() -> list[int]:
        async with engine() as (client, _):
            await inject(client, "error", status=503, requests=2)
            return [await status(client) for _ in range(3)]

    assert run(work) == [503, 503, 200]


def test_garbage_is_not_http() -> None:
    """A client library cannot make sense of it."""

    async def work() -> int:
        async with engine() as (client, _):
            await inject(client, "garbage")
            with pytest.raises(httpx.RemoteProtocolError):
                await status(client)
            return await status(client)

    assert run(work) == 200


def test_a_stream_is_cut_where_asked() -> None:
    """After so many chunks, without an end, and the request's blocks are free."""

    async def work() -> None:
        async with engine("--decode-seconds", "0.001") as (client, simulated):
            await inject(client, "cut", after_chunks=3)
            seen: list[str] = []
            with pytest.raises(httpx.TransportError):
                await read(client, STREAM, seen.append)
            await eventually(lambda: not simulated.ranks[0].scheduler.running)
            after = await status(client)

        assert len([line for line in seen if line.startswith("data: ")]) <= 3
        assert after == 200

    run(work)


def test_a_stalled_engine_computes_nothing_until_it_is_released() -> None:
    """Connections stay open and health is good: only the answers do not come."""

    async def work() -> None:
        async with engine() as (client, _):
            await inject(client, "stall")
            waiting = asyncio.ensure_future(status(client))
            health = (await client.get("/health")).status_code
            stalled = not waiting.done()
            await inject(client, "none")

            assert (health, stalled, await waiting) == (200, True, 200)

    run(work)


def test_a_stall_can_begin_in_the_middle_of_a_stream_and_end_by_itself() -> None:
    """The stream goes on where it stopped."""

    async def work() -> str:
        async with engine() as (client, _):
            await inject(client, "stall", after_chunks=2, seconds=0.05)
            return (await client.post(COMPLETION, json=STREAM)).text

    assert run(work).endswith("data: [DONE]\n\n")


def test_a_refusing_engine_listens_again() -> None:
    """On the same port."""

    async def work() -> None:
        async with engine() as (client, simulated):
            await inject(client, "refuse")
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", simulated.port)
            await inject(client, "none")  # Over the connection that lives on.
            await eventually(lambda: _listens(simulated.port))
            await inject(client, "refuse", seconds=0.05)
            await eventually(lambda: _listens(simulated.port))

            assert await status(client) == 200

    run(work)


def test_an_unhealthy_engine_says_so() -> None:
    """And goes on answering requests."""

    async def work() -> None:
        async with engine() as (client, _):
            await inject(client, "unhealthy")
            ill = (await client.get("/health")).status_code
            served = await status(client)
            await inject(client, "none")
            well = (await client.get("/health")).status_code

        assert (ill, served, well) == (503, 200, 200)

    run(work)


def test_a_slow_engine_takes_the_factor() -> None:
    """Every step, until it is cleared."""

    async def work() -> list[float]:
        async with engine() as (client, simulated):
            await inject(client, "slow", factor=3.0)
            slow = simulated.ranks[0].slowdown
            await inject(client, "none")
            return [slow, simulated.ranks[0].slowdown]

    assert run(work) == [3.0, 1.0]


@pytest.mark.parametrize(
    "body", [{"kind": "meteor"}, {"kind": "die", "unknown": 1}, {}, {"kind": "slow", "factor": "x"}]
)
def test_unknown_faults_are_refused(body: dict[str, Any]) -> None:
    """GET /fault lists the known ones."""

    async def work() -> None:
        async with engine() as (client, _):
            refused = await client.post("/fault", json=body)
            known = (await client.get("/fault")).json()["kinds"]

        assert refused.status_code == 400
        assert {"die", "cut", "stall", "restart_cache"} <= known.keys()

    run(work)


async def read(client: httpx.AsyncClient, body: dict[str, Any], line: Callable[[str], None]) -> None:
    """Read a stream line by line."""
    async with client.stream("POST", COMPLETION, json=body) as reply:
        async for each in reply.aiter_lines():
            line(each)


class Hearing:
    """A plain subscriber of an engine's events: sequence numbers and events, as they come."""

    def __init__(self, simulated: SimulatedEngine) -> None:
        self._context = zmq.asyncio.Context()
        self._live = self._context.socket(zmq.SUB)
        self._live.setsockopt(zmq.SUBSCRIBE, b"")
        self._live.connect(simulated.publishers.endpoint)
        self._replay_endpoint = simulated.publishers.replay_endpoint
        (self._publisher,) = simulated.publishers.publishers

    async def batch(self) -> tuple[int, list[Any]]:
        """Return the next batch."""
        _topic, sequence, payload = await self._live.recv_multipart()
        return int.from_bytes(sequence, "big"), list(decode_batch(payload).events)

    async def replay(self, since: int) -> list[int]:
        """Return the sequence numbers that a replay gives."""
        dealer = self._context.socket(zmq.DEALER)
        dealer.connect(self._replay_endpoint)
        await dealer.send_multipart([b"", since.to_bytes(8, "big")])
        numbers = []
        while (frames := await dealer.recv_multipart())[-1]:
            numbers.append(int.from_bytes(frames[-2], "big"))
        dealer.close(linger=0)
        return numbers

    async def join(self, client: httpx.AsyncClient) -> int:
        """Make the engine publish until we hear it, and return the last sequence number; none is on its way."""
        last = -1
        for number in range(1000):
            published = self._published()
            await client.post(COMPLETION, json={"prompt": [number] * 33, "max_tokens": 1})
            await eventually(lambda: self._published() > published)  # noqa: B023 - awaited in this turn
            while 0 <= last < self._published() or await self._live.poll(20):
                last, _events = await self.batch()
            if last >= 0:
                return last
        raise AssertionError("no event arrives")

    def _published(self) -> int:
        return self._publisher.statistics()["next_sequence"] - 1

    def close(self) -> None:
        self._live.close(linger=0)
        self._context.term()


async def fresh(client: httpx.AsyncClient, token: int) -> None:
    """Make the engine store blocks that it has never seen."""
    await client.post(COMPLETION, json={"prompt": [token] * 33, "max_tokens": 1})


def test_lost_events_leave_a_gap_that_a_replay_fills() -> None:
    """Numbered, not sent, and kept."""

    async def work() -> None:
        async with engine() as (client, simulated):
            hearing = Hearing(simulated)
            last = await hearing.join(client)
            await inject(client, "lose_events", batches=2)
            for token in (5001, 5002, 5003):
                await fresh(client, token)
            sequence, _events = await hearing.batch()
            replayed = await hearing.replay(last + 1)
            hearing.close()

        assert sequence == last + 3
        assert replayed == [last + 1, last + 2, last + 3]

    run(work)


def test_dropped_events_leave_no_trace() -> None:
    """What was never numbered cannot be missed; only an audit would find it."""

    async def work() -> None:
        async with engine() as (client, simulated):
            hearing = Hearing(simulated)
            last = await hearing.join(client)
            await inject(client, "drop_events", batches=1)
            await fresh(client, 5001)
            await fresh(client, 5002)
            sequence, events = await hearing.batch()
            hearing.close()

        assert sequence == last + 1
        assert isinstance(events[0], BlockStored)
        assert set(events[0].token_ids) == {5002}

    run(work)


def test_a_restarted_cache_begins_a_new_life_on_the_same_ports() -> None:
    """Sequence 0, other hashes for the same tokens, nothing cached; running requests are lost."""

    async def work() -> None:
        async with engine("--decode-seconds", "0.002") as (client, simulated):
            hearing = Hearing(simulated)
            await hearing.join(client)
            await fresh(client, 7)
            _sequence, before = await hearing.batch()
            endpoint = simulated.publishers.endpoint
            seen: list[str] = []
            running = asyncio.ensure_future(read(client, {**STREAM, "max_tokens": 5000}, seen.append))
            await eventually(lambda: bool(seen))
            await inject(client, "restart_cache")
            with pytest.raises(httpx.TransportError):
                await running
            again = (await client.post(COMPLETION, json={"prompt": [7] * 33, "max_tokens": 1})).json()
            while not (replayed := await hearing.replay(0)):
                pass  # It is published in a thread of its own, a moment after the answer.
            hearing.close()

        assert again["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
        assert replayed[0] == 0
        assert simulated.publishers.endpoint == endpoint
        assert isinstance(before[0], BlockStored)
        assert before[0].block_hashes[0] not in simulated.ranks[0].scheduler.cache.pool.contents()

    run(work)


def test_a_reset_is_published() -> None:
    """AllBlocksCleared reaches subscribers although the engine is idle."""

    async def work() -> list[Any]:
        async with engine() as (client, simulated):
            hearing = Hearing(simulated)
            await hearing.join(client)
            await client.post("/reset_prefix_cache")
            _sequence, events = await hearing.batch()
            hearing.close()
            return events

    assert run(work) == [AllBlocksCleared()]


def test_a_process_dies_in_the_middle_of_a_stream() -> None:
    """Exit code 1, and the client sees a stream without an end."""
    with engine_process("--decode-seconds", "0.002") as (process, announced):
        with httpx.Client(base_url=announced["url"]) as client:
            client.post("/fault", json={"kind": "die", "after_chunks": 3})
            with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
                client.post(COMPLETION, json=STREAM)

        assert process.wait(60) == 1


def test_a_process_dies_at_once() -> None:
    """After it has said yes."""
    with engine_process() as (process, announced):
        accepted = httpx.post(announced["url"] + "/fault", json={"kind": "die"})

        assert accepted.status_code == 200
        assert process.wait(60) == 1


def test_a_frozen_process_answers_nobody_until_it_thaws() -> None:
    """Not even health checks."""
    with engine_process() as (_, announced):

        def is_frozen() -> bool:
            httpx.post(announced["url"] + "/fault", json={"kind": "freeze", "seconds": 3})
            return not _healthy(announced["url"], 0.2)

        within_deadline(is_frozen)  # Once, unless it is this process that stands still until the other has thawed.
        within_deadline(lambda: _healthy(announced["url"], 0.2))


def test_a_process_ends_well_on_sigterm() -> None:
    """Exit code 0."""
    with engine_process() as (process, _):
        process.send_signal(signal.SIGTERM)

        assert process.wait(60) == 0


def test_a_process_ends_with_its_parent() -> None:
    """When standard input closes, as it does when a parent dies however it may."""
    with engine_process() as (process, _):
        assert process.stdin is not None
        process.stdin.close()

        assert process.wait(60) == 0


def test_a_taken_port_is_one_line_and_exit_code_2() -> None:
    """No traceback."""
    with engine_process() as (_, announced):
        port = announced["url"].rpartition(":")[2]
        command = [sys.executable, "-m", "kvrouter.replay.engine", "--port", port]
        second = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    assert second.returncode == 2
    assert second.stderr.startswith(f"engine: cannot listen on 127.0.0.1:{port}: ")
    assert second.stderr.count("\n") == 1


def _healthy(url: str, seconds: float) -> bool:
    try:
        return httpx.get(url + "/health", timeout=seconds).status_code == 200
    except httpx.TransportError:
        return False


async def _listens(port: int) -> bool:
    try:
        _reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True
