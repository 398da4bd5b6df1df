"""The asking side of the benchmark of transports: one `Caller` for each kind of worker, all with the same two calls."""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from benchmarks.transports_side import GRPC_ITEMS, GRPC_UNARY, NATS_ITEMS, NATS_UNARY
from kvrouter.transport.context import Context
from kvrouter.transport.messages import Request
from kvrouter.transport.planes import RequestClient

__all__ = ["CALLERS", "Caller"]


class Caller(Protocol):
    """Asks one worker."""

    async def unary(self, body: bytes) -> None:
        """One request and its whole answer."""
        ...

    async def items(self, count: int) -> None:
        """One request and so many items."""
        ...

    async def aclose(self) -> None:
        """Close all connections."""
        ...


class _Ours:
    """Any client of the request plane."""

    def __init__(self, client: RequestClient, address: str) -> None:
        self._client, self._address = client, address

    async def unary(self, body: bytes) -> None:
        async with await self._client.request(self._address, Request(endpoint="echo", body=body), Context()) as stream:
            [answer] = await stream.collect()
        assert len(answer) == len(body), "not what was sent"

    async def items(self, count: int) -> None:
        request = Request(endpoint="count", body=b"%d" % count)
        left = count
        async with await self._client.request(self._address, request, Context()) as stream:
            async for _ in stream:
                left -= 1
        assert not left, "items are missing"

    async def aclose(self) -> None:
        await self._client.aclose()


class _PlainNats:
    """nats-py's own request and reply; items are messages to an inbox."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def unary(self, body: bytes) -> None:
        answer = await self._client.request(NATS_UNARY, body, timeout=30)
        assert len(answer.data) == len(body), "not what was sent"

    async def items(self, count: int) -> None:
        inbox = self._client.new_inbox()
        subscription = await self._client.subscribe(inbox, pending_msgs_limit=0, pending_bytes_limit=0)
        await self._client.publish(NATS_ITEMS, b"%d" % count, reply=inbox)
        for _ in range(count):
            await subscription.next_msg(timeout=30)
        await subscription.unsubscribe()

    async def aclose(self) -> None:
        await self._client.close()


class _PlainGrpc:
    """grpc.aio's own calls."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._unary, self._items = channel.unary_unary(GRPC_UNARY), channel.unary_stream(GRPC_ITEMS)

    async def unary(self, body: bytes) -> None:
        answer = await self._unary(body)
        assert len(answer) == len(body), "not what was sent"

    async def items(self, count: int) -> None:
        left = count
        async for _ in self._items(b"%d" % count):
            left -= 1
        assert not left, "items are missing"

    async def aclose(self) -> None:
        await self._channel.close()


async def _tcp(address: str, _: str) -> Caller:
    from kvrouter.transport.tcp_client import TcpRequestClient  # noqa: PLC0415 - only what is measured

    return _Ours(TcpRequestClient(), address)


async def _http(address: str, _: str) -> Caller:
    from kvrouter.transport.http_client import HttpRequestClient  # noqa: PLC0415 - as above

    return _Ours(HttpRequestClient(), address)


async def _zmq(address: str, _: str) -> Caller:
    from kvrouter.transport.zmq_client import ZmqRequestClient  # noqa: PLC0415 - as above

    return _Ours(ZmqRequestClient(), address)


async def _nats(address: str, server: str) -> Caller:
    from kvrouter.transport.nats_client import NatsRequestClient  # noqa: PLC0415 - as above

    return _Ours(NatsRequestClient(server), address)


async def _grpc(address: str, _: str) -> Caller:
    from kvrouter.transport.grpc_client import GrpcRequestClient  # noqa: PLC0415 - as above

    return _Ours(GrpcRequestClient(), address)


async def _call_home(address: str, _: str) -> Caller:
    from kvrouter.transport.callhome_client import CallHomeClient  # noqa: PLC0415 - as above
    from kvrouter.transport.callhome_listener import CallHomeListener  # noqa: PLC0415 - as above
    from kvrouter.transport.tcp_v0_acks import TcpV0Sender  # noqa: PLC0415 - as above

    return _Ours(CallHomeClient(TcpV0Sender(ack_seconds=30.0), CallHomeListener()), address)


async def _call_home_nats(address: str, server: str) -> Caller:
    from kvrouter.transport.callhome_client import CallHomeClient  # noqa: PLC0415 - as above
    from kvrouter.transport.callhome_listener import CallHomeListener  # noqa: PLC0415 - as above
    from kvrouter.transport.nats_acks import NatsAckSender  # noqa: PLC0415 - as above

    return _Ours(CallHomeClient(NatsAckSender(server, ack_seconds=30.0), CallHomeListener()), address)


async def _plain_nats(_: str, server: str) -> Caller:
    import nats  # noqa: PLC0415 - as above

    return _PlainNats(await nats.connect(server))


async def _plain_grpc(address: str, _: str) -> Caller:
    import grpc  # noqa: PLC0415 - as above

    return _PlainGrpc(grpc.aio.insecure_channel(address))


CALLERS: dict[str, Callable[[str, str], Awaitable[Caller]]] = {
    "tcp": _tcp,
    "call-home": _call_home,
    "call-home-unpooled": _call_home,
    "http": _http,
    "zmq": _zmq,
    "nats": _nats,
    "call-home-nats": _call_home_nats,
    "grpc": _grpc,
    "plain-nats": _plain_nats,
    "plain-grpc": _plain_grpc,
}
