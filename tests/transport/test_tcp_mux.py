"""The multiplexed connection as a pure thing: handshake, credit, farewells, and whatever bytes a peer may send."""

import asyncio
import json
import random
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvrouter.errors import RefusedError
from kvrouter.transport import server_stream
from kvrouter.transport.access import AccessGuard, StaticKeys
from kvrouter.transport.context import Context
from kvrouter.transport.endpoints import Endpoints
from kvrouter.transport.flow import Inbound, Outbound
from kvrouter.transport.messages import Kind, Request, encode_request
from kvrouter.transport.tcp_frames import ENDS, HEAD, MORE, NO_STREAM, Hello, head_of
from kvrouter.transport.tcp_mux import MuxLimits, TcpMux
from tests.transport.handlers import Handlers

STREAM = b"s" * 16
HELLO = json.dumps({"proto": "kvr-mux", "versions": [1]}).encode()


class Recorder:
    """Keeps what a mux would send."""

    def __init__(self) -> None:
        self.frames: list[tuple[int, bytes, bytes]] = []
        self.reason: str | None = None
        self.is_ready = False

    def write(self, head: bytes, payload: bytes | memoryview) -> None:
        """Keep a frame."""
        length, kind, _, _, stream = HEAD.unpack(head)
        assert length == len(payload)
        self.frames.append((kind, stream, bytes(payload)))

    async def writable(self) -> None:
        """There is always room."""

    def ready(self) -> None:
        """The handshake is done."""
        self.is_ready = True

    def close(self, reason: str) -> None:
        """Keep why."""
        self.reason = reason

    def kinds(self) -> list[int]:
        """The kinds of all frames."""
        return [kind for kind, _, _ in self.frames]


def frame(kind: int, payload: bytes = b"", stream: bytes = NO_STREAM, flags: int = 0) -> bytes:
    """One frame as bytes."""
    return head_of(kind, len(payload), stream, flags) + payload


def accepted(*, greeted: bool = True, **limits: int) -> tuple[TcpMux, Recorder, Endpoints]:
    """The accepting side of a connection, after the handshake."""
    endpoints, output = Endpoints(), Recorder()
    Handlers().register(endpoints)
    mux = TcpMux(output, MuxLimits(**limits), endpoints=endpoints)
    if greeted:
        mux.receive(frame(Kind.HELLO, HELLO))
        output.frames.clear()
    return mux, output, endpoints


def request_bytes(endpoint: str = "echo", body: bytes = b"body", name: str = "r", *, many_in: bool = False) -> bytes:
    """A request as it goes over the wire."""
    return encode_request(Request(endpoint=endpoint, body=body, many_in=many_in), id=name, headers={})


async def settled(endpoints: Endpoints) -> None:
    """Let handlers run to their end."""
    while len(endpoints):
        await asyncio.sleep(0)


def test_the_handshake_agrees_on_version_and_limits() -> None:
    """B.7c: HELLO, then HELLO_ACK with what this side takes."""
    mux, output, _ = accepted(greeted=False, frame_bytes_max=5000, window_bytes=6000)

    mux.receive(frame(Kind.HELLO, HELLO))

    ((kind, stream, payload),) = output.frames
    assert (kind, stream) == (Kind.HELLO_ACK, NO_STREAM)
    told = json.loads(payload)
    assert (told["version"], told["max_frame"], told["window"]) == (1, 5000, 6000)
    assert output.is_ready


@pytest.mark.parametrize(
    ("first", "text"),
    [
        (frame(Kind.PING, bytes(8)), "HELLO is expected"),
        (frame(Kind.HELLO, b"{}"), "proto"),
        (frame(Kind.HELLO, b"\xff"), "Hello"),
        (frame(Kind.HELLO, json.dumps({"proto": "other", "versions": [1]}).encode()), "other"),
        (frame(Kind.HELLO, json.dumps({"proto": "kvr-mux", "versions": [7]}).encode()), "versions"),
        (frame(Kind.HELLO, json.dumps({"proto": "kvr-mux", "versions": [1], "window": 1}).encode()), "window"),
        (pack(">IBBH16s", 1 << 30, Kind.HELLO, 0, 0, NO_STREAM), "exceeds the limit"),
        (pack(">IBBH16s", 0, Kind.HELLO, 0, 9, NO_STREAM), "reserved"),
        (b"GET / HTTP/1.1\r\nHost: somewhere\r\n\r\n", "reserved"),
    ],
)
def test_a_bad_handshake_closes_the_connection_with_a_reason(first: bytes, text: str) -> None:
    """Whoever dialled wrongly is told why."""
    mux, output, _ = accepted(greeted=False)

    mux.receive(first)

    assert output.reason is not None
    assert text in output.reason
    assert output.kinds() == [Kind.RESET]


def test_a_wrong_token_is_refused() -> None:
    """A-140: with a code that says so."""
    output = Recorder()
    mux = TcpMux(output, MuxLimits(), endpoints=Endpoints(guard=AccessGuard(authorise=StaticKeys({"us": "right"}))))

    mux.receive(frame(Kind.HELLO, json.dumps({"proto": "kvr-mux", "versions": [1], "token": "wrong"}).encode()))

    assert json.loads(output.frames[0][2])["code"] == "UNAUTHENTICATED"
    assert mux.protocol_errors == 0


def test_a_request_is_answered_in_the_documented_order() -> None:
    """A-280: ACK, PROLOGUE, DATA, END, all under the request's own id."""

    async def scenario() -> None:
        mux, output, endpoints = accepted()
        mux.receive(frame(Kind.REQUEST, request_bytes(), STREAM))
        await settled(endpoints)
        assert output.frames == [
            (Kind.ACK, STREAM, b""),
            (Kind.PROLOGUE, STREAM, b""),
            (Kind.DATA, STREAM, b"body"),
            (Kind.END, STREAM, b""),
        ]
        assert mux.streams == {}

    asyncio.run(scenario())


def test_a_request_may_come_in_several_frames() -> None:
    """Each within the limit of a frame, all within that of a message."""

    async def scenario() -> None:
        mux, output, endpoints = accepted()
        whole = request_bytes(body=bytes(100))
        for at in range(0, len(whole), 50):
            last = at + 50 >= len(whole)
            mux.receive(frame(Kind.REQUEST, whole[at : at + 50], STREAM, 0 if last else MORE))
        await settled(endpoints)
        assert (Kind.DATA, STREAM, bytes(100)) in output.frames

    asyncio.run(scenario())


def test_what_is_no_request_is_refused_by_name() -> None:
    """A-134: the connection goes on."""
    mux, output, _ = accepted()

    mux.receive(frame(Kind.REQUEST, b"plain text", STREAM))

    ((kind, _, payload),) = output.frames
    assert kind == Kind.ACK
    assert json.loads(payload)["code"] == "INVALID_ARGUMENT"
    assert "two-part" in json.loads(payload)["message"]
    assert output.reason is None


def test_incomplete_requests_are_bounded() -> None:
    """Neither one nor many of them can fill the memory."""
    mux, output, _ = accepted(frame_bytes_max=5000, message_bytes_max=9000, assembling_bytes_max=20_000)

    for number in range(1, 9):
        mux.receive(frame(Kind.REQUEST, bytes(4000), number.to_bytes(16, "big"), MORE))

    refusals = [json.loads(payload)["code"] for kind, _, payload in output.frames if kind == Kind.ACK]
    assert refusals
    assert set(refusals) == {"RESOURCE_EXHAUSTED"}
    for _ in range(5):
        mux.receive(frame(Kind.REQUEST, bytes(3000), STREAM, MORE))
    assert any(stream == STREAM and kind == Kind.ACK for kind, stream, _ in output.frames)
    assert output.reason is None


def test_a_frame_that_is_too_long_fails_its_stream_only() -> None:
    """B.7c: its bytes are skipped, and the next frame is understood."""

    async def scenario() -> None:
        mux, output, endpoints = accepted(frame_bytes_max=5000)
        data = frame(Kind.REQUEST, bytes(6000), STREAM) + frame(Kind.PING, b"12345678")
        for at in range(0, len(data), 999):
            mux.receive(data[at : at + 999])
        assert output.kinds() == [Kind.ACK, Kind.PONG]
        assert output.frames[1][2] == b"12345678"
        assert not len(endpoints)

    asyncio.run(scenario())


def test_unknown_kinds_are_ignored_only_where_they_may_be() -> None:
    """Flag 128 marks what a later version may add."""
    mux, output, _ = accepted()

    mux.receive(frame(99, b"new", flags=128))
    assert mux.protocol_errors == 0
    mux.receive(frame(99, b"new"))

    assert mux.protocol_errors == 1
    assert output.kinds() == [Kind.RESET]


def test_data_for_a_stream_that_has_ended_is_ignored() -> None:
    """Its sender does not know that yet."""
    mux, output, _ = accepted()

    for kind in (Kind.DATA, Kind.END, Kind.STOP, Kind.KILL, Kind.WINDOW, Kind.RESET):
        mux.receive(frame(kind, b"\0\0\0\1", STREAM))

    assert output.frames == []
    assert output.reason is None


def test_data_beyond_the_window_ends_the_connection() -> None:
    """B.7c: a sender that takes no notice of credit cannot fill the memory, and has lost count of more than that."""

    async def scenario() -> None:
        mux, output, endpoints = accepted(window_bytes=5000)
        mux.receive(frame(Kind.REQUEST, request_bytes("hang", many_in=True), STREAM))
        mux.receive(frame(Kind.DATA, bytes(4900), STREAM))
        mux.receive(frame(Kind.DATA, bytes(100), STREAM) + frame(Kind.PING, bytes(8)))
        await settled(endpoints)
        assert output.kinds() == [Kind.ACK, Kind.RESET, Kind.RESET]
        assert [stream for _, stream, _ in output.frames] == [STREAM, STREAM, NO_STREAM]
        assert output.reason is not None
        assert "window of 5000 bytes" in output.reason
        assert (mux.streams, mux.protocol_errors) == ({}, 1)

    asyncio.run(scenario())


def test_a_request_may_say_that_nothing_follows() -> None:
    """B.7c: bit 0 of its last frame is the end of its items, whether there could have been any or not."""

    async def scenario() -> None:
        mux, output, endpoints = accepted()
        mux.receive(frame(Kind.REQUEST, request_bytes("upper", many_in=True), STREAM, ENDS))
        mux.receive(frame(Kind.REQUEST, request_bytes(name="s"), b"t" * 16, ENDS))
        await settled(endpoints)
        assert [kind for kind, stream, _ in output.frames if stream == STREAM] == [Kind.ACK, Kind.PROLOGUE, Kind.END]
        assert mux.streams == {}

    asyncio.run(scenario())


def test_work_that_nobody_waits_for_any_more_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """B.5: a worker keeps the deadline by itself: the kill of a requester that was cut off never comes."""
    monkeypatch.setattr(server_stream, "_GRACE_SECONDS", 0.0)

    async def scenario() -> None:
        mux, output, endpoints = accepted()
        late = encode_request(Request(endpoint="hang"), id="late", headers={}, remaining_seconds=0.001)
        mux.receive(frame(Kind.REQUEST, late, STREAM))
        async with asyncio.timeout(60):
            await settled(endpoints)
        assert output.kinds() == [Kind.ACK, Kind.PROLOGUE]
        assert json.loads(output.frames[1][2])["code"] == "DEADLINE_EXCEEDED"
        assert mux.streams == {}

    asyncio.run(scenario())


def test_how_far_a_peer_has_read_is_taken_and_changes_nothing() -> None:
    """B.7c: CONN_ACK, by whoever keeps what he has sent."""
    mux, output, _ = accepted()

    mux.receive(frame(Kind.CONN_ACK, bytes(8)))

    assert (output.frames, output.reason, mux.protocol_errors) == ([], None, 0)


@given(st.lists(st.integers(0, 5000), max_size=30), st.integers(256, 4096), st.randoms(use_true_random=False))
def test_credit_moves_every_item_and_never_more_than_the_window(
    lengths: list[int], window: int, order: random.Random
) -> None:
    """Whatever the lengths and the order of taking: all arrive, and what waits is bounded."""
    inbound = Inbound(window_bytes=window, item_bytes_max=5000)
    outbound = Outbound(window_bytes=window)
    pieces = [(piece, more) for length in lengths for piece, more in outbound.pieces(bytes(length))]
    taken: list[int] = []
    while pieces or len(inbound):
        moved = False
        if pieces and outbound.spend(pieces[0][0]):
            piece, more = pieces.pop(0)
            inbound.put(bytes(piece), more=more)
            moved = True
        if len(inbound) and (not moved or order.random() < 0.3):
            taken.append(len(inbound.take()))
            moved = True
        credit = inbound.grant()
        outbound.credit += credit
        assert moved or credit, "nobody can go on"
        assert inbound.waiting_bytes <= window + 5000
    assert taken == lengths


def test_an_item_beyond_its_limit_is_refused() -> None:
    """In whatever pieces it comes."""
    inbound = Inbound(window_bytes=10_000, item_bytes_max=1000)
    inbound.put(bytes(600), more=True)
    with pytest.raises(RefusedError, match="limit of 1000"):
        inbound.put(bytes(600), more=True)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 255), st.binary(max_size=40), st.booleans()), max_size=20))
def test_any_frames_are_survived(frames: list[tuple[int, int, bytes, bool]]) -> None:
    """Every order of every kind: an error at most, never an exception."""

    async def scenario() -> None:
        mux, output, endpoints = accepted()
        mux.receive(frame(Kind.REQUEST, request_bytes("upper"), STREAM))
        for kind, flags, payload, about_stream in frames:
            mux.receive(frame(kind, payload, STREAM if about_stream else NO_STREAM, flags))
        mux.lost("the test is over")
        await settled(endpoints)
        assert mux.streams == {}
        assert output.reason is None or mux.protocol_errors

    asyncio.run(scenario())


@pytest.mark.parametrize("seed", range(20))
def test_mutated_bytes_are_survived(seed: int) -> None:
    """A thousand damaged conversations each: no exception, and nothing is held afterwards."""
    choice = random.Random(seed)
    whole = frame(Kind.HELLO, HELLO) + frame(Kind.REQUEST, request_bytes(), STREAM) + frame(Kind.DATA, b"x", STREAM)

    async def scenario() -> None:
        for _ in range(1000):
            damaged = bytearray(whole)
            for _ in range(choice.randint(1, 4)):
                damaged[choice.randrange(len(damaged))] = choice.randrange(256)
            mux, _, endpoints = accepted(greeted=False)
            at = 0
            while at < len(damaged):
                step = choice.randint(1, 80)
                mux.receive(bytes(damaged[at : at + step]))
                at += step
            mux.lost("the test is over")
            await settled(endpoints)
            assert mux.streams == {}

    asyncio.run(scenario())


def test_the_client_speaks_first_and_waits_for_the_answer() -> None:
    """HELLO with what it takes; then requests, in frames of the length that the peer takes."""

    async def scenario() -> None:
        output = Recorder()
        mux = TcpMux(output, MuxLimits())
        mux.greet()
        kind, _, payload = output.frames.pop()
        assert kind == Kind.HELLO
        assert json.loads(payload)["versions"] == [1]
        assert Hello("kvr-mux", [1]).max_frame == 1 << 20
        mux.receive(frame(Kind.HELLO_ACK, json.dumps({"version": 1, "max_frame": 4096}).encode()))
        assert output.is_ready
        stream = mux.open(STREAM, bytes(10_000), Context(), many_in=False)
        assert [len(payload) for _, _, payload in output.frames] == [4096, 4096, 1808]
        await stream.aclose()

    asyncio.run(scenario())
