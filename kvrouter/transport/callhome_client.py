"""Requests over one transport, answers home over TCP: the shape of deployments with NATS or HTTP requests."""

import asyncio
from typing import Protocol

import msgspec

from kvrouter.errors import DeadlineError, DisconnectedError
from kvrouter.transport.access import Token
from kvrouter.transport.callhome_listener import CallHomeListener, Expected
from kvrouter.transport.callhome_wire import encode_connection_info
from kvrouter.transport.client_stream import ClientStream
from kvrouter.transport.context import Context
from kvrouter.transport.messages import Request
from kvrouter.transport.requesting import encode_now
from kvrouter.transport.two_part import decode_two_part, encode_two_part

__all__ = ["CallHomeClient", "RequestSender"]


_CALL_HOME_SECONDS = 10.0


class RequestSender(Protocol):
    """Carries a request to a worker and an acknowledgement back, and nothing else."""

    async def send(self, address: str, message: bytes, context: Context) -> None:
        """Return when the worker has taken the request.

        Raises:
            RefusedError: it has not.
            UnreachableError, DisconnectedError, DeadlineError, NoInstancesError: nobody knows, or nobody is there.
        """
        ...

    async def aclose(self) -> None:
        """Close all connections. Idempotent."""
        ...


class CallHomeClient:
    """A `RequestClient`: any sender of requests, and a listener for the answers. Closes both when it is closed.

    `token` goes with every request.
    """

    def __init__(
        self,
        sender: RequestSender,
        listener: CallHomeListener,
        *,
        call_home_seconds: float = _CALL_HOME_SECONDS,
        token: Token | None = None,
    ) -> None:
        self.listener = listener
        self._sender, self._call_home_seconds, self._token = sender, call_home_seconds, token
        self._expected: dict[str, set[Expected]] = {}
        self._starting = asyncio.Lock()
        self._started = self._closed = False

    async def request(self, address: str, request: Request, context: Context) -> ClientStream:
        """Send a request; see `RequestClient`."""
        await self._ready()
        encoded = encode_now(request, context, token=self._token)
        expected, infos = self.listener.register(context, request.codec, many_in=request.many_in)
        told: dict[str, object] = {"connection_info": encode_connection_info(infos["response"])}
        if request.many_in:
            told["request_stream_connection_info"] = encode_connection_info(infos["request"])
        stream = expected.stream
        try:
            async with asyncio.timeout_at(context.deadline):
                await self._sender.send(address, _with(encoded, told), context)
        except TimeoutError:
            await stream.aclose()
            raise DeadlineError(f"request {context.id} was not taken within its deadline") from None
        except BaseException:
            await stream.aclose()
            raise
        stream.on_ack(b"")
        expected.taken(self._call_home_seconds)
        self._note(address, expected)
        return await stream.taken(request)

    def lose(self, address: str) -> None:
        """A worker is gone, as discovery says: whatever it has taken and not answered fails."""
        for expected in tuple(self._expected.get(address, ())):
            expected.stream.on_lost(f"the worker at {address} is gone")

    def _note(self, address: str, expected: Expected) -> None:
        taken = self._expected.setdefault(address, set())
        taken.add(expected)

        def forget() -> None:
            taken.discard(expected)
            if not taken and self._expected.get(address) is taken:
                del self._expected[address]

        expected.stream.when_closed(forget)

    async def aclose(self) -> None:
        """Close all connections; streams that have not ended fail. Idempotent."""
        self._closed = True
        async with self._starting:
            await self._sender.aclose()
            await self.listener.close()

    async def _ready(self) -> None:
        async with self._starting:
            if self._closed:
                raise DisconnectedError("the client is closed", retryable=False)
            if not self._started:
                await self.listener.start()
                self._started = True


def _with(encoded: bytes, members: dict[str, object]) -> bytes:
    """Put further members into a request's control header."""
    header, body = decode_two_part(encoded)
    return encode_two_part(msgspec.json.encode(msgspec.json.decode(header) | members), body)
