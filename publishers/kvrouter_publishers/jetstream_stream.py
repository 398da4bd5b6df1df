"""The stream into which a JetStream publisher publishes: made if it is missing, used as it is if it is there."""

from nats.errors import Error
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig, StreamInfo
from nats.js.errors import BadRequestError, NotFoundError

from kvrouter.events.nats_names import events_subject
from kvrouter_publishers.jetstream_settings import StreamSettings

__all__ = ["UnusableStreamError", "ensure_stream"]

_DUPLICATE_SECONDS = 120.0


class UnusableStreamError(Error):
    """A stream of this name is there, and made for something else."""


async def ensure_stream(jetstream: JetStreamContext, settings: StreamSettings) -> StreamInfo:
    """Return the stream, which is made if it is missing.

    One that is there stays as somebody made it: its limits are an operator's to choose.

    Raises:
        nats.errors.Error: it cannot be made, or would not keep our messages.
    """
    try:
        info = await jetstream.stream_info(settings.name)
    except NotFoundError:
        try:
            return await jetstream.add_stream(_configuration(settings))
        except BadRequestError:  # Another publisher was quicker, with other limits.
            info = await jetstream.stream_info(settings.name)
    subject = events_subject(settings.name)
    if not {subject, f"{settings.name}.*", f"{settings.name}.>"} & set(info.config.subjects or ()):
        raise UnusableStreamError(f"stream {settings.name} does not keep {subject}")
    return info


def _configuration(settings: StreamSettings) -> StreamConfig:
    window = min(_DUPLICATE_SECONDS, settings.max_age_seconds or _DUPLICATE_SECONDS)
    return StreamConfig(
        name=settings.name,
        subjects=[f"{settings.name}.*"],
        retention=RetentionPolicy.LIMITS,
        discard=DiscardPolicy.OLD,
        storage=StorageType.FILE,
        max_age=settings.max_age_seconds,
        max_bytes=settings.bytes_max if settings.bytes_max is not None else -1,
        duplicate_window=window,
        num_replicas=settings.replicas,
    )
