"""Requests over core NATS that are only acknowledged there; answers go home over TCP.

The acknowledgement is an empty reply, at once, before the handler runs; a reply with text says why not. A worker has a
subject for each endpoint, `SERVICE.ENDPOINT-ID`, as Dynamo's workers have.
"""

import asyncio
import contextlib
from typing import Any

from kvrouter.errors import (
    DisconnectedError,
    MissingExtraError,
    NoInstancesError,
    RefusedError,
)
from kvrouter.transport.access import HEADER, Peer
from kvrouter.transport.callhome_worker import CallHomeWorker
from kvrouter.transport.context import Context
from kvrouter.transport.nats_access import NatsAccess
from kvrouter.transport.nats_connecting import connect_nats
from kvrouter.transport.refusal_texts import refusal_from_text, refusal_text

try:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.errors import Error as NatsError
    from nats.errors import MaxPayloadError, NoRespondersError
except ImportError as error:
    raise MissingExtraError("the request plane over NATS", "nats") from error

__all__ = ["NatsAckSender", "NatsAckServer"]

_ACK_SECONDS = 5.0
_CLOSE_SECONDS = 2.0


class NatsAckSender:
    """A `RequestSender`; addresses are subjects. An acknowledgement is waited for `ack_seconds` at most."""

    def __init__(
        self,
        server: str,
        *,
        ack_seconds: float = _ACK_SECONDS,
        access: NatsAccess | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        self._server, self._ack_seconds = server, ack_seconds
        self._access, self._options = access, options or {}
        self._client: Client | None = None
        self._connecting = asyncio.Lock()

    async def send(self, address: str, message: bytes, context: Context) -> None:
        """Send a request and wait for its acknowledgement; see `RequestSender`."""
        client = await self._connected()
        try:
            reply = await client.request(address, message, timeout=self._ack_seconds, headers=_headers(context))
        except NoRespondersError:
            raise NoInstancesError(f"nobody listens on {address}") from None
        except MaxPayloadError:
            message_text = f"a request of {len(message)} bytes exceeds NATS's limit of {client.max_payload}"
            raise RefusedError(message_text, code="INVALID_ARGUMENT") from None
        except (NatsError, OSError, TimeoutError) as error:
            raise DisconnectedError(f"no acknowledgement from {address}: {type(error).__name__}") from None
        if reply.data:
            raise refusal_from_text(reply.data)

    async def aclose(self) -> None:
        """Close the connection. Idempotent."""
        async with self._connecting:
            client, self._client = self._client, None
        if client is not None:
            await _close(client)

    async def _connected(self) -> Client:
        async with self._connecting:
            if self._client is None:
                self._client = await connect_nats(self._server, self._access, **self._options)
            return self._client


class NatsAckServer:
    """A `RequestServer` whose answers go home. `subject` is followed by `.ENDPOINT` for endpoints of their own."""

    def __init__(
        self,
        worker: CallHomeWorker,
        *,
        server: str,
        subject: str,
        access: NatsAccess | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        self._worker, self._server, self._subject = worker, server, subject
        self._access, self._options = access, options or {}
        self._client: Client | None = None

    @property
    def address(self) -> str:
        """The subject of this worker."""
        return self._subject

    async def start(self) -> None:
        """Begin to listen. Raises as `connect_nats`."""
        self._client = await connect_nats(self._server, self._access, **self._options)
        for subject in (self._subject, f"{self._subject}.*"):
            await self._client.subscribe(subject, cb=self._heard)
        await self._client.flush()
        self._worker.start()

    async def stop(self, *, drain_seconds: float = 0.0) -> None:
        """Take nothing more, let what runs finish, and close. Idempotent."""
        client, self._client = self._client, None
        if client is None:
            return
        await self._worker.endpoints.drain(drain_seconds)
        await self._worker.close()
        await _close(client)

    async def _heard(self, message: Msg) -> None:
        endpoint = message.subject.removeprefix(self._subject).removeprefix(".")
        answer = b""
        try:
            self._worker.accept(message.data, endpoint=endpoint, peer=_peer(message))
        except RefusedError as error:
            answer = refusal_text(error)
        with contextlib.suppress(NatsError, OSError):
            await message.respond(answer)


def _headers(context: Context) -> dict[str, str] | None:
    return dict(context.headers) or None


def _peer(message: Msg) -> Peer:
    """Nobody sees addresses through a server; the inbox of replies is a connection's."""
    return Peer(message.reply.rpartition(".")[0], (message.headers or {}).get(HEADER))


async def _close(client: Client) -> None:
    with contextlib.suppress(NatsError, OSError, TimeoutError):
        async with asyncio.timeout(_CLOSE_SECONDS):
            await client.close()
