"""`kvrouter events relay` as a process: a simulated engine before it, a router behind it, real brokers between them."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from tests.servers import free_port, nats_server, redis_server
from tests.service.processes import Engine, Process, Processes, Router, eventually

PROMPT = list(range(200))


class Relay(Process):
    """A `kvrouter events relay` process."""

    def __init__(self, processes: Processes, *arguments: str) -> None:
        super().__init__(processes.folder, "relay", "kvrouter", "events", "relay", *arguments)
        self.event("relaying")


@contextmanager
def destination(transport: str, processes: Processes) -> Iterator[str]:
    """An address of that transport, with its broker."""
    if transport == "nats":
        with nats_server(processes.folder) as nats:
            yield f"{nats.url}/kv-events"
    elif transport == "redis":
        with redis_server(processes.folder) as redis:
            yield f"{redis.url}/0/kv-events"
    else:
        yield f"{transport}://127.0.0.1:{free_port()}"


@contextmanager
def relay(processes: Processes, *arguments: str) -> Iterator[Relay]:
    """A relay that is stopped at the end."""
    process = Relay(processes, *arguments)
    try:
        yield process
    finally:
        process.stop()


def compute(engine: Engine) -> None:
    """Have the engine cache the prompt."""
    model = httpx.get(f"{engine.url}/v1/models", timeout=120).json()["data"][0]["id"]
    body = {"model": model, "prompt": PROMPT, "max_tokens": 1}
    httpx.post(f"{engine.url}/v1/completions", json=body, timeout=120).raise_for_status()


def known_tokens(router: Router) -> int:
    """How much of the prompt the router believes to be cached."""
    answer = router.post("/overlap_scores", {"token_ids": PROMPT}).json()
    return max((int(each["usable_tokens"]) for each in answer["workers"]), default=0)


@pytest.mark.parametrize("transport", ["http", "nats", "redis", "tcp"])
def test_a_router_behind_a_relay_knows_the_engine(processes: Processes, transport: str) -> None:
    """A-318: what it caches, that it was restarted with nothing, what it caches then, whatever carries the events."""
    engine = processes.engine()
    with destination(transport, processes) as address:
        options = [engine.ready["events"], address, "--worker", "sim", "--replay", engine.ready["replay"]]
        worker = f"{engine.url},events={address},id=sim"
        if transport == "tcp":  # The one transport whose replays need an address of their own.
            replay = f"tcp://127.0.0.1:{free_port()}"
            options += ["--publish-replay", replay]
            worker += f",replay={replay}"
        with relay(processes, *options) as process:
            router = processes.router("--worker", worker, workers=1)
            compute(engine)
            eventually(lambda: known_tokens(router) == 192)
            engine.stop()
            again = processes.again(engine)
            eventually(lambda: known_tokens(router) == 0)
            compute(again)
            eventually(lambda: known_tokens(router) == 192)
            (source,) = router.get("/sources")
            process.signal(signal.SIGTERM)
            stopped = process.wait()

    assert source["state"] == "live"
    assert source["transport"] == {"http": "http", "nats": "jetstream", "redis": "redis", "tcp": "zmq"}[transport]
    assert stopped == 0
    assert process.lines()[-1]["event"] == "relayed"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("http://h:1", "http://127.0.0.1:81", "--worker", "w"), "SOURCE"),
        (("tcp://h:1", "udp://h:2", "--worker", "w"), "udp://h:2"),
        (("tcp://h:1", "tcp://*:0", "--worker", "w"), "port"),
        (("tcp://h:1", "tcp://*:81"), "--worker"),
        (("tcp://h:1", "tcp://*:81", "--worker", "w", "--ranks", "0"), "--ranks"),
        (("tcp://h:1", "http://0.0.0.0:8100", "--worker", "w"), "--insecure"),
        (("http://h:1", "tcp://*:81", "--worker", "w", "--trtllm", "--replay", "tcp://h:2"), "--replay"),
        (("tcp://h:1", "http://127.0.0.1:8100", "--worker", "w", "--publish-topic", "t"), "topic"),
        (("http://h:1", "tcp://*:81", "--worker", "w", "--trtllm", "--block-size", "0"), "--block-size"),
        (("http://h:1", "tcp://*:81", "--worker", "w", "--trtllm", "--interval", "nan"), "--interval"),
        (("http://h:1", "tcp://*:81", "--worker", "w", "--trtllm", "--interval", "-1"), "--interval"),
        (("http://[::1", "tcp://*:81", "--worker", "w", "--trtllm"), "http://[::1"),
        (("http://h:port", "tcp://*:81", "--worker", "w", "--trtllm"), "http://h:port"),
    ],
)
def test_a_wrong_call_ends_with_2_and_one_line(arguments: tuple[str, ...], named: str) -> None:
    """It names what is wrong."""
    command = [sys.executable, "-m", "kvrouter", "events", "relay", *arguments]

    refused = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    assert refused.returncode == 2
    assert named in refused.stderr
    assert refused.stderr.count("\n") == 1
