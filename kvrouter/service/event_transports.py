"""Builds the subscribers that bring workers' events, one for each transport that a worker asks for.

The transports themselves are `kvrouter_subscribers`; a client library is imported when its first worker comes.
"""

from collections.abc import Callable

from kvrouter.settings import Settings
from kvrouter_subscribers import AnyEventSubscriber, EventSink, ZmqEventSubscriber, ZmqLimits

__all__ = ["event_subscriber"]


def event_subscriber(sink: EventSink, settings: Settings, *, clock: Callable[[], float]) -> AnyEventSubscriber:
    """Return the subscriber of all transports; nothing is opened before a worker is added and `run` is called."""
    return AnyEventSubscriber({"zmq": lambda: ZmqEventSubscriber(sink, clock=clock, limits=_zmq_limits(settings))})


def _zmq_limits(settings: Settings) -> ZmqLimits:
    return ZmqLimits(
        frame_bytes_max=settings.events.frame_bytes_max,
        replay_silence_seconds=settings.events.replay_seconds,
        probe_seconds=settings.events.idle_probe_seconds,
    )
