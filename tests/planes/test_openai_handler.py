"""Handlers of one's own for OpenAI's paths: functions of a body that give objects."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kvrouter.errors import TransportError
from kvrouter.transport.calls import AnswerHead, call_request, read_answer_head
from kvrouter.transport.context import Context
from kvrouter.transport.openai import openai_handler


async def numbers(body: dict[str, Any], context: Context) -> AsyncIterator[dict[str, Any]]:
    """As many objects as the body says."""
    for number in range(body["n"]):
        yield {"number": number}


def ask(method: str, target: str, body: bytes = b"") -> tuple[AnswerHead, bytes]:
    """Head and body of the answer to a call."""
    handler: Any = openai_handler(["a", "b"], {"/v1/numbers": numbers})

    async def collect() -> list[bytes]:
        return [item async for item in handler(call_request("generate", method, target, body), Context())]

    head, *pieces = asyncio.run(collect())
    return read_answer_head(head), b"".join(pieces)


def test_a_stream_is_an_event_for_each_object_and_an_end() -> None:
    """A-123: as OpenAI's clients read it."""
    head, body = ask("POST", "/v1/numbers?x=1", b'{"n":2,"stream":true}')

    assert head == AnswerHead(200, {"content-type": "text/event-stream"})
    assert body == b'data: {"number":0}\n\ndata: {"number":1}\n\ndata: [DONE]\n\n'


def test_a_stream_of_nothing_is_a_stream() -> None:
    """A-383: what ends without an object has still ended."""
    head, body = ask("POST", "/v1/numbers", b'{"n":0,"stream":true}')

    assert (head.status, body) == (200, b"data: [DONE]\n\n")


def test_an_answer_that_is_no_stream_is_the_first_object() -> None:
    """A-123: whole, with its length; whoever gives more is not asked for it."""
    head, body = ask("POST", "/v1/numbers", b'{"n":3}')

    assert head.headers == {"content-type": "application/json", "content-length": str(len(body))}
    assert json.loads(body) == {"number": 0}


def test_routers_find_out_that_it_is_well_and_what_it_serves() -> None:
    """A-121: health and models, as of any engine."""
    assert ask("GET", "/health")[0].status == 200
    assert [card["id"] for card in json.loads(ask("GET", "/v1/models")[1])["data"]] == ["a", "b"]


@pytest.mark.parametrize(
    ("target", "body", "code"),
    [
        ("/v1/letters", b"{}", "NOT_FOUND"),
        ("/v1/numbers", b"[]", "INVALID_ARGUMENT"),
        ("/v1/numbers", b"\xff", "INVALID_ARGUMENT"),
        ("/v1/numbers", b'{"n":0}', "INTERNAL"),
    ],
)
def test_what_cannot_be_answered_is_an_error_with_a_code(target: str, body: bytes, code: str) -> None:
    """A-210: which the router turns into a status."""
    with pytest.raises(TransportError) as error:
        ask("POST", target, body)
    assert error.value.code == code
