"""The same answers from inside an engine's own web server: an ASGI application, out of the standard library.

    server = HttpEventServer(None, api_key="...")
    engine_app.mount("/kv", EventsApplication(server))

Clients then poll `http://engine:port/kv`. Requests are read as strictly as on a socket of our own.
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from kvrouter_publishers.http_host import HttpEventServer
from kvrouter_publishers.http_request import Answer, Refusal, Request, parse_target

__all__ = ["EventsApplication"]

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]


class EventsApplication:
    """Answers for `server`; may be mounted at any path. Runs on the host's loop, and only waits there."""

    def __init__(self, server: HttpEventServer) -> None:
        self._server = server

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Answer one request; a client that goes away ends its poll."""
        if scope["type"] != "http":
            raise RuntimeError(f"kvrouter events are served over http, not {scope['type']}")
        answering = asyncio.ensure_future(self._answer(scope))
        leaving = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                await _send(send, answering.result())
        finally:
            for task in (answering, leaving):
                task.cancel()

    async def _answer(self, scope: _Message) -> Answer:
        try:
            request = _request(scope)
        except Refusal as refusal:
            return refusal.answer()
        try:
            return await self._server.respond_to(request)
        except asyncio.CancelledError:
            if self._server.running:
                raise
            return Refusal(503, "the publisher is closed", code="closing").answer()


def _request(scope: _Message) -> Request:
    if scope["method"] != "GET":
        raise Refusal(405, "only GET is served here", code="method_not_allowed", headers={"Allow": "GET"})
    path = str(scope["path"]).removeprefix(str(scope.get("root_path", ""))) or "/"
    _, parameters = parse_target(f"/?{scope['query_string'].decode('latin-1')}")
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
    return Request(path=path, parameters=parameters, headers=headers)


async def _disconnected(receive: _Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue


async def _send(send: _Send, answer: Answer) -> None:
    headers = {**answer.headers, "Cache-Control": "no-store"}
    if answer.status != 204:
        headers["Content-Length"] = str(sum(map(len, answer.body)))
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": raw})
    for chunk in answer.body:
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
