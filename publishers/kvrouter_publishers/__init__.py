"""Publish KV-cache events from inside an engine process.

An engine is our host: importing this package loads the standard library only, and each publisher loads its
transport on first use. `ZmqEventPublisher` needs pyzmq and msgpack, `HttpEventPublisher` msgpack alone.

    from kvrouter_publishers import ZmqEventPublisher

    with ZmqEventPublisher("tcp://*:5557", replay_endpoint="tcp://*:5657") as publisher:
        publisher.publish([BlockStored(...), BlockRemoved(...)])
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvrouter_publishers.http_asgi import EventsApplication
    from kvrouter_publishers.http_host import HttpEventServer
    from kvrouter_publishers.http_publisher import HttpEventPublisher
    from kvrouter_publishers.jetstream_publisher import JetStreamEventPublisher
    from kvrouter_publishers.publisher import EventPublisher
    from kvrouter_publishers.redis_publisher import RedisEventPublisher
    from kvrouter_publishers.zmq_publisher import ZmqEventPublisher

__all__ = [
    "EventPublisher",
    "EventsApplication",
    "HttpEventPublisher",
    "HttpEventServer",
    "JetStreamEventPublisher",
    "RedisEventPublisher",
    "ZmqEventPublisher",
]

_HOMES = {
    "EventPublisher": "kvrouter_publishers.publisher",
    "JetStreamEventPublisher": "kvrouter_publishers.jetstream_publisher",
    "EventsApplication": "kvrouter_publishers.http_asgi",
    "HttpEventPublisher": "kvrouter_publishers.http_publisher",
    "HttpEventServer": "kvrouter_publishers.http_host",
    "RedisEventPublisher": "kvrouter_publishers.redis_publisher",
    "ZmqEventPublisher": "kvrouter_publishers.zmq_publisher",
}


def __getattr__(name: str) -> object:
    """Import a publisher when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib  # noqa: PLC0415 - only the first use of a name pays for it

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
