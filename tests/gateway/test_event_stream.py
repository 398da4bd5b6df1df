"""One stream from its messages to its client, without a network: its order, its bounds, its ends (A-437)."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from nats.aio.msg import Msg

from kvrouter.errors import DeadlineError, DisconnectedError, GatewayError, NoInstancesError, TransportError
from kvrouter.gateway.descriptors import Descriptors, load_descriptors
from kvrouter.gateway.event_stream import SSE_HEADERS, EventStream, relay
from kvrouter.gateway.reply_stream import QUEUE_BYTES_MAX, ReplyStream
from kvrouter.gateway.translation import AnswerReader

FOREVER = 60.0
DESCRIPTORS = load_descriptors(None)
CHUNK = DESCRIPTORS.find("kvrouter.gateway.v1.InferChunk")


def chunk(index: int = 0, **values: Any) -> Msg:
    """A message of a service."""
    data = Descriptors.class_of(CHUNK)(index=index, **values).SerializeToString()
    return message(data)


def message(data: bytes, headers: dict[str, str] | None = None) -> Msg:
    """A message of NATS."""
    return Msg(_client=None, subject="inbox", data=data, headers=headers)  # type: ignore[arg-type]


def events(stream: ReplyStream, *, slow_client: float = FOREVER) -> EventStream:
    """The stream on its way to a client."""
    return EventStream(
        stream,
        AnswerReader(DESCRIPTORS, CHUNK),
        idle_seconds=FOREVER,
        keep_alive_seconds=FOREVER,
        slow_client_seconds=slow_client,
    )


class Client:
    """Keeps what it is sent; takes `accepts` messages, and then nothing any more."""

    def __init__(self, accepts: int = 1000) -> None:
        self.sent: list[Any] = []
        self._accepts = accepts

    async def __call__(self, sent: Any) -> None:
        if len(self.sent) >= self._accepts:
            await asyncio.Event().wait()
        self.sent.append(sent)

    @property
    def text(self) -> str:
        """The body so far."""
        return b"".join(each.get("body", b"") for each in self.sent).decode()


def in_loop(scenario: Callable[[], Awaitable[None]]) -> None:
    """Run one."""

    async def run() -> None:
        await scenario()

    asyncio.run(run())


def test_messages_wait_in_order_up_to_the_bound() -> None:
    """Who brings more waits, so that the client library keeps it, which has a bound of its own."""

    async def scenario() -> None:
        stream = ReplyStream(queue_messages_max=2)
        bringing = [asyncio.ensure_future(stream.heard(message(bytes([number])))) for number in range(4)]
        await asyncio.sleep(0)
        assert [task.done() for task in bringing] == [True, True, False, False]

        assert [(await stream.next(timeout_seconds=FOREVER)).data for _ in range(4)] == [b"\0", b"\1", b"\2", b"\3"]
        await asyncio.gather(*bringing)

    in_loop(scenario)


def test_large_messages_wait_by_their_bytes() -> None:
    """Fifty messages of a mebibyte are not a small queue."""

    async def scenario() -> None:
        stream = ReplyStream(queue_messages_max=50)
        await stream.heard(message(bytes(QUEUE_BYTES_MAX)))
        waiting = asyncio.ensure_future(stream.heard(message(b"x")))
        await asyncio.sleep(0)
        assert not waiting.done()

        await stream.next(timeout_seconds=FOREVER)
        await waiting

    in_loop(scenario)


def test_what_came_before_a_failure_is_given_first() -> None:
    """And nothing that comes after it: there may be a hole between."""

    async def scenario() -> None:
        stream = ReplyStream(queue_messages_max=1)
        await stream.heard(message(b"before"))
        late = asyncio.ensure_future(stream.heard(message(b"after")))
        await asyncio.sleep(0)
        stream.fail(DisconnectedError("gone"))
        stream.fail(DeadlineError("once is enough"))

        assert (await stream.next(timeout_seconds=FOREVER)).data == b"before"
        await late
        with pytest.raises(DisconnectedError):
            await stream.next(timeout_seconds=FOREVER)

    in_loop(scenario)


def test_silence_and_nobody_are_told_apart() -> None:
    """The one is 504, the other 503."""

    async def scenario() -> None:
        with pytest.raises(DeadlineError):
            await ReplyStream(queue_messages_max=1).next(timeout_seconds=0.001)
        alone = ReplyStream(queue_messages_max=1)
        await alone.heard(message(b"", {"Status": "503"}))
        with pytest.raises(NoInstancesError):
            await alone.next(timeout_seconds=FOREVER)

    in_loop(scenario)


def test_closing_frees_who_waits_and_is_done_once() -> None:
    """The subscription ends exactly once, however often it is closed."""

    async def scenario() -> None:
        stream = ReplyStream(queue_messages_max=1)
        closed: list[None] = []

        async def closing() -> None:
            closed.append(None)

        stream.closing = closing
        await stream.heard(message(b"x"))
        waiting = asyncio.ensure_future(stream.heard(message(b"y")))
        await asyncio.sleep(0)
        await stream.aclose()
        await stream.aclose()
        await waiting

        assert len(closed) == 1

    in_loop(scenario)


def test_chunks_become_events_until_the_final_one() -> None:
    """A-420: what would come after the final chunk is not sent."""

    async def scenario() -> None:
        stream, client = ReplyStream(queue_messages_max=10), Client()
        for each in (chunk(0), chunk(1, is_final=True), chunk(2)):
            await stream.heard(each)
        sending = events(stream)
        ending = await sending.send(await sending.first(), client, SSE_HEADERS)

        assert (ending, sending.error) == ("final", None)
        assert client.sent[0]["type"] == "http.response.start"
        assert [json.loads(line[6:])["index"] for line in client.text.splitlines() if line] == [0, 1]
        assert client.sent[-1] == {"type": "http.response.body", "body": b""}

    in_loop(scenario)


def test_nothing_is_sent_before_the_first_chunk() -> None:
    """D-21: a failure until then is raised, not written behind a 200."""

    async def scenario() -> None:
        stream = ReplyStream(queue_messages_max=10)
        stream.fail(TransportError("x", code="UNAVAILABLE"))

        with pytest.raises(GatewayError) as caught:
            await events(stream).first()
        assert caught.value.status == 503

    in_loop(scenario)


@pytest.mark.parametrize("accepted", [0, 1, 2, 3])
def test_a_client_that_takes_nothing_ends_the_stream_wherever_it_stands(accepted: int) -> None:
    """A-437: at the head, at a chunk, or at the end."""

    async def scenario() -> None:
        stream, client = ReplyStream(queue_messages_max=10), Client(accepts=accepted)
        for each in (chunk(0), chunk(1, is_final=True)):
            await stream.heard(each)
        sending = events(stream, slow_client=0.01)

        assert await sending.send(await sending.first(), client, SSE_HEADERS) == "slow_client"
        assert len(client.sent) == accepted

    in_loop(scenario)


def test_a_stream_from_before_is_sent_on_byte_by_byte() -> None:
    """What breaks off ends with an error event, apart from what was begun."""

    async def pieces() -> Any:
        yield b"data: 1\n\nda"
        raise GatewayError("broke off", status=502, code="INVALID_RESPONSE")

    async def scenario() -> None:
        client = Client()
        ending, error = await relay(pieces(), client, SSE_HEADERS, slow_client_seconds=FOREVER)

        assert ending == "error"
        assert error is not None
        assert client.text.startswith("data: 1\n\nda\n\nevent: error\ndata: ")
        deaf = Client(accepts=1)
        assert (await relay(pieces(), deaf, SSE_HEADERS, slow_client_seconds=0.01))[0] == "slow_client"

    in_loop(scenario)
