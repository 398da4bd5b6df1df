"""Bring engines' KV-cache events to a router.

Each subscriber carries one transport and hands what arrives to an `EventSink`; what events mean is the sink's
business. Names are imported on first use, so that each transport's client is loaded only where it is used.

    async with ZmqEventSubscriber(ingest) as subscriber:
        subscriber.add(Source("worker-0", 0), "tcp://10.0.0.5:5557", replay_endpoint="tcp://10.0.0.5:5657")
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvrouter_subscribers.any_subscriber import AnyEventSubscriber
    from kvrouter_subscribers.http_limits import HttpLimits
    from kvrouter_subscribers.http_subscriber import HttpEventSubscriber
    from kvrouter_subscribers.jetstream_admin import StreamAdministration
    from kvrouter_subscribers.jetstream_limits import JetStreamLimits
    from kvrouter_subscribers.jetstream_subscriber import JetStreamEventSubscriber
    from kvrouter_subscribers.limits import CurveKeys, ZmqLimits
    from kvrouter_subscribers.redis_limits import RedisLimits
    from kvrouter_subscribers.redis_subscriber import RedisEventSubscriber
    from kvrouter_subscribers.subscriber import EventSink, EventSubscriber, Receipt, TransportStatus
    from kvrouter_subscribers.zmq_subscriber import ZmqEventSubscriber

__all__ = [
    "AnyEventSubscriber",
    "CurveKeys",
    "EventSink",
    "EventSubscriber",
    "HttpEventSubscriber",
    "HttpLimits",
    "JetStreamEventSubscriber",
    "JetStreamLimits",
    "Receipt",
    "RedisEventSubscriber",
    "RedisLimits",
    "StreamAdministration",
    "TransportStatus",
    "ZmqEventSubscriber",
    "ZmqLimits",
]

_HOMES = {
    "AnyEventSubscriber": "kvrouter_subscribers.any_subscriber",
    "CurveKeys": "kvrouter_subscribers.limits",
    "EventSink": "kvrouter_subscribers.subscriber",
    "EventSubscriber": "kvrouter_subscribers.subscriber",
    "HttpEventSubscriber": "kvrouter_subscribers.http_subscriber",
    "HttpLimits": "kvrouter_subscribers.http_limits",
    "JetStreamEventSubscriber": "kvrouter_subscribers.jetstream_subscriber",
    "JetStreamLimits": "kvrouter_subscribers.jetstream_limits",
    "Receipt": "kvrouter_subscribers.subscriber",
    "RedisEventSubscriber": "kvrouter_subscribers.redis_subscriber",
    "RedisLimits": "kvrouter_subscribers.redis_limits",
    "StreamAdministration": "kvrouter_subscribers.jetstream_admin",
    "TransportStatus": "kvrouter_subscribers.subscriber",
    "ZmqEventSubscriber": "kvrouter_subscribers.zmq_subscriber",
    "ZmqLimits": "kvrouter_subscribers.limits",
}


def __getattr__(name: str) -> object:
    """Import a subscriber when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib  # noqa: PLC0415 - only the first use of a name pays for it

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
