"""The object server: any object store behind HTTP, as a plain ASGI application. `http_wire.py` has its paths.

Bodies are streamed both ways, one piece in memory at a time; who neither sends nor takes anything for a minute is let
go. `/livez` is open to everybody, all else to those whom `authorise` lets in.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final, TypeAlias

from kvrouter.errors import StoreError
from kvrouter.store.http_wire import (
    FRAMED,
    INFO_HEADER,
    META_HEADER,
    ROOT,
    STATUSES,
    decode_meta,
    encode_info,
    framed,
    unframed,
)
from kvrouter.store.objects import ObjectInfo, ObjectStore

__all__ = ["ObjectApp"]

Message: TypeAlias = Mapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[dict[str, Any]], Awaitable[None]]

_SILENCE_SECONDS: Final = 60.0
_REST_BYTES_MAX: Final = 64 << 20
"""What is read of a refused upload before it is answered: a client that is cut off may never see why."""
_REST_SECONDS: Final = 10.0
_JSON: Final = (b"content-type", b"application/json")


class _GoneError(Exception):
    """The client has gone, or is as good as gone."""


class ObjectApp:
    """Serves `store`. `authorise` is given the `Authorization` header and says whether its sender may come in."""

    def __init__(self, store: ObjectStore, *, authorise: Callable[[bytes | None], bool] | None = None) -> None:
        self._store, self._authorise = store, authorise

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1"): value for name, value in scope["headers"]}
        request = _Request(scope["method"], scope["path"], headers, receive, send)
        if request.path == "/livez":
            await request.answer(200, {"alive": True})
        elif self._authorise is not None and not self._authorise(headers.get("authorization")):
            await request.refuse(401, "unauthenticated", "this server wants a key: Authorization: Bearer KEY")
        else:
            with contextlib.suppress(_GoneError):
                await self._serve(request)

    async def _serve(self, request: "_Request") -> None:
        path = request.path.rstrip("/")
        if path != ROOT and not path.startswith(f"{ROOT}/"):
            await request.refuse(404, "missing", f"objects are below {ROOT}")
            return
        bucket, _, name = path.removeprefix(ROOT).removeprefix("/").partition("/")
        serve = self._object if name else self._bucket if bucket else self._all
        try:
            await serve(request, bucket, name)
        except StoreError as error:
            await request.rest()
            await request.refuse(STATUSES.get(error.reason, 500), error.reason, str(error))

    async def _all(self, request: "_Request", bucket: str, name: str) -> None:
        del bucket, name
        if request.method in ("GET", "HEAD"):
            await request.answer(200, {"buckets": await self._store.buckets()})
        else:
            await request.not_allowed("GET, HEAD")

    async def _bucket(self, request: "_Request", bucket: str, name: str) -> None:
        del name
        match request.method:
            case "GET" | "HEAD":
                await request.answer(200, {"names": await self._store.list(bucket)})
            case "PUT":
                await self._store.create_bucket(bucket)
                await request.answer(201, {"bucket": bucket})
            case "DELETE":
                await self._store.delete_bucket(bucket)
                await request.answer(200, {"bucket": bucket})
            case _:
                await request.not_allowed("GET, HEAD, PUT, DELETE")

    async def _object(self, request: "_Request", bucket: str, name: str) -> None:
        match request.method:
            case "GET":
                await self._get(request, bucket, name)
            case "HEAD":
                info = await self._store.stat(bucket, name)
                if info is None:
                    raise StoreError(f"there is no object {bucket}/{name}", reason="missing")
                await request.begin(200, [*_described(info), (b"content-length", b"%d" % info.size)])
                await request.send_piece(b"", more=False)
            case "PUT":
                body = request.body()
                if request.header("content-type") == FRAMED:
                    body = unframed(body)
                meta = decode_meta(request.header(META_HEADER) or "{}")
                info = await self._store.put(bucket, name, body, meta=meta)
                await request.answer(201, encode_info(info))
            case "DELETE":
                if not await self._store.delete(bucket, name):
                    raise StoreError(f"there is no object {bucket}/{name}", reason="missing")
                await request.answer(200, {"bucket": bucket, "name": name})
            case _:
                await request.not_allowed("GET, HEAD, PUT, DELETE")

    async def _get(self, request: "_Request", bucket: str, name: str) -> None:
        """Send an object. Where it cannot be sent to its end, the connection ends before it, which clients notice."""
        async with self._store.read(bucket, name) as (info, pieces):
            with_digest = FRAMED in request.header("accept")
            kind = FRAMED if with_digest else "application/octet-stream"
            length = [] if with_digest else [(b"content-length", b"%d" % info.size)]
            async with request.watched() as gone:
                await request.begin(200, [*_described(info), *length, (b"content-type", kind.encode())])
                try:
                    async for piece in framed(pieces) if with_digest else _last_held(pieces):
                        if gone():
                            return
                        await request.send_piece(piece, more=True)
                except StoreError:
                    return
                await request.send_piece(b"", more=False)


class _Request:
    """A request and the way to answer it."""

    def __init__(self, method: str, path: str, headers: Mapping[str, bytes], receive: Receive, send: Send) -> None:
        self.method, self.path = method, path
        self._headers, self._receive, self._send = headers, receive, send
        self._whole = False

    def header(self, name: str) -> str:
        """A header, empty where there is none."""
        return self._headers.get(name, b"").decode("latin-1")

    async def body(self) -> AsyncIterator[bytes]:
        """The request's body; raises _GoneError where it does not reach its end."""
        while not self._whole:
            try:
                async with asyncio.timeout(_SILENCE_SECONDS):
                    message = await self._receive()
            except TimeoutError:
                raise _GoneError from None
            if message["type"] != "http.request":
                raise _GoneError
            self._whole = not message.get("more_body", False)
            if message.get("body"):
                yield message["body"]

    async def rest(self) -> None:
        """Read what is left of a body that nobody wants, within bounds."""
        read = 0
        with contextlib.suppress(TimeoutError, _GoneError):
            async with asyncio.timeout(_REST_SECONDS):
                async for piece in self.body():
                    read += len(piece)
                    if read > _REST_BYTES_MAX:
                        return

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[Callable[[], bool]]:
        """Look out for the client's going, so that nothing is read for nobody."""
        await self.rest()
        gone = asyncio.ensure_future(self._receive())
        try:
            yield gone.done
        finally:
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)

    async def begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Send the head of the answer."""
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def send_piece(self, piece: bytes, *, more: bool) -> None:
        """Send some of the answer; raises _GoneError where the client takes nothing any more."""
        try:
            async with asyncio.timeout(_SILENCE_SECONDS):
                await self._send({"type": "http.response.body", "body": piece, "more_body": more})
        except TimeoutError:
            raise _GoneError from None

    async def answer(self, status: int, content: Mapping[str, Any] | str, *more: tuple[bytes, bytes]) -> None:
        """Answer with JSON."""
        text = content if isinstance(content, str) else json.dumps(content)
        await self.begin(status, [_JSON, (b"content-length", b"%d" % len(text.encode())), *more])
        await self.send_piece(b"" if self.method == "HEAD" else text.encode(), more=False)

    async def refuse(self, status: int, reason: str, message: str) -> None:
        """Answer with an error."""
        await self.answer(status, {"error": {"reason": reason, "message": message}})

    async def not_allowed(self, allowed: str) -> None:
        """Answer that this is not what one does here."""
        content = {"error": {"reason": "unsupported", "message": f"only {allowed} here"}}
        await self.answer(405, content, (b"allow", allowed.encode()))


async def _last_held(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Keep the last piece back until all are verified: without it, what is damaged is not whole either."""
    held = b""
    async for piece in pieces:
        if held:
            yield held
        held = piece
    yield held


def _described(info: ObjectInfo) -> list[tuple[bytes, bytes]]:
    return [(INFO_HEADER.encode(), encode_info(info).encode()), (b"etag", f'"{info.digest}"'.encode())]
