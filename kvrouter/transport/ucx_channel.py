"""One endpoint of UCX as a channel of envelopes: each an active message, as the same N-part message that NATS carries.

Experimental. UCX says that a peer is gone where its transport does, so both sides also ask for signs of life. Messages
leave one after the other: UCX may let a short one overtake a long one, and an envelope that is late counts as lost.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from kvrouter.errors import MissingExtraError, WireError
from kvrouter.transport.access import Peer
from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.envelope import Envelope, decode_envelope, encode_envelope
from kvrouter.transport.envelope_mux import EnvelopeMux
from kvrouter.transport.messages import Kind
from kvrouter.transport.n_part import decode_n_part, encode_n_part

try:
    import numpy as np
    import ucxx
    from ucxx.exceptions import UCXError
except ImportError as missing:
    raise MissingExtraError("the request plane over UCX", "ucx") from missing

__all__ = ["UCXError", "UcxChannel", "UcxUse", "ucxx"]

_NO_STREAM = bytes(16)
_BEATS_MISSED_MAX = 3
_CLOSE_NANOSECONDS = 10**9


class UcxUse:
    """UCX is one for the whole process, and tied to the event loop that began with it: the last user ends it."""

    _users = 0

    def __init__(self) -> None:
        self._holds = False

    def begin(self) -> None:
        """Use UCX. Idempotent."""
        if not self._holds:
            self._holds = True
            UcxUse._users += 1

    def end(self) -> None:
        """Use it no more; every endpoint and listener is closed. Idempotent."""
        if not self._holds:
            return
        self._holds = False
        UcxUse._users -= 1
        if not UcxUse._users:
            with suppress(UCXError):  # somebody else in this process uses it too
                ucxx.reset()


class UcxChannel:
    """The streams over one endpoint; `run` moves envelopes until the peer is gone or `close` is called."""

    def __init__(
        self, endpoint: Any, *, heartbeat_seconds: float, endpoints: Endpoints | None = None, peer: Peer | None = None
    ) -> None:
        self.reason: str | None = None
        self.greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._endpoint, self._heartbeat_seconds = endpoint, heartbeat_seconds
        self._endpoints = endpoints
        self._out: asyncio.Queue[Envelope | None] = asyncio.Queue()  # bounded by the streams' credit
        self.mux = EnvelopeMux(self._out.put_nowait, endpoints=endpoints, peer=peer or Peer())
        self._heard = True
        self._over = asyncio.Event()
        self._flushed = asyncio.Event()

    def greet(self) -> None:
        """Say hello, on the side that dials."""
        self._out.put_nowait(Envelope(Kind.HELLO, _NO_STREAM, 0))

    def close(self, reason: str) -> None:
        """Fail what is open and end `run`. Idempotent."""
        if self.reason is None:
            self.reason = reason
            self.mux.lost(reason)
            if not self.greeted.done():
                self.greeted.set_exception(ConnectionError(reason))
                self.greeted.exception()  # nobody may be waiting
            self._out.put_nowait(None)
            self._over.set()

    async def flush(self, seconds: float) -> None:
        """Wait until what was said has left, at most so long."""
        self._out.put_nowait(None)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._flushed.wait(), seconds)

    async def run(self, on_end: Callable[[], None] = lambda: None) -> None:
        """Move envelopes, then close the endpoint."""
        tasks = [asyncio.create_task(work, name="ucx") for work in (self._write(), self._read(), self._beat())]
        try:
            await self._over.wait()
        finally:
            self.close("the endpoint was closed")
            for task in tasks:
                task.cancel()
            self._endpoint.abort(period=_CLOSE_NANOSECONDS)
            await asyncio.gather(*tasks, return_exceptions=True)
            del self._endpoint
            on_end()

    async def _write(self) -> None:
        try:
            while (envelope := await self._out.get()) is not None:
                data = encode_n_part(encode_envelope(envelope))
                await self._endpoint.am_send(np.frombuffer(data, dtype=np.uint8))
        except (UCXError, OSError) as error:
            self.close(f"the connection was lost ({type(error).__name__})")
        self._flushed.set()

    async def _read(self) -> None:
        try:
            while True:
                self._take(bytes(await self._endpoint.am_recv()))
        except (UCXError, OSError) as error:
            self.close(f"the connection was lost ({type(error).__name__})")

    def _take(self, data: bytes) -> None:
        self._heard = True
        try:
            envelope = decode_envelope(decode_n_part(data))
        except WireError:
            if self._endpoints is not None:  # at a client, the next one of its stream finds the gap
                self._endpoints.counters.malformed += 1
            return
        match envelope.kind:
            case Kind.HELLO:
                self._out.put_nowait(envelope._replace(kind=Kind.HELLO_ACK))
            case Kind.HELLO_ACK:
                if not self.greeted.done():
                    self.greeted.set_result(None)
            case Kind.PING:
                self._out.put_nowait(envelope._replace(kind=Kind.PONG))
            case Kind.PONG:
                pass
            case _:
                self.mux.receive(envelope)

    async def _beat(self) -> None:
        missed = 0
        while missed < _BEATS_MISSED_MAX:
            await asyncio.sleep(self._heartbeat_seconds)
            missed = 0 if self._heard else missed + 1
            self._heard = False
            self._out.put_nowait(Envelope(Kind.PING, _NO_STREAM, 0))
        self.close(f"the peer was silent for {missed * self._heartbeat_seconds:g} seconds")
