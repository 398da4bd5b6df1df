"""A handler that passes calls on to an engine with an HTTP server, and its answers back as they come.

    async with engine_handler("http://127.0.0.1:8000") as handler, serve(
        "kvrouter/backend", {"generate": handler}, store="etcd://10.0.0.1:2379"
    ) as worker:
        await worker.serve_forever()

Nothing is translated: what the engine answers is what the router's client gets. An engine that is too busy, or gone, is
an error that lets the router ask another worker.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from kvrouter.errors import DisconnectedError, RefusedError, TransportError, UnreachableError
from kvrouter.service.proxy import Endpoint, ProxyLimits, UpstreamError, UpstreamPool
from kvrouter.service.proxy.upstream import Upstream
from kvrouter.service.worker_spec import worker_spec_from_fields
from kvrouter.service.worker_state import endpoint_of
from kvrouter.transport.calls import Call, encode_answer_head, read_call
from kvrouter.transport.context import Context
from kvrouter.transport.messages import Request
from kvrouter.worker.engine_answer import EngineAnswer

__all__ = ["EngineHandler", "engine_handler"]

_BUSY: Final = frozenset({503, 529})


class EngineHandler:
    """A `Handler`; `close` closes the connections to the engine."""

    def __init__(self, endpoint: Endpoint, *, connect_seconds: float = 3.0) -> None:
        self._endpoint = endpoint
        self._pool = UpstreamPool(ProxyLimits(connect_seconds=connect_seconds))

    async def __call__(self, request: Request, context: Context) -> AsyncGenerator[bytes, None]:
        """Answer a call.

        Raises:
            RefusedError: the engine is too busy.
            UnreachableError, DisconnectedError: it is not there, or not any more.
            TransportError: the request is no call.
        """
        call = read_call(request, context)
        answer = await self._begun(call.method, _rendered(self._endpoint, call))
        forget = context.listen(lambda _: answer.stop())
        try:
            head = answer.head()
            if head.status in _BUSY:
                raise RefusedError(f"the engine answered {head.status}", code="RESOURCE_EXHAUSTED")
            yield encode_answer_head(head)
            while (piece := await answer.next()) is not None:
                yield piece
        finally:
            forget()
            answer.close()

    def close(self) -> None:
        """Close the connections that nobody uses; those of running answers end with them."""
        self._pool.close()

    async def _begun(self, method: str, message: bytes) -> EngineAnswer:
        """Ask, and wait for the head of the answer; once more if a kept connection turns out to be closed."""
        kept = self._pool.take(self._endpoint)
        if kept is not None:
            try:
                return await _asked(kept, method, message)
            except DisconnectedError:
                pass
        try:
            upstream = await self._pool.connect(self._endpoint)
        except UpstreamError as error:
            raise UnreachableError(f"the engine: {error}") from None
        return await _asked(upstream, method, message)


@asynccontextmanager
async def engine_handler(url: str, *, api_key: str | None = None) -> AsyncIterator[EngineHandler]:
    """A handler for the engine at `url`, until the end of the block.

    Raises:
        RequestError: the URL is none.
    """
    spec = worker_spec_from_fields({"url": url, "api_key": api_key})
    handler = EngineHandler(endpoint_of(spec, None))
    try:
        yield handler
    finally:
        handler.close()


async def _asked(upstream: Upstream, method: str, message: bytes) -> EngineAnswer:
    """Send a request, and wait for the head of its answer."""
    answer = EngineAnswer(upstream, method)
    upstream.consumer = answer
    upstream.send(message)
    try:
        await answer.begun()
    except BaseException:
        answer.close()
        raise
    return answer


def _rendered(endpoint: Endpoint, call: Call) -> bytes:
    """A call in HTTP/1.1; raises TransportError for a header that would be more than one line."""
    lines = [f"{call.method} {endpoint.path_prefix.decode()}{call.target} HTTP/1.1"]
    lines.append(f"host: {endpoint.host_header.decode()}")
    headers = dict(call.headers)
    if endpoint.authorization:
        headers["authorization"] = endpoint.authorization.decode()
    lines.extend(f"{name}: {value}" for name, value in headers.items())
    if call.body or call.method == "POST":
        lines.append(f"content-length: {len(call.body)}")
    if not all(line.isprintable() and ":" in line for line in lines[1:]) or " " in call.target:
        raise TransportError("a header or the target of the call cannot be sent", code="INVALID_ARGUMENT")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace") + bytes(call.body)
