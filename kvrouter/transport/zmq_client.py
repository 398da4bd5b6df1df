"""Requests over ZeroMQ: one DEALER per worker, each request a stream of envelopes.

ZeroMQ carries the parts of an envelope as frames. It never says that nobody is there, so the client says hello and
waits; it never says that a peer is gone, so ZMTP heartbeats close the connection and its monitor tells. A DEALER that
has lost its connection is thrown away: the worker knows it no more.
"""

import asyncio
from contextlib import suppress

import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from kvrouter.errors import DisconnectedError, UnauthenticatedError, UnreachableError, WireError
from kvrouter.transport.access import Token
from kvrouter.transport.client_stream import ClientStream
from kvrouter.transport.context import Context
from kvrouter.transport.envelope import Envelope, decode_envelope, encode_envelope
from kvrouter.transport.envelope_mux import EnvelopeMux
from kvrouter.transport.messages import Kind, Request
from kvrouter.transport.n_part import NPart
from kvrouter.transport.requesting import connected, encode_now
from kvrouter.transport.zmq_curve import ZmqCurve

__all__ = ["NO_STREAM", "ZmqRequestClient"]

NO_STREAM = bytes(16)
_LOST = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)


class _Peer:
    """One worker: a socket, its streams, and the tasks that move envelopes."""

    def __init__(
        self, context: zmq.asyncio.Context, address: str, heartbeat_seconds: float, curve: ZmqCurve | None
    ) -> None:
        self.mux = EnvelopeMux(self._send)
        self.reason: str | None = None
        self._address, self._heartbeat_seconds = address, heartbeat_seconds
        self._socket = context.socket(zmq.DEALER)
        # Credit bounds what is on its way; a high-water mark would drop instead.
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.HEARTBEAT_IVL, max(1, int(heartbeat_seconds * 1000)))
        self._socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, max(2, int(heartbeat_seconds * 3000)))
        try:
            if curve is not None:
                curve.secure_client(self._socket)
        except BaseException:
            self._socket.close(0)
            raise
        self._monitor = self._socket.get_monitor_socket(_LOST)
        self._socket.connect(address)
        self._greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks = [
            asyncio.create_task(work, name=f"zmq {address}") for work in (self._receive(), self._watch(), self._beat())
        ]
        self._send(Envelope(Kind.HELLO, NO_STREAM, 0))

    async def greeted(self, seconds: float) -> None:
        """Wait until the worker has answered; raises UnreachableError."""
        try:
            async with asyncio.timeout(seconds):
                await asyncio.shield(self._greeted)
        except TimeoutError:
            self.close(f"no answer within {seconds:g} seconds")
            raise UnreachableError(f"{self._address}: no answer within {seconds:g} seconds") from None

    def close(self, reason: str, *, is_unknown: bool = False) -> None:
        """Fail what is open and close the socket; `is_unknown`: the worker does not know our key. Idempotent."""
        if self.reason is not None:
            return
        self.reason = reason
        if not self._greeted.done():
            error = UnauthenticatedError if is_unknown else UnreachableError
            self._greeted.set_exception(error(f"{self._address}: {reason}"))
            self._greeted.exception()  # nobody may be waiting
        self.mux.lost(reason)
        for task in self._tasks:
            task.cancel()
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(0)

    async def ended(self) -> None:
        """Wait for the tasks of a closed peer."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _send(self, envelope: Envelope) -> None:
        if self.reason is None:
            # Resolves at once: nothing bounds the socket's queue but credit.
            self._socket.send_multipart(encode_envelope(envelope).parts, copy=False)

    async def _receive(self) -> None:
        while True:
            parts = await self._socket.recv_multipart()
            try:
                envelope = decode_envelope(NPart(tuple(parts)))
            except WireError:
                continue  # the next one of its stream finds the gap, and that is an error of the transport
            if envelope.kind is Kind.HELLO_ACK:
                if not self._greeted.done():
                    self._greeted.set_result(None)
            elif envelope.kind is not Kind.PONG:
                self.mux.receive(envelope)

    async def _watch(self) -> None:
        event = parse_monitor_message(await self._monitor.recv_multipart())["event"]
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            self.close("the worker does not know our key", is_unknown=True)
        else:
            self.close(f"the connection was lost ({(zmq.Event(event).name or 'gone').lower()})")

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._heartbeat_seconds)
            self._send(Envelope(Kind.PING, NO_STREAM, 0))


class ZmqRequestClient:
    """The client of the request plane over ZeroMQ. Addresses are endpoints: `tcp://host:port`, `ipc://path`.

    `token` goes with every request; `curve` turns encryption on, its files are read for every worker that is dialled.
    """

    def __init__(
        self,
        *,
        heartbeat_seconds: float = 5.0,
        connect_seconds: float = 5.0,
        token: Token | None = None,
        curve: ZmqCurve | None = None,
    ) -> None:
        self._heartbeat_seconds, self._connect_seconds = heartbeat_seconds, connect_seconds
        self._token, self._curve = token, curve
        self._context = zmq.asyncio.Context()
        self._peers: dict[str, _Peer] = {}
        self._closed = False

    async def request(self, address: str, request: Request, context: Context) -> ClientStream:
        """Send a request; see `RequestClient`."""
        peer = await connected(self._peer, address, context)
        encoded = encode_now(request, context, token=self._token)
        return await peer.mux.open(encoded, context, many_in=request.many_in).taken(request)

    async def aclose(self) -> None:
        """Close all connections. Idempotent."""
        self._closed = True
        peers, self._peers = self._peers, {}
        for peer in peers.values():
            peer.close("the client was closed")
            await peer.ended()
        with suppress(zmq.ZMQError):
            self._context.term()

    async def _peer(self, address: str) -> _Peer:
        if self._closed:
            raise DisconnectedError("the client is closed", retryable=False)
        peer = self._peers.get(address)
        if peer is None or peer.reason is not None:
            peer = self._peers[address] = _Peer(self._context, address, self._heartbeat_seconds, self._curve)
        await peer.greeted(self._connect_seconds)
        return peer
