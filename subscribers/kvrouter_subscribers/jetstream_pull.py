"""Reads one pull consumer: keeps the server allowed to send, and notices when it no longer does.

What is in a message, and when it is acknowledged, is the taker's business.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from kvrouter_subscribers.jetstream_limits import JetStreamLimits

__all__ = ["Place", "Puller", "place_of"]

_ACK_PREFIX: Final = "$JS.ACK."
_NANOSECONDS: Final = 1_000_000_000
_EXPIRES_HEARTBEATS: Final = 6
_SILENT_HEARTBEATS_MAX: Final = 3
_HEARTBEAT, _NO_MESSAGES, _EXPIRED, _CONFLICT = "100", "404", "408", "409"
_PASSING_CONFLICTS: Final = ("batch completed", "exceeded max", "message size exceeds")


class Place(NamedTuple):
    """Where in the stream a message stands, how often it was delivered, and how many follow it."""

    stream_sequence: int
    deliveries: int
    pending: int


Take = Callable[[bytes, Place, str], Awaitable[None]]
"""Takes the bytes of a message, its place, and the subject on which it is acknowledged."""


class Puller:
    """Hands every message of one consumer to `take`, in order, from `open` to `close`.

    `failed` is set when the consumer is gone or silent; `reason` says why. At most `fetch_messages` messages are
    under way; the next ones are asked for when half of them have come, so that the server never waits for us.
    """

    def __init__(self, client: Client, *, stream: str, consumer: str, limits: JetStreamLimits, take: Take) -> None:
        self.failed = asyncio.Event()
        self.reason = ""
        self._client, self._limits, self._take = client, limits, take
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._inbox = client.new_inbox()
        self._subscription: Subscription | None = None
        self._wanted = 0
        self._heard_at = self._turn_began = time.perf_counter()

    async def open(self) -> None:
        """Begin to read."""
        self._subscription = await self._client.subscribe(
            self._inbox, cb=self._arrived, pending_msgs_limit=0, pending_bytes_limit=0
        )
        await self._ask()

    async def close(self) -> None:
        """Stop reading; messages that were sent and not taken are delivered again to whoever reads next."""
        if self._subscription is not None and not self._client.is_closed:
            await self._subscription.unsubscribe()

    def check_silence(self) -> None:
        """Give up a consumer whose heartbeats stay away."""
        silent = time.perf_counter() - self._heard_at
        if silent > _SILENT_HEARTBEATS_MAX * self._limits.heartbeat_seconds:
            self._fail("the server is silent")

    async def _arrived(self, message: Msg) -> None:
        self._heard_at = now = time.perf_counter()
        if not message.reply.startswith(_ACK_PREFIX):
            await self._told(message)
            return
        self._wanted -= 1
        await self._take(message.data, place_of(message.reply), message.reply)
        if self._wanted <= self._limits.fetch_messages // 2:
            await self._ask()
        if now - self._turn_began >= self._limits.turn_seconds:
            await asyncio.sleep(0)
            self._turn_began = time.perf_counter()

    async def _told(self, message: Msg) -> None:
        """Read what the server says about our request instead of a message."""
        headers = message.headers or {}
        status, description = headers.get("Status", ""), headers.get("Description", "")
        if status == _HEARTBEAT:
            return
        passing = status in (_NO_MESSAGES, _EXPIRED) or (
            status == _CONFLICT and description.lower().startswith(_PASSING_CONFLICTS)
        )
        if not passing:
            self._fail(f"the server says {status} {description}".rstrip())
            return
        self._wanted = max(0, self._wanted - int(headers.get("Nats-Pending-Messages", self._wanted)))
        if self._wanted <= self._limits.fetch_messages // 2:
            await self._ask()

    async def _ask(self) -> None:
        limits, batch = self._limits, self._limits.fetch_messages - self._wanted
        heartbeat = round(limits.heartbeat_seconds * _NANOSECONDS)
        request = {
            "batch": batch,
            "max_bytes": limits.fetch_bytes_max,
            "expires": _EXPIRES_HEARTBEATS * heartbeat,
            "idle_heartbeat": heartbeat,
        }
        self._wanted += batch
        await self._client.publish(self._subject, json.dumps(request).encode(), reply=self._inbox)

    def _fail(self, reason: str) -> None:
        self.reason = self.reason or reason
        self.failed.set()


def place_of(acknowledge: str) -> Place:
    """Read the place out of the subject on which a message is acknowledged.

    `$JS.ACK.<stream>.<consumer>.<deliveries>.<stream sequence>.<consumer sequence>.<time>.<pending>`; newer servers
    put domain and account before the stream, and something random at the end.
    """
    tokens = acknowledge.split(".")
    at = 4 if len(tokens) == 9 else 6
    return Place(int(tokens[at + 1]), int(tokens[at]), int(tokens[at + 4]))
