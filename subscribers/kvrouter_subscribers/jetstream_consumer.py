"""Makes the durable consumer of one reader, and leaves one alone that another router reads with.

Two routers of one name would delete each other's consumer for ever. Whose it is stands in its metadata; whether its
reader lives is told by the server, which knows who waits for messages.
"""

import asyncio
import contextlib
import json

from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, ConsumerInfo, DeliverPolicy
from nats.js.errors import APIError, NotFoundError

from kvrouter_subscribers.jetstream_limits import JetStreamLimits

__all__ = ["ConsumerTakenError", "join_consumer", "make_consumer"]

_READER = "kvrouter.reader"
_EXISTS = (10105, 10148)
"""What the server says where there is such a consumer, and it differs."""


class ConsumerTakenError(Exception):
    """Another router reads with `consumer`."""

    def __init__(self, consumer: str) -> None:
        super().__init__(f"another router reads as {consumer!r}: give each its own name (events.router_id)")


async def make_consumer(
    client: Client, stream: str, name: str, *, token: str, position: int, limits: JetStreamLimits
) -> int:
    """Make our own consumer anew behind `position`; returns how many messages it will deliver at once.

    Raises:
        ConsumerTakenError: somebody who is not `token` reads with it.
    """
    jetstream = client.jetstream(timeout=limits.request_seconds)
    if await _left_behind(jetstream, stream, name, token=token, seconds=limits.takeover_seconds):
        with contextlib.suppress(NotFoundError):
            await jetstream.delete_consumer(stream, name)
    config = _config(name, limits, AckPolicy.ALL, position)
    config.metadata = {_READER: token}
    return await _create(client, stream, config, seconds=limits.request_seconds)


async def join_consumer(client: Client, stream: str, name: str, *, position: int, limits: JetStreamLimits) -> int:
    """Read with the consumer of a group, which the first member makes; returns as `make_consumer` does."""
    jetstream = client.jetstream(timeout=limits.request_seconds)
    info = await _info(jetstream, stream, name)
    if info is None:
        info = await jetstream.add_consumer(stream, _config(name, limits, AckPolicy.EXPLICIT, position))
    return info.num_pending or 0


def _config(name: str, limits: JetStreamLimits, ack_policy: AckPolicy, position: int) -> ConsumerConfig:
    behind = position + 1 if position else None
    return ConsumerConfig(
        durable_name=name,
        ack_policy=ack_policy,
        ack_wait=limits.ack_wait_seconds,
        max_ack_pending=limits.unacknowledged_messages_max,
        inactive_threshold=limits.inactive_seconds,
        deliver_policy=DeliverPolicy.BY_START_SEQUENCE if behind else DeliverPolicy.ALL,
        opt_start_seq=behind,
    )


async def _create(client: Client, stream: str, config: ConsumerConfig, *, seconds: float) -> int:
    """Make a consumer that is not there; the library would change one that another router has just made."""
    request = {"stream_name": stream, "config": config.as_dict(), "action": "create"}
    subject = f"$JS.API.CONSUMER.DURABLE.CREATE.{stream}.{config.durable_name}"
    answer = json.loads((await client.request(subject, json.dumps(request).encode(), timeout=seconds)).data)
    error = answer.get("error")
    if error is None:
        return int(answer.get("num_pending", 0))
    if error.get("err_code") in _EXISTS:
        raise ConsumerTakenError(str(config.durable_name))
    raise APIError.from_error(error)


async def _left_behind(jetstream: JetStreamContext, stream: str, name: str, *, token: str, seconds: float) -> bool:
    """Tell whether there is a consumer that nobody else reads with.

    It is looked at twice: a reader that has all it asked for, and is busy with it, waits for nothing at that moment.
    """
    before = await _info(jetstream, stream, name)
    if before is None:
        return False
    if (before.config.metadata or {}).get(_READER) == token:
        return True
    if before.num_waiting:
        raise ConsumerTakenError(name)
    await asyncio.sleep(seconds)
    after = await _info(jetstream, stream, name)
    if after is not None and (after.num_waiting or _progress(after) != _progress(before)):
        raise ConsumerTakenError(name)
    return after is not None


def _progress(info: ConsumerInfo) -> tuple[object, ...]:
    places = (info.delivered, info.ack_floor)
    return (info.created, *(place.consumer_seq if place is not None else 0 for place in places))


async def _info(jetstream: JetStreamContext, stream: str, name: str) -> ConsumerInfo | None:
    try:
        info: ConsumerInfo = await jetstream.consumer_info(stream, name)
    except NotFoundError:
        return None
    return info
