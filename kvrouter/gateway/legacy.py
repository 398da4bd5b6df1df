"""The HTTP services from before, which answer the share of requests that NATS does not answer yet.

Requests go there as they came, answers come back as they are: nothing is translated. One pool of connections.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

from kvrouter.errors import GatewayError, MissingExtraError
from kvrouter.gateway.answers import Answer, RawHeaders
from kvrouter.gateway.calls import Call
from kvrouter.gateway.sides import COPY_HEADER, SideName

try:
    import httpx
except ImportError as error:
    raise MissingExtraError("a gateway with a `legacy` side", "gateway") from error

__all__ = ["LegacyClient", "LegacyService", "LegacyStream"]

ANSWER_BYTES_MAX = 64 << 20
_CONNECTIONS_MAX = 512
_CONNECT_SECONDS = 5.0
_STAYS_HERE: Final = frozenset(
    name.encode()
    for name in (
        "host", "content-length", "connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade",
        "proxy-authorization", "proxy-connection", "expect", "accept-encoding",
    )
)  # fmt: skip
_TAKEN_BACK: Final = (b"content-type", b"content-encoding", b"retry-after", b"cache-control", b"location", b"etag")


class LegacyClient:
    """The connections, of all routes. Made when the gateway starts; `close` at the end."""

    def __init__(self, *, sends_authorization: bool) -> None:
        """With keys of our own the `Authorization` header is for us; else it is sent on."""
        self._left_out = _STAYS_HERE if sends_authorization else _STAYS_HERE | {b"authorization"}
        limits = httpx.Limits(max_connections=_CONNECTIONS_MAX, max_keepalive_connections=_CONNECTIONS_MAX)
        self._client = httpx.AsyncClient(limits=limits, follow_redirects=False, trust_env=False)

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    @asynccontextmanager
    async def asked(self, call: Call, *, seconds: float, is_copy: bool) -> AsyncIterator[httpx.Response]:
        """Send a call on, and give its answer while it comes. Raises GatewayError, also for what fails inside."""
        assert call.route.legacy is not None, "only routes with a legacy side are asked there"
        headers = [(name, value) for name, value in call.headers if name not in self._left_out]
        if is_copy:
            headers.append((COPY_HEADER.lower().encode(), b"1"))
        query = b"?" + call.query if call.query else b""
        url = httpx.URL(call.route.legacy).copy_with(raw_path=_raw_path(call) + query)
        timeout = httpx.Timeout(seconds, connect=min(_CONNECT_SECONDS, seconds))
        request = self._client.build_request(call.method, url, headers=headers, content=call.body, timeout=timeout)
        with _told(seconds):
            response = await self._client.send(request, stream=True)
            try:
                yield response
            finally:
                await response.aclose()


class LegacyService:
    """Answers the calls of a route over HTTP."""

    name: SideName = "legacy"

    def __init__(self, client: LegacyClient, *, timeout_seconds: float) -> None:
        self._client, self.timeout_seconds = client, timeout_seconds

    async def answer(self, call: Call, *, is_copy: bool = False) -> Answer:
        """Return the answer as it came; see `Side`. What is no error of ours comes with its status, not as an error."""
        try:
            async with asyncio.timeout(self.timeout_seconds):
                async with self._client.asked(call, seconds=self.timeout_seconds, is_copy=is_copy) as response:
                    return await _whole(response)
        except TimeoutError:
            raise GatewayError(
                f"the HTTP service did not answer within {self.timeout_seconds:g} s",
                status=504,
                code="DEADLINE_EXCEEDED",
            ) from None

    @asynccontextmanager
    async def stream(self, call: Call) -> AsyncIterator["LegacyStream"]:
        """Ask for a stream. Raises GatewayError."""
        async with self._client.asked(call, seconds=self.timeout_seconds, is_copy=False) as response:
            yield LegacyStream(response, self.timeout_seconds)


class LegacyStream:
    """An answer that comes piece by piece; one that is no stream of events is whole after all."""

    def __init__(self, response: httpx.Response, seconds: float) -> None:
        self._response, self._seconds = response, seconds
        self.is_events = response.headers.get("content-type", "").startswith("text/event-stream")

    async def whole(self) -> Answer:
        """Return the whole answer."""
        return await _whole(self._response)

    async def pieces(self) -> AsyncIterator[bytes]:
        """Give the bytes as they come. Raises GatewayError where they break off."""
        with _told(self._seconds):
            async for piece in self._response.aiter_raw():
                yield piece


@contextmanager
def _told(seconds: float) -> Iterator[None]:
    """What fails inside is an error of ours."""
    try:
        yield
    except httpx.TimeoutException:
        raise GatewayError(
            f"the HTTP service did not answer within {seconds:g} s", status=504, code="DEADLINE_EXCEEDED"
        ) from None
    except httpx.ConnectError as error:
        raise GatewayError(
            f"the HTTP service cannot be reached: {error}", status=503, code="UNAVAILABLE", retry_after_seconds=5
        ) from None
    except httpx.HTTPError as error:
        raise GatewayError(
            f"the HTTP service broke off: {type(error).__name__}", status=502, code="INVALID_RESPONSE"
        ) from None


async def _whole(response: httpx.Response) -> Answer:
    body = bytearray()
    async for piece in response.aiter_raw():
        body += piece
        if len(body) > ANSWER_BYTES_MAX:
            raise GatewayError(
                f"the HTTP service's answer exceeds {ANSWER_BYTES_MAX} bytes", status=502, code="INVALID_RESPONSE"
            )
    headers: RawHeaders = tuple(
        (name.lower(), value) for name, value in response.headers.raw if name.lower() in _TAKEN_BACK
    )
    return Answer(response.status_code, bytes(body), headers)


def _raw_path(call: Call) -> bytes:
    assert call.route.legacy is not None, "only routes with a legacy side are asked there"
    return httpx.URL(call.route.legacy).raw_path.rstrip(b"/") + call.raw_path
