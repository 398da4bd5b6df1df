"""Takes requests over ZeroMQ: one ROUTER, and for each DEALER that speaks to it a set of streams."""

import asyncio
from contextlib import suppress

import zmq
import zmq.asyncio

from kvrouter.errors import SettingsError, WireError
from kvrouter.transport.access import Peer
from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.envelope import Envelope, decode_envelope, encode_envelope
from kvrouter.transport.envelope_mux import EnvelopeMux
from kvrouter.transport.messages import Kind
from kvrouter.transport.n_part import NPart
from kvrouter.transport.zmq_curve import ZmqClients, ZmqCurve

__all__ = ["ZmqRequestServer"]


class _Peer:
    """One client: its streams, and when it was heard last."""

    __slots__ = ("heard_at", "mux")

    def __init__(self, mux: EnvelopeMux, now: float) -> None:
        self.mux, self.heard_at = mux, now


class ZmqRequestServer:
    """The server of the request plane over ZeroMQ. Clients that are silent for `silent_seconds` are given up.

    `curve` turns encryption on. `clients` says who is let in, where a folder says who may.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        *,
        endpoint: str = "tcp://127.0.0.1:*",
        advertise: str | None = None,
        silent_seconds: float = 30.0,
        peers_max: int = 1000,
        curve: ZmqCurve | None = None,
    ) -> None:
        self.endpoints = endpoints
        self.clients = (
            None if curve is None or curve.clients_path is None else ZmqClients(curve.clients_path, endpoints.counters)
        )
        self._curve = curve
        self.refused_peers = self.lost_peers = 0
        self._endpoint, self._advertise = endpoint, advertise
        self._silent_seconds, self._peers_max = silent_seconds, peers_max
        self._context: zmq.asyncio.Context | None = None
        self._socket: zmq.asyncio.Socket | None = None
        self._peers: dict[bytes, _Peer] = {}
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def address(self) -> str:
        """Where clients reach it."""
        if self._socket is None:
            raise RuntimeError("the server has not started")
        return self._advertise or self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def __len__(self) -> int:
        """Clients that are known now."""
        return len(self._peers)

    async def start(self) -> None:
        """Begin to listen.

        Raises:
            OSError: the address is taken.
            SettingsError: a key cannot be read.
        """
        context = self._context = zmq.asyncio.Context()
        socket = context.socket(zmq.ROUTER)
        # Credit bounds what is on its way; a high-water mark would drop instead.
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.LINGER, 1000)
        try:
            if self._curve is not None:
                self._curve.secure_server(socket)
            if self.clients is not None:
                self.clients.start(context)
            socket.bind(self._endpoint)
        except (zmq.ZMQError, SettingsError) as error:
            await self._close(socket)
            if isinstance(error, zmq.ZMQError):
                raise OSError(error.errno, f"{self._endpoint}: {error}") from None
            raise
        self._socket = socket
        self._tasks = [
            asyncio.create_task(self._receive(socket), name="zmq requests"),
            asyncio.create_task(self._forget_silent(), name="zmq silent clients"),
        ]

    async def stop(self, *, drain_seconds: float = 0.0) -> None:
        """Take nothing more, let what runs finish, and close. Idempotent."""
        socket = self._socket
        if socket is None:
            return
        await self.endpoints.drain(drain_seconds)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for peer in self._peers.values():
            peer.mux.lost("the worker has stopped")
        self._peers.clear()
        self._socket = None
        await self._close(socket)

    async def _close(self, socket: zmq.asyncio.Socket) -> None:
        """Close the socket and what it lives in, once what it has to send is gone."""
        socket.close()
        if self.clients is not None:
            await self.clients.stop()
        context, self._context = self._context, None
        if context is not None:
            with suppress(zmq.ZMQError):
                await asyncio.to_thread(context.term)

    async def _receive(self, socket: zmq.asyncio.Socket) -> None:
        loop = asyncio.get_running_loop()
        guard = self.endpoints.guard
        is_plain = guard is None or not guard.wants_addresses
        while True:
            address = ""
            if is_plain:
                identity, *parts = await socket.recv_multipart()
            else:  # Addresses are properties of messages that are not copied.
                frames = await socket.recv_multipart(copy=False)
                identity, *parts = (frame.bytes for frame in frames)
                address = str(frames[-1].get("Peer-Address"))
            try:
                envelope = decode_envelope(NPart(tuple(parts or (b"",))))
            except WireError:
                self.endpoints.counters.malformed += 1
                continue
            peer = self._known(socket, identity, loop.time(), address)
            if peer is None:
                continue
            peer.heard_at = loop.time()
            if envelope.kind is Kind.HELLO:
                self._send(socket, identity, envelope._replace(kind=Kind.HELLO_ACK))
            elif envelope.kind is Kind.PING:
                self._send(socket, identity, envelope._replace(kind=Kind.PONG))
            else:
                peer.mux.receive(envelope)

    def _known(self, socket: zmq.asyncio.Socket, identity: bytes, now: float, address: str) -> _Peer | None:
        peer = self._peers.get(identity)
        if peer is None:
            if len(self._peers) >= self._peers_max:
                self.refused_peers += 1
                return None
            mux = EnvelopeMux(
                lambda envelope: self._send(socket, identity, envelope), endpoints=self.endpoints, peer=Peer(address)
            )
            peer = self._peers[identity] = _Peer(mux, now)
        return peer

    def _send(self, socket: zmq.asyncio.Socket, identity: bytes, envelope: Envelope) -> None:
        if self._socket is not None:
            socket.send_multipart((identity, *encode_envelope(envelope).parts), copy=False)

    async def _forget_silent(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + self._silent_seconds / 4
            await asyncio.sleep(self._silent_seconds / 4)
            if loop.time() - due > self._silent_seconds / 4:
                continue  # this process itself was held up: what has arrived meanwhile is read first
            oldest = loop.time() - self._silent_seconds
            for identity, peer in tuple(self._peers.items()):
                if peer.heard_at < oldest:
                    self.lost_peers += 1
                    del self._peers[identity]
                    peer.mux.lost(f"the client was silent for {self._silent_seconds:g} seconds")
