"""A handler of one's own that a router can use: OpenAI's paths, each answered by a function. Pure.

    async def chat(body, context):
        for word in body["messages"][-1]["content"].split():
            yield {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": word}}]}

    handlers = {"generate": openai_handler(["parrot"], {"/v1/chat/completions": chat})}

Where a request asks for a stream (`"stream": true`) each object is an event, and `[DONE]` follows the last one;
otherwise the first object is the answer. `GET /health` and `GET /v1/models`, by which routers look for workers, are
answered here. An error with a code of `kvrouter.errors.TransportError` before the first object becomes an HTTP status;
`RESOURCE_EXHAUSTED` sends the request to another worker.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec

from kvrouter.errors import TransportError
from kvrouter.transport.calls import EVENT_STREAM, JSON, answer_head, read_call
from kvrouter.transport.context import Context
from kvrouter.transport.messages import Request
from kvrouter.transport.server_stream import Handler, closing

__all__ = ["Answering", "openai_handler"]

Answering: TypeAlias = Callable[[dict[str, Any], Context], AsyncIterator[Mapping[str, Any]]]
"""Answers a request's body with objects; an async generator, cancelled when nobody waits any more."""

_DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode


def openai_handler(models: Sequence[str], routes: Mapping[str, Answering]) -> Handler:
    """The handler that serves `models`; `routes` are functions by path."""
    cards = [{"id": model, "object": "model", "created": 0, "owned_by": "kvrouter"} for model in models]
    listing = _encode({"object": "list", "data": cards})

    async def handle(request: Request, context: Context) -> AsyncIterator[bytes]:
        call = read_call(request, context)
        answering = routes.get(call.path)
        if call.method == "GET" and call.path in ("/health", "/v1/models"):
            whole = b"{}" if call.path == "/health" else listing
            yield answer_head(JSON, length=len(whole))
            yield whole
        elif answering is None:
            raise TransportError(f"this worker does not serve {call.path}", code="NOT_FOUND")
        else:
            body = _read(call.body)
            parts = _events if body.get("stream") is True else _whole
            async with closing(answering(body, context)) as objects, closing(parts(objects)) as items:
                async for item in items:
                    yield item

    return handle


async def _events(objects: AsyncIterator[Mapping[str, Any]]) -> AsyncIterator[bytes]:
    begun = False
    async for each in objects:
        if not begun:
            begun = True
            yield answer_head(EVENT_STREAM)
        yield b"data: %b\n\n" % _encode(each)
    if not begun:
        yield answer_head(EVENT_STREAM)
    yield _DONE


async def _whole(objects: AsyncIterator[Mapping[str, Any]]) -> AsyncIterator[bytes]:
    async for each in objects:
        body = _encode(each)
        yield answer_head(JSON, length=len(body))
        yield body
        return
    raise TransportError("the worker has no answer", code="INTERNAL")


def _read(body: bytes | memoryview) -> dict[str, Any]:
    try:
        read = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        read = None
    if not isinstance(read, dict):
        raise TransportError("the body is not a JSON object", code="INVALID_ARGUMENT")
    return read
