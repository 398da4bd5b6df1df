"""One call of gRPC as a channel of envelopes: what is the same on both of its sides."""

import asyncio
from collections.abc import Awaitable, Callable

from kvrouter.transport.access import Peer
from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.envelope import Envelope, decode_envelope, encode_envelope
from kvrouter.transport.envelope_mux import EnvelopeMux
from kvrouter.transport.grpc_messages import decode_message, encode_message
from kvrouter.transport.messages import Kind

__all__ = ["GrpcExchange", "channel_options"]

_FLUSH_SECONDS = 1.0
_PINGS_UNANSWERED_MAX = 2
_NO_STREAM = bytes(16)


class GrpcExchange:
    """The stream of one call, and what is to be written to it. `over` is set when both directions have ended."""

    def __init__(self, *, endpoints: Endpoints | None = None, peer: Peer | None = None) -> None:
        self.over = asyncio.Event()
        self.received = 0
        self._out: asyncio.Queue[Envelope | None] = asyncio.Queue()  # bounded by the stream's credit
        self.mux = EnvelopeMux(
            self._out.put_nowait, endpoints=endpoints, forgotten=self._forgotten, peer=peer or Peer()
        )

    def finish(self) -> None:
        """Let `write_all` return once what waits is written."""
        self._out.put_nowait(None)

    async def write_all(self, write: Callable[[bytes], Awaitable[object]]) -> None:
        """Write every envelope until `finish`."""
        while (envelope := await self._out.get()) is not None:
            await write(encode_message(encode_envelope(envelope)))

    def ping(self) -> None:
        """Ask for a sign of life."""
        self._out.put_nowait(Envelope(Kind.PING, _NO_STREAM, 0))

    async def until_ended(
        self, reading: "asyncio.Task[None]", over: "asyncio.Task[bool]", *, keepalive_seconds: float, peer: str
    ) -> bool:
        """Wait for the end of the call or the stream. False where the peer left two pings unanswered, and is lost.

        gRPC's own keep-alive is for the connection, and holds its pings back for a minute where nothing else is sent.
        """
        received, unanswered = -1, 0
        while unanswered <= _PINGS_UNANSWERED_MAX:
            done, _ = await asyncio.wait(
                (reading, over), timeout=keepalive_seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if done:
                return True
            unanswered = 0 if self.received != received else unanswered + 1
            received = self.received
            self.ping()
        self.mux.lost(f"the {peer} was silent for {_PINGS_UNANSWERED_MAX * keepalive_seconds:g} seconds")
        return False

    def read(self, data: bytes) -> None:
        """Take in one message; raises WireError for what is none."""
        self.received += 1
        envelope = decode_envelope(decode_message(data))
        if envelope.kind is Kind.PING:
            self._out.put_nowait(envelope._replace(kind=Kind.PONG))
        elif envelope.kind is not Kind.PONG:
            self.mux.receive(envelope)

    def _forgotten(self, _: bytes) -> None:
        self.over.set()
        self.finish()


async def flushed(writing: "asyncio.Task[None]", *, seconds: float | None = None) -> None:
    """Give a writer a moment, or `seconds`, to write what waits, then end it."""
    await asyncio.wait((writing,), timeout=_FLUSH_SECONDS if seconds is None else seconds)
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)


def channel_options(keepalive_seconds: float) -> list[tuple[str, int]]:
    """What both sides of a connection are set to; pings of the peer are never too many."""
    milliseconds = max(1, int(keepalive_seconds * 1000))
    return [
        ("grpc.keepalive_time_ms", milliseconds),
        ("grpc.keepalive_timeout_ms", milliseconds),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10),
    ]
