"""The echo example works over every transport, as processes of its own."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.servers import NatsServer, nats_server

ECHO = Path(__file__).parents[2] / "examples" / "echo"
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """A nats-server."""
    with nats_server(tmp_path_factory.mktemp("nats")) as server:
        yield server


@contextmanager
def worker(name: str, *options: str) -> Iterator[None]:
    """A worker that serves; it is gone afterwards."""
    command = [sys.executable, str(ECHO / "server.py"), *options, "--name", name]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    assert process.stdout is not None
    try:
        assert process.stdout.readline().startswith(f"{name} serves over {options[0]} at ")
        yield
    finally:
        process.kill()
        process.wait(30)
        process.stdout.close()


@pytest.mark.parametrize("transport", ["tcp", "http", "zmq", "grpc", "nats", "call-home"])
def test_two_workers_are_found_and_asked_in_turn(transport: str, nats: NatsServer, tmp_path: Path) -> None:
    """A-114, A-121, A-122, A-123, A-147, A-148, A-389: discovery, streams, and each has half of the requests."""
    options = (transport, "--store", f"file://{tmp_path}/store", "--nats", nats.url)
    with worker("a", *options), worker("b", *options):
        client = subprocess.run(
            [sys.executable, str(ECHO / "client.py"), *options, "--workers", "2", "one", "two"],
            env=ENVIRONMENT, capture_output=True, text=True, timeout=90, check=False,
        )  # fmt: skip

    assert (client.stderr, client.returncode) == ("", 0)
    assert Counter(client.stdout.splitlines()) == {"a one two ": 2, "b one two ": 2}
