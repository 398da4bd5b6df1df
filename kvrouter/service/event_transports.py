"""Builds the subscribers that bring workers' events, one for each transport that a worker asks for.

The transports themselves are `kvrouter_subscribers`; a client library is imported when its first worker comes.
"""

import logging
from collections.abc import Callable, Iterable
from typing import Any

from kvrouter.errors import SettingsError
from kvrouter.events import Source
from kvrouter.events.endpoints import transport_of
from kvrouter.events.load import LoadReport
from kvrouter.events.nats_names import NatsCredentials, parse_nats_endpoint
from kvrouter.service.logs import log_event
from kvrouter.service.state_snapshots import Positions
from kvrouter.settings import EventSettings
from kvrouter.transport.tls import ClientTls, PlaneTls, read_pem
from kvrouter_subscribers import AnyEventSubscriber, EventSink, ZmqEventSubscriber, ZmqLimits

__all__ = ["event_subscriber", "nats_access", "nats_options", "purge_streams", "stream_positions"]

_log = logging.getLogger("kvrouter.events")


def event_subscriber(
    sink: EventSink,
    settings: EventSettings,
    *,
    token_of: Callable[[Source], str | None],
    positions: Callable[[], Positions],
    on_load: Callable[[LoadReport], None],
    clock: Callable[[], float],
) -> AnyEventSubscriber:
    """Return the subscriber of all transports; nothing is opened before a worker is added and `run` is called.

    `positions` says, when the first worker of a broker comes, from where its streams are to be read. `on_load` takes
    what publishers say of their load beside the events.
    """
    name = settings.router_id or None
    access = nats_access(settings)

    def zmq() -> ZmqEventSubscriber:
        return ZmqEventSubscriber(sink, clock=clock, limits=_zmq_limits(settings), on_load=on_load)

    def http() -> Any:
        from kvrouter_subscribers import HttpEventSubscriber  # noqa: PLC0415 - only where it is used

        return HttpEventSubscriber(sink, clock=clock, token_of=token_of, on_load=on_load)

    def jetstream() -> Any:
        from kvrouter_subscribers import JetStreamEventSubscriber  # noqa: PLC0415 - as above

        read = {endpoint: int(at) for endpoint, at in positions().get("jetstream", {}).items()}
        return JetStreamEventSubscriber(sink, clock=clock, name=name, positions=read, on_load=on_load, **access)

    def redis() -> Any:
        from kvrouter_subscribers import RedisEventSubscriber  # noqa: PLC0415 - as above

        read = {endpoint: str(at) for endpoint, at in positions().get("redis", {}).items()}
        return RedisEventSubscriber(sink, clock=clock, name=name, positions=read, on_load=on_load)

    return AnyEventSubscriber({"zmq": zmq, "http": http, "jetstream": jetstream, "redis": redis})


def stream_positions(subscriber: AnyEventSubscriber) -> Positions:
    """Return how far each broker's streams were taken, for a snapshot of what they said."""
    found: dict[str, dict[str, int | str]] = {}
    jetstream: Any = subscriber.subscriber("jetstream")
    if jetstream is not None:
        found["jetstream"] = dict(jetstream.positions())
    redis: Any = subscriber.subscriber("redis")
    if redis is not None:
        found["redis"] = dict(redis.positions())
    return found


async def purge_streams(endpoints: Iterable[str], covered: Positions, settings: EventSettings) -> None:
    """Shorten JetStream streams that are too long, up to what a durable snapshot covers and every consumer has read."""
    positions, messages_max, access = covered.get("jetstream", {}), settings.stream_messages_max, nats_access(settings)
    streams = {str(parse_nats_endpoint(each)): each for each in endpoints if transport_of(each) == "jetstream"}
    for name, endpoint in streams.items():
        if messages_max and name in positions:
            await _purge(name, endpoint, int(positions[name]), messages_max, access)


async def _purge(name: str, endpoint: str, position: int, messages_max: int, access: dict[str, Any]) -> None:
    from kvrouter_subscribers import StreamAdministration  # noqa: PLC0415 - as above

    try:
        async with StreamAdministration(endpoint, **access) as stream:
            contents = await stream.contents()
            if contents.messages <= messages_max:
                return
            floor = await stream.purge(position)
        log_event(_log, logging.INFO, "stream_purged", stream=name, messages=contents.messages, up_to=floor)
    except Exception as error:  # noqa: BLE001 - supervised edge: a broker's trouble must not cost the snapshot
        log_event(_log, logging.WARNING, "stream_not_purged", stream=name, error=str(error) or type(error).__name__)


def nats_access(settings: EventSettings) -> dict[str, Any]:
    """Return what connections to NATS servers are made with, beside what their addresses say.

    Raises:
        SettingsError: a file cannot be read, or two settings exclude each other.
    """
    certificate, key = settings.nats_certificate, settings.nats_key
    if (certificate is None) != (key is None):
        raise SettingsError("events.nats_certificate and events.nats_key go together")
    if settings.nats_credentials is not None and settings.nats_nkey is not None:
        raise SettingsError("events.nats_credentials and events.nats_nkey exclude each other")
    access: dict[str, Any] = {}
    if settings.nats_credentials is not None:
        read_pem(str(settings.nats_credentials))
        access["credentials"] = NatsCredentials(credentials_file=str(settings.nats_credentials))
    elif settings.nats_nkey is not None:
        seed = read_pem(str(settings.nats_nkey)).decode("ascii", errors="replace").strip()
        access["credentials"] = NatsCredentials(nkey_seed=seed)
    if settings.nats_ca is not None or certificate is not None:
        files = PlaneTls(
            ca_path=None if settings.nats_ca is None else str(settings.nats_ca),
            client_cert_path=None if certificate is None else str(certificate),
            client_key_path=None if key is None else str(key),
        )
        access["tls"] = ClientTls(files).current()
    return access


def nats_options(settings: EventSettings) -> dict[str, Any]:
    """Return the same for stores on NATS, as the client library's `connect` takes it; raises as `nats_access`."""
    access = nats_access(settings)
    credentials: NatsCredentials | None = access.pop("credentials", None)
    return {**access, **(credentials.connect_options() if credentials else {})}


def _zmq_limits(settings: EventSettings) -> ZmqLimits:
    return ZmqLimits(
        frame_bytes_max=settings.frame_bytes_max,
        replay_silence_seconds=settings.replay_seconds,
        probe_seconds=settings.idle_probe_seconds,
    )
