"""A peer that takes the connection and says nothing: the last error says what was waited for, over every transport."""

import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kvrouter_subscribers import (
    EventSink,
    HttpEventSubscriber,
    HttpLimits,
    JetStreamEventSubscriber,
    JetStreamLimits,
    RedisEventSubscriber,
    RedisLimits,
)
from tests.subscribers.scene import WORKER, RecordingSink, run, until


@pytest.fixture
def silent() -> Iterator[str]:
    """The host and port of a server on which nobody accepts."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def http(sink: EventSink) -> Any:
    """A subscriber that waits shortly for an answer."""
    return HttpEventSubscriber(sink, limits=HttpLimits(poll_seconds=0.1, grace_seconds=0.1))


def jetstream(sink: EventSink) -> Any:
    """As above."""
    return JetStreamEventSubscriber(sink, limits=JetStreamLimits(request_seconds=0.2))


def redis(sink: EventSink) -> Any:
    """As above."""
    return RedisEventSubscriber(sink, limits=RedisLimits(request_seconds=0.2))


@pytest.mark.parametrize(
    ("make", "endpoint"),
    [(http, "http://{}"), (jetstream, "nats://{}/kv-events"), (redis, "redis://{}/0/kv-events")],
    ids=["http", "jetstream", "redis"],
)
def test_an_error_says_what_was_waited_for(silent: str, make: Callable[[EventSink], Any], endpoint: str) -> None:
    """The name of an exception alone tells an operator nothing."""
    errors: list[str] = []

    async def scenario() -> None:
        sink = RecordingSink()
        sink.ingest.open(WORKER, 0, now=0.0)
        async with make(sink) as subscriber:
            subscriber.add(WORKER, endpoint.format(silent))
            await until(lambda: subscriber.status(WORKER).last_error is not None)
            errors.append(str(subscriber.status(WORKER).last_error))

    run(scenario())

    (error,) = errors
    assert silent in error
    assert any(words in error for words in ("no answer", "no connection", "is silent"))
    assert not error.endswith("TimeoutError")
