"""A side of the request plane over core NATS: one connection, one inbox, and streams of envelopes with many peers.

NATS carries messages at most once. So every stream counts its envelopes and fails on a gap, a lost connection to the
server fails all of them (what was on its way is gone), and peers ask each other for signs of life through the server.
"""

import asyncio
from collections import deque
from contextlib import suppress
from typing import Any

from kvrouter.errors import MissingExtraError, NoInstancesError, WireError
from kvrouter.transport.access import Peer
from kvrouter.transport.client_stream import ClientStream
from kvrouter.transport.context import Context
from kvrouter.transport.duplex import StreamLimits, Wakeups
from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.envelope import Envelope, decode_envelope, encode_envelope
from kvrouter.transport.envelope_mux import EnvelopeMux, new_stream_id
from kvrouter.transport.messages import Kind
from kvrouter.transport.n_part import decode_n_part, encode_n_part
from kvrouter.transport.nats_access import NatsAccess
from kvrouter.transport.nats_connecting import connect_nats

try:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription
    from nats.errors import Error as NatsError
except ImportError as error:
    raise MissingExtraError("the request plane over NATS", "nats") from error

__all__ = ["NatsChannel"]

NO_STREAM = bytes(16)
_ENVELOPE_ROOM = 1024
"""Bytes of a message beside the payload: the head of the N-part message and the envelope."""
_WAITING_MESSAGES_MAX = 1024
_NO_RESPONDERS = "503"
_ANY_SEQUENCE = (1 << 32) - 1
_CLOSE_SECONDS = 2.0


class _Peer:
    """Somebody that streams are open with."""

    __slots__ = ("heard_at", "streams")

    def __init__(self, now: float) -> None:
        self.heard_at = now
        self.streams: set[bytes] = set()


class NatsChannel:
    """The connection and what runs over it. `connect` once, `close` at the end.

    A peer is known by its inbox; what is about a stream is sent to that inbox followed by the stream's id.
    """

    def __init__(
        self,
        server: str,
        *,
        heartbeat_seconds: float,
        endpoints: Endpoints | None = None,
        access: NatsAccess | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.lost_peers = self.lost_connections = 0
        self._server, self._heartbeat_seconds = server, heartbeat_seconds
        self._endpoints, self._access, self._options = endpoints, access, options or {}
        self._client: Client | None = None
        self._mux: EnvelopeMux | None = None
        self._inbox = ""
        self._subscription: Subscription | None = None
        self._is_known = False  # by the inbox of this connection
        self._targets: dict[bytes, str] = {}  # subject of streams of which nothing was sent yet
        self._held: dict[bytes, list[Envelope]] = {}  # what waits until it is known who has taken the request
        self._routes: dict[bytes, str] = {}
        self._peers: dict[str, _Peer] = {}
        self._out: deque[tuple[str, str, bytes]] = deque()
        self._work, self._room = asyncio.Event(), Wakeups()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def is_connected(self) -> bool:
        """Whether the server can be reached now."""
        return self._client is not None and self._client.is_connected and self._is_known

    async def connect(self) -> None:
        """Connect, and listen to the inbox. Raises as `connect_nats`."""
        client = await connect_nats(
            self._server, self._access, disconnected=self._disconnected, **(self._client_options() | self._options)
        )
        self._client = client
        limits = StreamLimits(frame_bytes_max=client.max_payload - _ENVELOPE_ROOM)
        self._mux = EnvelopeMux(
            self._send, limits=limits, endpoints=self._endpoints, writable=self._writable, forgotten=self._forget
        )
        await self._open_inbox(client)
        self._tasks = [
            asyncio.create_task(self._publish(client), name="nats out"),
            asyncio.create_task(self._beat(), name="nats heartbeats"),
        ]

    async def listen(self, subject: str, *, group: str = "") -> None:
        """Take envelopes from a subject; members of a group share them."""
        assert self._client is not None, "not connected"
        await self._subscribe(self._client, subject, group)

    def open(self, subject: str, request: bytes, context: Context, *, many_in: bool) -> ClientStream:
        """Send a request to whoever answers on a subject."""
        assert self._mux is not None, "not connected"
        stream_id = new_stream_id()
        self._targets[stream_id] = subject
        return self._mux.open(request, context, many_in=many_in, stream_id=stream_id)

    async def close(self, reason: str) -> None:
        """Fail what is open, send what waits, and close. Idempotent."""
        client, self._client = self._client, None
        if client is None or self._mux is None:
            return
        self._mux.lost(reason)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with suppress(NatsError, OSError, TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                while self._out and client.is_connected:
                    await self._publish_next(client)
                await client.close()
        self._out.clear()

    # -- in ----------------------------------------------------------------------------------------------------------

    async def _heard(self, message: Msg) -> None:
        assert self._mux is not None
        if message.headers and message.headers.get("Status") == _NO_RESPONDERS:
            self._nobody(message.subject)
            return
        try:
            envelope = decode_envelope(decode_n_part(message.data))
        except WireError:
            if self._endpoints is not None:  # at a client, the next one of its stream finds the gap
                self._endpoints.counters.malformed += 1
            return
        sender, dot, _ = message.reply.rpartition(".")
        if dot:
            self._heard_from(sender, envelope)
            if self._is_given_up(envelope):
                self._enqueue(sender, Envelope(Kind.KILL, envelope.stream, _ANY_SEQUENCE))
        # Nobody sees addresses through a server; an inbox is a connection's.
        self._mux.receive(envelope, Peer(sender))
        if envelope.stream in self._routes and envelope.stream not in self._mux:
            self._forget(envelope.stream)

    def _heard_from(self, sender: str, envelope: Envelope) -> None:
        stream_id = envelope.stream
        if sender in self._peers:
            self._peers[sender].heard_at = asyncio.get_running_loop().time()
        if envelope.kind is Kind.PING:
            self._enqueue(sender, envelope._replace(kind=Kind.PONG))
        elif envelope.kind is Kind.REQUEST or stream_id in self._held:
            self._route(stream_id, sender)

    def _is_given_up(self, envelope: Envelope) -> bool:
        """Whether a worker says that it has a request whose requester did not wait until it was known who has it."""
        taken = envelope.kind is Kind.ACK and not envelope.payload
        asked_for_more = envelope.kind is Kind.WINDOW
        unknown = self._mux is not None and envelope.stream not in self._mux
        return (taken or asked_for_more) and self._endpoints is None and unknown

    def _nobody(self, subject: str) -> None:
        """The server says that nobody listens where a request was sent."""
        assert self._mux is not None
        with suppress(ValueError):
            stream_id = bytes.fromhex(subject.rpartition(".")[2])
            self._mux.fail(stream_id, NoInstancesError("nobody listens on the request's subject"))

    def _route(self, stream_id: bytes, sender: str) -> None:
        self._routes[stream_id] = sender
        peer = self._peers.get(sender)
        if peer is None:
            peer = self._peers[sender] = _Peer(asyncio.get_running_loop().time())
        peer.streams.add(stream_id)
        for envelope in self._held.pop(stream_id, ()):
            self._enqueue(sender, envelope)

    def _forget(self, stream_id: bytes) -> None:
        self._targets.pop(stream_id, None)
        self._held.pop(stream_id, None)
        sender = self._routes.pop(stream_id, "")
        peer = self._peers.get(sender)
        if peer is not None:
            peer.streams.discard(stream_id)
            if not peer.streams:
                del self._peers[sender]

    # -- out ---------------------------------------------------------------------------------------------------------

    def _send(self, envelope: Envelope) -> None:
        stream_id = envelope.stream
        peer = self._routes.get(stream_id)
        if peer is not None:
            self._enqueue(peer, envelope)
        elif stream_id in self._targets:
            self._held[stream_id] = []
            self._append(self._targets.pop(stream_id), envelope)
        elif stream_id in self._held:
            self._held[stream_id].append(envelope)

    def _enqueue(self, peer: str, envelope: Envelope) -> None:
        self._append(f"{peer}.{envelope.stream.hex()}", envelope)

    def _append(self, subject: str, envelope: Envelope) -> None:
        reply = f"{self._inbox}.{envelope.stream.hex()}"
        self._out.append((subject, reply, encode_n_part(encode_envelope(envelope))))
        self._work.set()

    async def _writable(self) -> None:
        while len(self._out) > _WAITING_MESSAGES_MAX:
            await self._room.wait()

    async def _publish(self, client: Client) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            while self._out:
                await self._publish_next(client)
            self._room.wake()

    async def _publish_next(self, client: Client) -> None:
        subject, reply, data = self._out.popleft()
        with suppress(NatsError, OSError):  # the connection is lost, and with it every stream
            await client.publish(subject, data, reply=reply)

    # -- the connection ----------------------------------------------------------------------------------------------

    def _client_options(self) -> dict[str, Any]:
        return {
            # What is written while the server is away would arrive late and out of its time.
            "pending_size": 0,
            # A connection that carries nothing any more looks like any other one.
            "ping_interval": self._heartbeat_seconds,
            "reconnected_cb": self._reconnected,
        }

    async def _subscribe(self, client: Client, subject: str, group: str = "") -> "Subscription":
        # Credit bounds what waits; the client's own limits would drop.
        made = await client.subscribe(subject, group, cb=self._heard, pending_msgs_limit=0, pending_bytes_limit=0)
        with suppress(NatsError, OSError, TimeoutError):
            await client.flush()
        return made

    async def _open_inbox(self, client: Client) -> None:
        """Be somebody new: peers have streams with who we were, of which we know nothing any more."""
        former, self._inbox = self._subscription, client.new_inbox()
        self._subscription = await self._subscribe(client, f"{self._inbox}.*")
        self._is_known = True
        if former is not None:
            await former.unsubscribe()

    async def _reconnected(self) -> None:
        if self._client is not None:
            with suppress(NatsError, OSError):  # the connection is lost again, and will be made again
                await self._open_inbox(self._client)

    # -- losses ------------------------------------------------------------------------------------------------------

    async def _disconnected(self) -> None:
        self.lost_connections += 1
        self._is_known = False
        self._out.clear()
        if self._mux is not None:
            self._mux.lost("the connection to the NATS server was lost")
        for stream_id in (*self._routes, *self._held):
            self._forget(stream_id)
        self._room.wake()

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + self._heartbeat_seconds
            await asyncio.sleep(self._heartbeat_seconds)
            # This process itself may have been held up: what has arrived meanwhile is read before anybody is judged.
            held_up = loop.time() - due > self._heartbeat_seconds
            for inbox, peer in tuple(self._peers.items()):
                silent = loop.time() - peer.heard_at
                if held_up or silent < 3 * self._heartbeat_seconds:
                    self._enqueue(inbox, Envelope(Kind.PING, NO_STREAM, 0))
                else:
                    self._lose(peer, silent)

    def _lose(self, peer: _Peer, silent: float) -> None:
        assert self._mux is not None
        self.lost_peers += 1
        for stream_id in tuple(peer.streams):
            self._mux.lose(stream_id, f"the peer was silent for {silent:.1f} seconds")
            self._forget(stream_id)
