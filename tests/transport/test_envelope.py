"""Envelopes on the wire, and streams over channels that lose, repeat and garble them (A-383, A-384)."""

import asyncio
import random
from contextlib import suppress

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvrouter.errors import TransportError, WireError
from kvrouter.transport.context import Context
from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.envelope import Envelope, decode_envelope, encode_envelope
from kvrouter.transport.envelope_mux import EnvelopeMux
from kvrouter.transport.messages import Kind, Request, encode_request
from kvrouter.transport.n_part import NPart, decode_n_part, encode_n_part
from tests.transport.conformance import eventually, run
from tests.transport.handlers import Handlers

ENVELOPES = st.builds(
    Envelope,
    st.sampled_from(Kind),
    st.binary(min_size=16, max_size=16),
    st.integers(0, (1 << 63) - 1),
    st.binary(max_size=100),
    st.booleans(),
)


@given(ENVELOPES)
def test_envelopes_come_back(envelope: Envelope) -> None:
    """B.2.2, as a blob too."""
    blob = encode_n_part(encode_envelope(envelope))

    again = decode_envelope(decode_n_part(blob))

    assert again._replace(payload=bytes(again.payload)) == envelope


def test_the_map_is_as_documented() -> None:
    """Names and types of every member."""
    data = encode_envelope(Envelope(Kind.DATA, b"s" * 16, 3, b"body", more=True))
    failure = encode_envelope(Envelope(Kind.RESET, b"s" * 16, 4, b"{}"))

    assert msgpack.unpackb(data.parts[0]) == {"v": 1, "k": "data", "sid": b"s" * 16, "seq": 3, "m": True}
    assert data.parts[1:] == (b"body",)
    assert msgpack.unpackb(failure.parts[0]) == {"v": 1, "k": "error", "sid": b"s" * 16, "seq": 4, "err": b"{}"}
    assert failure.error


@pytest.mark.parametrize(
    ("head", "text"),
    [
        (b"\xc1", "no msgpack"),
        (msgpack.packb([1]), "no map"),
        (msgpack.packb({1: 2}), "no msgpack"),
        (msgpack.packb({"v": 2}), "version"),
        (msgpack.packb({"v": 1, "k": "dance"}), "dance"),
        (msgpack.packb({"v": 1, "k": ["data"]}), "kind"),
        (msgpack.packb({"v": 1, "k": "data", "sid": b"short", "seq": 0}), "sid"),
        (msgpack.packb({"v": 1, "k": "data", "sid": b"s" * 16, "seq": -1}), "seq"),
        (msgpack.packb({"v": 1, "k": "data", "sid": b"s" * 16, "seq": 0, "err": b"{}"}), "err"),
        (bytes(70_000), "exceeds"),
    ],
)
def test_what_is_no_envelope_is_named(head: bytes, text: str) -> None:
    """An error that names the member."""
    with pytest.raises(WireError, match=text):
        decode_envelope(NPart((head,)))


class Channel:
    """Two muxes and what is between them; `spoil` says what becomes of each envelope on its way to the client."""

    def __init__(self, endpoints: Endpoints, spoil: "Spoil") -> None:
        loop = asyncio.get_running_loop()

        def to_client(envelope: Envelope) -> None:
            for each in spoil(envelope):
                loop.call_soon(self.client.receive, each)

        self.server = EnvelopeMux(to_client, endpoints=endpoints)

        def to_server(envelope: Envelope) -> None:
            loop.call_soon(self.server.receive, envelope)

        self.client = EnvelopeMux(to_server)

    async def ask(self, endpoint: str, body: bytes) -> list[bytes]:
        """Every item of an answer."""
        context = Context()
        request = encode_request(Request(endpoint=endpoint, body=body), id=context.id, headers={})
        async with self.client.open(request, context, many_in=False) as stream:
            return await stream.collect()


class Spoil:
    """Loses and repeats some of the envelopes."""

    def __init__(self, seed: int, *, lost: float = 0.0, repeated: float = 0.0) -> None:
        self._choice, self._lost, self._repeated = random.Random(seed), lost, repeated
        self.losses = 0

    def __call__(self, envelope: Envelope) -> list[Envelope]:
        """What arrives."""
        if self._choice.random() < self._lost:
            self.losses += 1
            return []
        return [envelope] * (1 + (self._choice.random() < self._repeated))


def serving() -> Endpoints:
    """Endpoints with the handlers of these tests."""
    endpoints = Endpoints()
    Handlers().register(endpoints)
    return endpoints


def test_repeated_envelopes_change_nothing() -> None:
    """Each has its number."""

    async def scenario() -> None:
        channel = Channel(serving(), Spoil(1, repeated=0.5))
        assert await channel.ask("count", b"200") == [b"%d" % number for number in range(200)]
        assert await channel.ask("echo", bytes(3 << 20)) == [bytes(3 << 20)]

    run(scenario())


@pytest.mark.parametrize("seed", range(10))
def test_lost_envelopes_are_never_lost_silently(seed: int) -> None:
    """What comes out is whole, or the stream fails; nothing is held afterwards on either side."""

    async def scenario() -> None:
        endpoints, spoil = serving(), Spoil(seed, lost=0.02)
        channel = Channel(endpoints, spoil)
        for _ in range(30):
            losses = spoil.losses
            asking = asyncio.create_task(channel.ask("count", b"50"))
            await eventually(lambda: asking.done() or spoil.losses > losses)  # noqa: B023 - called within the turn
            for _ in range(100):
                await asyncio.sleep(0)
            asking.cancel()
            with suppress(TransportError, asyncio.CancelledError):
                assert await asking == [b"%d" % number for number in range(50)]
        assert spoil.losses
        await eventually(lambda: not len(endpoints))
        assert len(channel.client) == 0

    run(scenario())


@given(st.lists(ENVELOPES, max_size=20))
def test_any_envelopes_are_survived(envelopes: list[Envelope]) -> None:
    """On both sides, for streams that exist and that do not."""

    async def scenario() -> None:
        endpoints = serving()
        server = EnvelopeMux(lambda _: None, endpoints=endpoints)
        client = EnvelopeMux(lambda _: None)
        request = encode_request(Request(endpoint="upper", many_in=True), id="r", headers={})
        server.receive(Envelope(Kind.REQUEST, b"s" * 16, 0, request))
        for number, envelope in enumerate(envelopes):
            for mux in (server, client):
                mux.receive(envelope)
                mux.receive(envelope._replace(stream=b"s" * 16, sequence=number + 1))
        server.lost("the test is over")
        client.lost("the test is over")
        while len(endpoints):
            await asyncio.sleep(0)
        assert len(server) == len(client) == 0

    asyncio.run(scenario())
