"""A TensorRT-LLM server is read until it has nothing more to say, whatever it does in between."""

import asyncio
import json
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import pytest

from kvrouter.errors import SettingsError
from kvrouter.events import AllBlocksCleared, BlockStored, Event
from kvrouter.events.trtllm import TrtllmEvents
from kvrouter.relay.trtllm import TrtllmPoller
from tests.service.processes import raw_server

GOLDEN = Path(__file__).parents[1] / "golden" / "trtllm" / "json-1.2-attention-dp.json"
NOTHING = b"[]"


class Buffer:
    """An engine's event buffer behind HTTP: each answer is given once, then there is nothing."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = deque(answers)
        self.asked: list[bytes] = []

    def __call__(self, request: bytes) -> bytes:
        self.asked.append(request)
        body = self.answers.popleft() if self.answers else NOTHING
        if body.startswith(b"HTTP/"):
            return body
        return b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def poll(
    buffer: Buffer, *, answers: int, interval_seconds: float = 0.001
) -> tuple[TrtllmPoller, list[tuple[int, Sequence[Event]]]]:
    """Poll until so many answers came; return what was delivered."""
    delivered: list[tuple[int, Sequence[Event]]] = []

    async def scenario(port: int) -> TrtllmPoller:
        poller = TrtllmPoller(
            f"http://127.0.0.1:{port}/",
            deliver=lambda rank, events: delivered.append((rank, events)),
            events=TrtllmEvents(),
            interval_seconds=interval_seconds,
        )
        polling = asyncio.create_task(poller.run())
        async with asyncio.timeout(60):
            while poller.answers < answers:
                await asyncio.sleep(0.001)
        polling.cancel()
        return poller

    with raw_server(buffer) as port:
        return asyncio.run(scenario(port)), delivered


def test_answers_are_read_until_there_are_no_more() -> None:
    """Each rank's events are delivered once, in order."""
    events = json.loads(GOLDEN.read_bytes())
    halves = [json.dumps(events[:2]).encode(), json.dumps(events[2:]).encode()]
    buffer = Buffer(*halves)

    _, delivered = poll(buffer, answers=3)

    assert buffer.asked[0].startswith(b"POST /kv_cache_events HTTP/1.1\r\n")
    assert [rank for rank, _ in delivered] == [1, 1]
    assert isinstance(delivered[0][1][0], BlockStored)


def test_errors_and_garbage_are_counted_and_polling_goes_on() -> None:
    """A server that starts, overloads or is something else; the next good answer is taken."""
    buffer = Buffer(
        b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", b"<html>", b"HTTP/9 nonsense", GOLDEN.read_bytes()
    )

    poller, delivered = poll(buffer, answers=1)

    assert len(delivered) == 1
    assert (poller.failures, poller.refused) == (2, 1)
    assert poller.last_error


def test_a_server_that_was_away_for_long_is_still_asked() -> None:
    """A pause that doubles a thousand times is no number any more."""
    buffer = Buffer(*[b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"] * 1100, GOLDEN.read_bytes())

    poller, delivered = poll(buffer, answers=1, interval_seconds=1e-12)

    assert poller.failures == 1100
    assert len(delivered) == 1


def test_an_answer_that_was_lost_gives_up_what_was_known() -> None:
    """Reading drains: what was in it cannot be had again."""
    events = json.loads(GOLDEN.read_bytes())
    buffer = Buffer(json.dumps(events[:2]).encode(), json.dumps(events[3:]).encode())

    _, delivered = poll(buffer, answers=2)

    assert any(isinstance(event, AllBlocksCleared) for event in delivered[1][1])


def test_another_scheme_is_refused() -> None:
    """Before anything is opened."""
    with pytest.raises(SettingsError, match="http://"):
        TrtllmPoller("tcp://127.0.0.1:1", deliver=lambda *_: None, events=TrtllmEvents())
