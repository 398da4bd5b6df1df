"""The request plane on a bad network, over every transport: cut, torn, slow, and open without carrying anything."""

import asyncio
import signal
import time
from collections.abc import Iterator

import pytest

from kvrouter.errors import DeadlineError, DisconnectedError, TransportError
from kvrouter.transport.context import Context
from kvrouter.transport.messages import Request
from kvrouter.transport.planes import RequestClient
from tests.faults.plane_scenes import TRANSPORTS, Asking, Held, PlaneScene, make_client, on_plane
from tests.servers import NatsServer, nats_server
from tests.transport.conformance import eventually, run
from tests.transport.worker import started_worker

WORKERS = {
    "tcp": "tcp",
    "call-home": "callhome_tcp",
    "http": "http2",
    "nats": "core_nats",
    "zmq": "zeromq",
    "grpc": "grpc_calls",
}
"""The module of a worker process, by transport."""
BEAT_SECONDS = 0.3
"""So fast that this process may lose a peer by mistake while it is held up; nothing here fails for that."""
NUMBERS = [b"%d" % number for number in range(300)]


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """A nats-server; subjects keep the tests apart."""
    with nats_server(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_connection_that_is_cut_ends_the_work_and_is_made_anew(transport: str, nats: NatsServer) -> None:
    """A-232, A-275: in the middle of an answer; both ends are told, nothing is left, and the next request goes."""

    async def scenario(scene: PlaneScene) -> None:
        stream, request_id = await scene.begun("cut")
        scene.network.cut()
        with pytest.raises(DisconnectedError) as lost:
            await stream.collect()
        assert not lost.value.retryable
        await eventually(lambda: request_id in scene.handlers.cancelled)
        assert await scene.ask_until_answered("count", b"300") == NUMBERS

    on_plane(transport, scenario, nats=nats.url, heartbeat_seconds=BEAT_SECONDS)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_connection_that_carries_nothing_any_more_is_given_up(transport: str, nats: NatsServer) -> None:
    """A-213: nobody closes it; heartbeats tell both ends, and where there are none, the request's own deadline does."""
    without_heartbeats = transport == "call-home"

    async def scenario(scene: PlaneScene) -> None:
        stream, request_id = await scene.begun("half", seconds=2.0 if without_heartbeats else None)
        scene.network.forget()
        with pytest.raises(DeadlineError if without_heartbeats else DisconnectedError):
            await stream.collect()
        await eventually(lambda: request_id in scene.handlers.cancelled)
        assert await scene.ask_until_answered("count", b"300") == NUMBERS

    on_plane(transport, scenario, nats=nats.url, heartbeat_seconds=BEAT_SECONDS)


@pytest.mark.parametrize("transport", ["tcp", "nats", "zmq"])
def test_a_process_that_was_held_up_gives_nobody_up(transport: str, nats: NatsServer) -> None:
    """A-213: for longer than any silence that is borne; what has arrived meanwhile is read first."""

    async def scenario(scene: PlaneScene) -> None:
        stream, _ = await scene.begun("held-up")
        time.sleep(3.0)  # Nothing may run meanwhile.
        assert await scene.ask("count", b"300") == NUMBERS
        scene.handlers.release.set()
        assert await stream.collect() == [b"released"]

    on_plane(transport, scenario, nats=nats.url, heartbeat_seconds=0.5, networked=False)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_slow_network_changes_nothing(transport: str, nats: NatsServer) -> None:
    """A-384: whatever is late, and in whatever pieces it comes."""

    async def scenario(scene: PlaneScene) -> None:
        scene.network.delay_seconds = 0.004
        await asyncio.gather(*(_ask(scene, number) for number in range(8)))

    on_plane(transport, scenario, nats=nats.url)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_answers_arrive_whole_or_fail(transport: str, nats: NatsServer) -> None:
    """A-308, A-384: a connection that is torn anywhere is told, and no answer is short or wrong for it."""

    async def scenario(scene: PlaneScene) -> None:
        scene.network.delay_seconds, scene.network.cut_share = 0.001, 0.02
        whole = torn = number = 0
        while whole < 10 or torn < 5:
            results = await asyncio.gather(*(_ask(scene, number + each) for each in range(4)), return_exceptions=True)
            for result in results:
                assert result is None or isinstance(result, TransportError), result
                whole, torn = whole + (result is None), torn + (result is not None)
            number += 4
        scene.network.heal()
        assert await scene.ask_until_answered("count", b"300") == NUMBERS

    on_plane(transport, scenario, nats=nats.url, seed=TRANSPORTS.index(transport), heartbeat_seconds=BEAT_SECONDS)


@pytest.mark.parametrize("transport", WORKERS)
def test_a_worker_may_stand_still_and_die(transport: str, nats: NatsServer) -> None:
    """A-213, A-275: SIGSTOP is noticed, SIGCONT lets it serve again, SIGKILL ends all that is open; nothing is left."""
    seconds = 2.0 if transport == "call-home" else None  # which has no heartbeats

    async def scenario(client: RequestClient) -> None:
        async with started_worker(WORKERS[transport], *([nats.url] if transport == "nats" else [])) as worker:
            asking = Asking(worker.address, client)
            stream, _ = await asking.begun("still", seconds=seconds)
            worker.signal(signal.SIGSTOP)
            with pytest.raises(DeadlineError if seconds else DisconnectedError):
                await stream.collect()
            worker.signal(signal.SIGCONT)
            assert await asking.ask_until_answered("count", b"300") == NUMBERS
            bodies = {"flood": b"1000000", "hang": b"x", "echo": b"x"}
            asked = [asyncio.create_task(_ask_for_ever(asking, *each)) for each in list(bodies.items()) * 10]
            while sum(task.done() for task in asked) < 10:
                await asyncio.sleep(0.01)
            worker.signal(signal.SIGKILL)
            assert sum(error is not None for error in await asyncio.gather(*asked)) >= 20

    async def whole() -> None:
        client = make_client(transport, nats.url, heartbeat_seconds=BEAT_SECONDS)
        before = Held()
        await scenario(client)
        await client.aclose()
        await before.settled()

    run(whole())


async def _ask_for_ever(asking: Asking, endpoint: str, body: bytes) -> TransportError | None:
    """Read an answer to its end; why it had another one."""
    try:
        request = Request(endpoint=endpoint, body=body)
        async with await asking.client.request(asking.address, request, Context()) as stream:
            async for _ in stream:
                pass
    except TransportError as error:
        return error
    return None


async def _ask(scene: PlaneScene, number: int) -> None:
    """Some bytes back, or some numbers."""
    if number % 2:
        assert await scene.ask("count", b"300") == NUMBERS
    else:
        body = number.to_bytes(4, "big") * 5000
        assert await scene.ask("echo", body) == [body]
