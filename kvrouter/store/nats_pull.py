"""Taking messages from a durable pull consumer of JetStream, one pull request at a time.

The client library's own `fetch` may leave a request behind at the server that takes the next message for nobody. Here
every request has a reply subject of its own, so that its end is known from that of another, and a message that comes
late is handed out by the next call.
"""

import asyncio
import json
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from kvrouter.errors import StoreError
from kvrouter.store.nats_connection import ANSWER_SECONDS, Client, Msg, NatsConnection, Subscription, api
from kvrouter.store.queues import Delivery, Message

__all__ = ["NatsConsumer"]

_NANOSECONDS: Final = 1_000_000_000
_MARGIN_SECONDS: Final = 2.0
_ENDED: Final = ("404", "408")
"""There is nothing; the request's time is over. Any other status tells that the consumer is not there."""


class NatsConsumer:
    """A `QueueConsumer` on NATS; `again` makes it once more at the server."""

    def __init__(
        self, connection: NatsConnection, stream: str, name: str, again: Callable[[], Awaitable[None]]
    ) -> None:
        self.name = name
        self._connection, self._again = connection, again
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}"
        self._client: Client | None = None
        self._subscription: Subscription | None = None
        self._inbox = ""
        self._requests = 0
        self._arrived: deque[Msg] = deque()
        self._ends: dict[str, str] = {}
        self._changed = asyncio.Event()

    async def fetch(self, messages_max: int = 16, *, wait_seconds: float = 1.0) -> list[Delivery]:
        """Return what there is; see `QueueConsumer`."""
        async with self._connection.connected() as client:
            await self._listen(client)
            deadline = time.monotonic() + wait_seconds
            await self._pull(client, messages_max, None)
            remaining = deadline - time.monotonic()
            if not self._arrived and remaining > 0.0:
                await self._pull(client, 1, remaining)
                if self._arrived and messages_max > 1:
                    await self._pull(client, messages_max - 1, None)
        return [_delivery(self._arrived.popleft()) for _ in range(min(messages_max, len(self._arrived)))]

    async def acknowledge(self, *deliveries: Delivery) -> None:
        """These are done with; see `QueueConsumer`."""
        await self._tell(deliveries, b"+ACK")

    async def give_back(self, *deliveries: Delivery, delay_seconds: float = 0.0) -> None:
        """These shall be delivered again; see `QueueConsumer`."""
        delay = b"" if delay_seconds <= 0.0 else b' {"delay": %d}' % int(delay_seconds * _NANOSECONDS)
        await self._tell(deliveries, b"-NAK" + delay)

    async def extend(self, *deliveries: Delivery) -> None:
        """These are still worked on; see `QueueConsumer`."""
        await self._tell(deliveries, b"+WPI")

    async def close(self) -> None:
        """Take nothing more; see `QueueConsumer`."""
        subscription, self._subscription, self._client = self._subscription, None, None
        if subscription is not None:
            try:
                async with self._connection.connected():
                    await subscription.unsubscribe()
                left = [_delivery(message) for message in self._arrived]
                self._arrived.clear()
                await self.give_back(*left)  # They came too late for the call that asked for them.
            except StoreError:
                return  # The server forgets it with the connection.

    async def _tell(self, deliveries: tuple[Delivery, ...], what: bytes) -> None:
        """Tell the server what became of messages, and wait until it has heard."""
        if not deliveries:
            return
        async with self._connection.connected() as client:
            answers = [client.request(delivery.token, what, timeout=ANSWER_SECONDS) for delivery in deliveries]
            for outcome in await asyncio.gather(*answers, return_exceptions=True):
                if isinstance(outcome, BaseException):
                    raise outcome

    async def _listen(self, client: Client) -> None:
        if self._client is client:
            return
        self._inbox = client.new_inbox()
        self._ends.clear()
        self._subscription = await client.subscribe(f"{self._inbox}.*", cb=self._heard)
        self._client = client

    async def _heard(self, message: Msg) -> None:
        status = (message.headers or {}).get(api.Header.STATUS)
        if status is None:
            self._arrived.append(message)
        elif message.subject in self._ends:
            self._ends[message.subject] = status
        self._changed.set()

    async def _pull(self, client: Client, count: int, wait_seconds: float | None) -> None:
        """Ask for messages: those that there are, or the next ones within `wait_seconds`."""
        wanted = len(self._arrived) + count
        status = await self._ask(client, wanted, count, wait_seconds)
        if status and status not in _ENDED:
            await self._again()
            await self._ask(client, wanted, count, wait_seconds)

    async def _ask(self, client: Client, wanted: int, count: int, wait_seconds: float | None) -> str:
        """Send one pull request and wait for its end; returns the status that ended it, empty if messages did."""
        self._requests += 1
        reply = f"{self._inbox}.{self._requests}"
        request: Mapping[str, object] = {"batch": count, "no_wait": True}
        if wait_seconds is not None:
            request = {"batch": count, "expires": max(1, int(wait_seconds * _NANOSECONDS))}
        self._ends[reply] = ""
        try:
            await client.publish(self._next, json.dumps(request).encode(), reply=reply)
            async with asyncio.timeout((wait_seconds or ANSWER_SECONDS) + _MARGIN_SECONDS):
                while not self._ends[reply] and len(self._arrived) < wanted:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            if not client.is_connected:
                raise
            return ""
        finally:
            status = self._ends.pop(reply)
        return status


def _delivery(raw: Msg) -> Delivery:
    metadata = raw.metadata
    message = Message(
        sequence=str(metadata.sequence.stream),
        data=raw.data,
        published=metadata.timestamp.timestamp(),
        id=(raw.headers or {}).get(api.Header.MSG_ID),
    )
    return Delivery(message=message, deliveries=metadata.num_delivered, token=raw.reply)
