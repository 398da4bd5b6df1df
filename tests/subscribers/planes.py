"""Every transport alike, for what is promised on all of them: a real publisher, a real broker where there is one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kvrouter.events import Source
from kvrouter.events.endpoints import Transport
from kvrouter_publishers import (
    HttpEventPublisher,
    JetStreamEventPublisher,
    RedisEventPublisher,
    ZmqEventPublisher,
)
from kvrouter_subscribers import (
    HttpEventSubscriber,
    HttpLimits,
    JetStreamEventSubscriber,
    RedisEventSubscriber,
    ZmqEventSubscriber,
)
from tests.servers import Server, nats_server, redis_server
from tests.subscribers import jetstream_scene, redis_scene
from tests.subscribers.scene import ANY_TCP, QUICK, WORKER, RecordingSink

BROKERS: tuple[Transport, ...] = ("jetstream", "redis")
TRANSPORTS: tuple[Transport, ...] = ("zmq", "http", *BROKERS)
STREAM = "kv-events"

_SUBSCRIBERS: dict[Transport, Callable[..., Any]] = {
    "zmq": lambda sink, **options: ZmqEventSubscriber(sink, limits=QUICK, **options),
    "http": lambda sink, **options: HttpEventSubscriber(sink, limits=HttpLimits(load_seconds=0.02), **options),
    "jetstream": lambda sink, **options: JetStreamEventSubscriber(sink, limits=jetstream_scene.QUICK, **options),
    "redis": lambda sink, **options: RedisEventSubscriber(sink, limits=redis_scene.QUICK, **options),
}


class Plane:
    """One transport."""

    def __init__(self, name: Transport, server: Server | None) -> None:
        self.name, self._server = name, server

    @property
    def server(self) -> Server:
        """The broker, where there is one."""
        assert self._server is not None
        return self._server

    def publisher(self, source: Source = WORKER, **options: Any) -> Any:
        """A publisher of a source; a context manager."""
        who = {"worker_id": source.worker_id, "rank": source.rank}
        match self.name:
            case "zmq":
                return ZmqEventPublisher(ANY_TCP, replay_endpoint=ANY_TCP, wire="native", **who, **options)  # type: ignore[arg-type]
            case "http":
                return HttpEventPublisher("127.0.0.1:0", **who, **options)  # type: ignore[arg-type]
            case "jetstream":
                return JetStreamEventPublisher(f"{self.server.url}/{STREAM}", **who, **options)  # type: ignore[arg-type]
            case "redis":
                return RedisEventPublisher(f"{self.server.url}/0/{STREAM}", **who, **options)  # type: ignore[arg-type]

    def subscriber(self, sink: RecordingSink, **options: Any) -> Any:
        """A subscriber that is in no mood to wait; an asynchronous context manager."""
        return _SUBSCRIBERS[self.name](sink, **options)

    def follow(self, subscriber: Any, sink: RecordingSink, publisher: Any, source: Source = WORKER) -> None:
        """Open a source in the ingest and follow its publisher."""
        sink.ingest.open(source, sum(1 for _ in sink.ingest.status(now=0.0)), now=0.0)
        replay = publisher.replay_endpoint if self.name == "zmq" else None
        subscriber.add(source, publisher.endpoint, replay_endpoint=replay)

    def malformed(self, subscriber: Any, source: Source = WORKER) -> int:
        """What could not be read: brokers' streams count it, where nobody knows whose it was."""
        of_streams = sum(stream.malformed for stream in subscriber.streams()) if self.name in BROKERS else 0
        return int(subscriber.status(source).malformed + of_streams)


@contextmanager
def plane(name: Transport, folder: Path) -> Iterator[Plane]:
    """A transport, with its broker running."""
    if name == "jetstream":
        with nats_server(folder) as nats:
            yield Plane(name, nats)
    elif name == "redis":
        with redis_server(folder) as redis:
            yield Plane(name, redis)
    else:
        yield Plane(name, None)
