"""Many streams over a channel of envelopes: the same as `tcp_mux.py`, for transports that carry messages.

No sockets here: a transport gives each envelope that arrives from one peer to `receive`, and sends what `send` is
called with to that peer, in order. Channels may lose messages; a gap in a stream's sequence ends that stream.
"""

import os
from collections.abc import Awaitable, Callable
from itertools import count

from kvrouter.errors import ProtocolError, RefusedError, TransportError, WireError
from kvrouter.transport.access import Peer
from kvrouter.transport.assembly import RequestAssembly
from kvrouter.transport.client_stream import ClientStream
from kvrouter.transport.context import Context
from kvrouter.transport.delivery import AnyStream, deliver
from kvrouter.transport.duplex import StreamLimits
from kvrouter.transport.endpoints import EndpointCounters, Endpoints
from kvrouter.transport.envelope import Envelope
from kvrouter.transport.messages import Kind, decode_request, encode_error

__all__ = ["EnvelopeMux", "new_stream_id"]

_SOMEBODY = Peer()
_stream_prefix, _stream_numbers = os.urandom(8), count(1)


def new_stream_id() -> bytes:
    """16 bytes that no other stream of this or another process has."""
    return _stream_prefix + next(_stream_numbers).to_bytes(8, "big")


async def _always() -> None:
    """Nothing to wait for: credit alone bounds what a stream has on its way."""


class _StreamWire:
    """What one stream sends with; numbers its messages."""

    __slots__ = ("_id", "_mux", "received", "sent")

    def __init__(self, mux: "EnvelopeMux", stream_id: bytes) -> None:
        self._mux, self._id = mux, stream_id
        self.sent = self.received = 0

    def transmit(self, kind: Kind, payload: bytes | memoryview = b"", *, more: bool = False) -> None:
        self._mux.send(Envelope(kind, self._id, self.sent, payload, more))
        self.sent += 1

    async def writable(self) -> None:
        await self._mux.writable()

    def forget(self) -> None:
        self._mux.drop(self._id)


class EnvelopeMux:
    """One side of a channel to one peer. `endpoints` are given on the side that is asked, and who the peer is."""

    def __init__(
        self,
        send: Callable[[Envelope], None],
        *,
        limits: StreamLimits | None = None,
        endpoints: Endpoints | None = None,
        writable: Callable[[], Awaitable[None]] = _always,
        forgotten: Callable[[bytes], None] = lambda _: None,
        peer: Peer = _SOMEBODY,
    ) -> None:
        self.send, self.writable = send, writable
        self._forgotten, self._peer = forgotten, peer
        self.refusal: RefusedError | None = None
        """Why the last request that was refused was."""
        self._limits = limits if limits is not None else StreamLimits()
        self._endpoints = endpoints
        # A worker counts for all its connections; at a client a gap fails its stream, which is counted there.
        self._counters = EndpointCounters() if endpoints is None else endpoints.counters
        self._streams: dict[bytes, tuple[AnyStream, _StreamWire]] = {}
        self._opening: dict[bytes, _StreamWire] = {}
        self._assembly = RequestAssembly(message_bytes_max=self._limits.item_bytes_max)

    def __len__(self) -> int:
        """Streams that have not ended."""
        return len(self._streams)

    @property
    def is_idle(self) -> bool:
        """Whether there is neither a stream nor a request that is not whole."""
        return not self._streams and not self._opening

    def __contains__(self, stream_id: bytes) -> bool:
        """Whether a stream, or a request that is not whole, has that id."""
        return stream_id in self._streams or stream_id in self._opening

    def open(self, request: bytes, context: Context, *, many_in: bool, stream_id: bytes | None = None) -> ClientStream:
        """Send a request, encoded by `encode_request`."""
        stream_id = stream_id or new_stream_id()
        wire = _StreamWire(self, stream_id)
        stream = ClientStream(wire, context, self._limits, many_in=many_in)
        self._streams[stream_id] = stream, wire
        step = self._limits.frame_bytes_max
        view = memoryview(request)
        for at in range(0, max(1, len(request)), step):
            wire.transmit(Kind.REQUEST, view[at : at + step], more=at + step < len(request))
        return stream

    def receive(self, envelope: Envelope, peer: Peer | None = None) -> None:
        """Take in one envelope; whatever it is, this raises nothing. `peer` is who sent it, if there are several."""
        found = self._streams.get(envelope.stream)
        if found is not None:
            self._on_stream(*found, envelope)
        elif envelope.kind is Kind.REQUEST:
            self._on_request(envelope, self._peer if peer is None else peer)
        elif envelope.kind is Kind.KILL and envelope.stream in self._opening:
            self._opening.pop(envelope.stream)
            self._assembly.drop(envelope.stream)
        # Else it is the rest of a stream that has ended here: its sender does not know that yet.

    def lost(self, reason: str) -> None:
        """The peer is gone: every stream fails."""
        self._opening.clear()
        self._assembly.clear()
        for stream, _ in tuple(self._streams.values()):
            stream.on_lost(reason)
        self._streams.clear()

    def fail(self, stream_id: bytes, error: TransportError) -> None:
        """One stream has failed on its way; for channels that carry streams of several peers."""
        found = self._streams.get(stream_id)
        if found is not None:
            found[0].on_error(error)

    def lose(self, stream_id: bytes, reason: str) -> None:
        """The peer of one stream is gone; likewise."""
        self._opening.pop(stream_id, None)
        self._assembly.drop(stream_id)
        found = self._streams.get(stream_id)
        if found is not None:
            found[0].on_lost(reason)

    def drop(self, stream_id: bytes) -> None:
        """A stream has ended."""
        self._streams.pop(stream_id, None)
        self._forgotten(stream_id)

    def _on_stream(self, stream: AnyStream, wire: _StreamWire, envelope: Envelope) -> None:
        expected = wire.received
        if envelope.sequence < expected:
            return  # a duplicate
        if envelope.sequence > expected and envelope.kind is not Kind.KILL:
            self._counters.gaps += 1
            stream.reset(ProtocolError(f"messages {expected} to {envelope.sequence - 1} of the stream were lost"))
            return
        wire.received += 1
        try:
            known = deliver(stream, envelope.kind, envelope.payload, more=envelope.more)
        except ProtocolError as error:
            known = True
            stream.reset(error)
        self._counters.malformed += not known

    def _on_request(self, envelope: Envelope, peer: Peer) -> None:
        if self._endpoints is None:
            self._counters.malformed += 1
            return
        stream_id = envelope.stream
        wire = self._opening.pop(stream_id, None) or _StreamWire(self, stream_id)
        try:
            whole = self._piece(wire, envelope)
            if whole is None:
                if stream_id not in self._opening and wire.received == 1:
                    # Tells the requester which of several workers has it, so that the rest goes to the same one.
                    wire.transmit(Kind.WINDOW, bytes(4))
                self._opening[stream_id] = wire
                return
            decoded = decode_request(whole, bytes_max=self._limits.item_bytes_max)
            stream = self._endpoints.open(decoded, wire, self._limits, peer)
        except WireError as error:
            self._counters.malformed += 1
            wire.transmit(Kind.ACK, encode_error(RefusedError(str(error), code="INVALID_ARGUMENT")))
        except RefusedError as error:
            self.refusal = error
            wire.transmit(Kind.ACK, encode_error(error))
        else:
            self._streams[stream_id] = stream, wire
            wire.transmit(Kind.ACK)

    def _piece(self, wire: _StreamWire, envelope: Envelope) -> bytes | None:
        """The request, once all of its messages are here; each must follow the one before."""
        if envelope.sequence != wire.received:
            self._counters.gaps += 1
            self._assembly.drop(envelope.stream)
            raise RefusedError("a piece of the request was lost", code="UNAVAILABLE")
        wire.received += 1
        return self._assembly.add(envelope.stream, envelope.payload, more=envelope.more)
