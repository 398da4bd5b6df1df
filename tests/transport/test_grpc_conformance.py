"""The gRPC transport passes the suite of the request plane; its messages are protobuf's."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvrouter.errors import WireError
from kvrouter.transport import grpc_exchange
from kvrouter.transport.context import Context
from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.grpc_client import GrpcRequestClient
from kvrouter.transport.grpc_messages import decode_message, encode_message
from kvrouter.transport.grpc_server import GrpcRequestServer
from kvrouter.transport.messages import Request
from kvrouter.transport.n_part import NPart
from tests.transport.conformance import RequestPlaneContract, run
from tests.transport.handlers import Handlers


class TestGrpc(RequestPlaneContract):
    """A-381, A-389: over loopback."""

    transport = "grpc_calls"

    def client(self, **options: Any) -> GrpcRequestClient:
        """A client; its pings are slow unless asked for."""
        return GrpcRequestClient(keepalive_seconds=options.get("heartbeat_seconds", 30.0))

    def nowhere(self) -> str:
        """Nobody may listen on port 1 of loopback."""
        return "127.0.0.1:1"


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=8), st.booleans(), st.booleans())
def test_messages_come_back(parts: list[bytes], control: bool, error: bool) -> None:
    """`repeated bytes parts = 1; uint32 flags = 2`."""
    decoded = decode_message(encode_message(NPart(tuple(parts), control, error)))

    assert ([bytes(part) for part in decoded.parts], decoded.control, decoded.error) == (parts, control, error)


def test_the_bytes_are_those_of_protobuf() -> None:
    """As `protoc --encode` writes them; fields of later versions are skipped."""
    assert encode_message(NPart((b"ab", b"c" * 200), error=True)).hex() == "0a0261620ac801" + "63" * 200 + "1004"
    later = bytes.fromhex("1a03787878" + "2507000000" + "290700000000000000" + "3064" + "0a0161")
    assert decode_message(later).parts == (b"a",)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_message_or_an_error(data: bytes) -> None:
    """Never another exception."""
    with suppress(WireError):
        assert decode_message(data).parts


@pytest.mark.parametrize("data", [b"", b"\x0a\x05ab", b"\x0a", b"\x0b", b"\xff" * 11])
def test_what_is_cut_is_refused(data: bytes) -> None:
    """Empty, short, of a wire type that is no more, without an end."""
    with pytest.raises(WireError):
        decode_message(data)


def test_an_answer_is_not_cut_off_because_writing_it_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its handler has ended long before its last item is on the wire; what is hurried are calls that nobody hears."""
    monkeypatch.setattr(grpc_exchange, "_FLUSH_SECONDS", 0.0)

    async def scenario() -> None:
        endpoints = Endpoints()
        Handlers().register(endpoints)
        server, client = GrpcRequestServer(endpoints), GrpcRequestClient()
        await server.start()
        request = Request(endpoint="count", body=b"2000")
        async with await client.request(server.address, request, Context()) as stream:
            assert len(await stream.collect()) == 2000
        await client.aclose()
        await server.stop()

    run(scenario())
