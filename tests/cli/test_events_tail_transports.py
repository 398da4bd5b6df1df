"""`kvrouter events tail` over every transport: the same command, a real publisher, real brokers."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvrouter.events import BlockStored
from kvrouter_publishers import EventPublisher, HttpEventPublisher, JetStreamEventPublisher, RedisEventPublisher
from tests.servers import nats_server, redis_server
from tests.service.processes import eventually

EVENT = BlockStored(block_hashes=(7, 8), token_ids=tuple(range(32)), block_size=16, medium="GPU")


@contextmanager
def published(transport: str, folder: Path) -> Iterator[tuple[EventPublisher, str]]:
    """A publisher of worker `w`, rank 1, and its address."""
    if transport == "http":
        http = HttpEventPublisher("127.0.0.1:0", worker_id="w", rank=1, api_key="secret")
        assert http.endpoint is not None
        with http:
            yield http, http.endpoint
    elif transport == "nats":
        with nats_server(folder) as server:
            address = f"{server.url}/kv-events"
            with JetStreamEventPublisher(address, worker_id="w", rank=1) as jetstream:
                yield jetstream, address
    else:
        with redis_server(folder) as server:
            address = f"{server.url}/0/kv-events"
            with RedisEventPublisher(address, worker_id="w", rank=1) as redis:
                yield redis, address


def tail(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    command = [sys.executable, "-m", "kvrouter", "events", "tail", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("transport", ["http", "nats", "redis"])
def test_events_of_one_rank_are_shown(transport: str, tmp_path: Path) -> None:
    """What was published before is shown as well: these transports keep it."""
    with published(transport, tmp_path) as (publisher, address):
        publisher.publish([EVENT])
        shown = tail(
            address, "--worker", "w", "--rank", "1", "--count", "2", "--seconds", "20", "--json", "--api-key", "secret"
        )

    records = [json.loads(line) for line in shown.stdout.splitlines()]
    events = [event for record in records if record["kind"] == "batch" for event in record["events"]]
    assert shown.returncode == 0, shown.stderr
    assert [event["hashes"] for event in events] == [["0000000000000007", "0000000000000008"]]
    assert records[-1]["blocks_stored"] == 2


@pytest.mark.parametrize("transport", ["http", "nats", "redis"])
def test_no_more_batches_are_shown_than_were_asked_for(transport: str, tmp_path: Path) -> None:
    """Although what is kept comes many batches at a time."""
    with published(transport, tmp_path) as (publisher, address):
        for _ in range(20):
            publisher.publish([EVENT])
        eventually(lambda: publisher.statistics()["batches_published"] > 20)
        key = ("--api-key", "secret")
        shown = tail(address, "--worker", "w", "--rank", "1", "--count", "3", "--seconds", "20", "--json", *key)

    records = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [record["sequence"] for record in records if record["kind"] == "batch"] == [0, 1, 2]
    assert records[-1]["batches"] == 3


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("nats://h:4222/s",), "--worker"),
        (("redis://h:6379/0/s", "--worker", "w", "--topic", "t"), "--topic"),
        (("http://h", "--worker", "w"), "http://host:port"),
        (("carrier-pigeon://h:1",), "must start with"),
    ],
)
def test_a_wrong_call_ends_with_2(arguments: tuple[str, ...], named: str) -> None:
    """One line that names what is wrong."""
    refused = tail(*arguments)

    assert refused.returncode == 2
    assert named in refused.stderr
    assert refused.stderr.count("\n") == 1
