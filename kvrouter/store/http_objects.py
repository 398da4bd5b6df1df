"""Objects at a server of `kvrouter objects`, over HTTP: for machines that share neither a disk nor a broker."""

import contextlib
import json
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from typing import Any, Final, Self

from kvrouter.errors import StoreError
from kvrouter.store.http_exchange import HttpAnswer, HttpPlace
from kvrouter.store.http_wire import (
    FRAMED,
    INFO_HEADER,
    META_HEADER,
    ROOT,
    STATUSES,
    decode_info,
    encode_meta,
    framed,
    unframed,
)
from kvrouter.store.names import check_bucket, check_name
from kvrouter.store.objects import ObjectInfo, Reading
from kvrouter.store.pieces import Measure, damaged, missing, pieces

__all__ = ["HttpObjectStore"]

_PIECE_BYTES: Final = 256 << 10
_OBJECT_BYTES_MAX: Final = 8 << 30
_LIST_BYTES_MAX: Final = 64 << 20
_ERROR_BYTES_MAX: Final = 64 << 10


class HttpObjectStore:
    """An `ObjectStore` at the server of the URL `server`, whose password is the key. `tls` replaces the context."""

    def __init__(
        self, server: str, *, tls: ssl.SSLContext | None = None, object_bytes_max: int = _OBJECT_BYTES_MAX
    ) -> None:
        self._place = HttpPlace(server, tls=tls)
        self._object_bytes_max = object_bytes_max

    async def put(
        self,
        bucket: str,
        name: str,
        data: bytes | AsyncIterable[bytes],
        *,
        meta: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        """Store `data` under `name`; see `ObjectStore`."""
        path = _path(bucket, name)
        headers = {"Content-Type": FRAMED, META_HEADER: encode_meta(meta or {})}
        measure = Measure(bytes_max=self._object_bytes_max)

        async def measured() -> AsyncIterator[bytes]:
            async for piece in pieces(data, size=_PIECE_BYTES):
                yield measure.add(piece)

        async with self._place.ask("PUT", path, headers=headers, body=framed(measured())) as answer:
            await _expect(answer, bucket, name)
            info = decode_info(await answer.text(bytes_max=_ERROR_BYTES_MAX))
        if not measure.agrees(info):
            raise StoreError("the server has stored other bytes than were sent", reason="corrupt")
        return info

    async def get(self, bucket: str, name: str) -> bytes:
        """Return the object; see `ObjectStore`."""
        data = bytearray()
        async with self.read(bucket, name) as (_, found):
            async for piece in found:
                data += piece
        return bytes(data)

    @contextlib.asynccontextmanager
    async def read(self, bucket: str, name: str) -> AsyncIterator[Reading]:
        """Read an object piece by piece; see `ObjectStore`."""
        async with self._place.ask("GET", _path(bucket, name), headers={"Accept": FRAMED}) as answer:
            await _expect(answer, bucket, name)
            info = decode_info(answer.headers.get(INFO_HEADER, ""))
            yield Reading(info, _checked(answer, info))

    async def stat(self, bucket: str, name: str) -> ObjectInfo | None:
        """Return what is known about an object; see `ObjectStore`."""
        async with self._place.ask("HEAD", _path(bucket, name)) as answer:
            if answer.status == STATUSES["missing"]:
                return None
            await _expect(answer, bucket, name)
            return decode_info(answer.headers.get(INFO_HEADER, ""))

    async def create_bucket(self, bucket: str) -> None:
        """Make an empty bucket; see `ObjectStore`."""
        async with self._place.ask("PUT", f"{ROOT}/{check_bucket(bucket)}") as answer:
            await _expect(answer, bucket, "")

    async def buckets(self) -> list[str]:
        """Return the names of all buckets; see `ObjectStore`."""
        return await _names(self._place, ROOT, "buckets")

    async def list(self, bucket: str) -> list[str]:
        """Return the names of all objects of a bucket; see `ObjectStore`."""
        return await _names(self._place, f"{ROOT}/{check_bucket(bucket)}", "names")

    async def delete(self, bucket: str, name: str) -> bool:
        """Remove an object; see `ObjectStore`."""
        async with self._place.ask("DELETE", _path(bucket, name)) as answer:
            if answer.status == STATUSES["missing"]:
                return False
            await _expect(answer, bucket, name)
            return True

    async def delete_bucket(self, bucket: str) -> None:
        """Remove a bucket with all its objects; see `ObjectStore`."""
        async with self._place.ask("DELETE", f"{ROOT}/{check_bucket(bucket)}") as answer:
            await _expect(answer, bucket, "")

    async def close(self) -> None:
        """Do nothing: no connection is open between calls."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def _names(place: HttpPlace, path: str, member: str) -> list[str]:
    async with place.ask("GET", path) as answer:
        await _expect(answer, "", "")
        body = await answer.text(bytes_max=_LIST_BYTES_MAX)
    try:
        return [str(name) for name in json.loads(body)[member]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError("the server's answer is no list of names", reason="unavailable") from error


async def _checked(answer: HttpAnswer, info: ObjectInfo) -> AsyncIterator[bytes]:
    try:
        async for piece in unframed(answer.pieces()):
            yield piece
    except StoreError as error:
        if error.reason == "corrupt":
            raise damaged(info.bucket, info.name) from None
        raise


async def _expect(answer: HttpAnswer, bucket: str, name: str) -> None:
    """Raise what the server says where it has not done what was asked."""
    if answer.status < 300:
        return
    if answer.status == STATUSES["missing"]:
        raise missing(bucket, name)
    try:
        error: Any = json.loads(await answer.text(bytes_max=_ERROR_BYTES_MAX))["error"]
        reason, message = str(error["reason"]), str(error["message"])
    except (StoreError, ValueError, KeyError, TypeError, RecursionError):
        reason = next((reason for reason, status in STATUSES.items() if status == answer.status), "unavailable")
        message = f"object {bucket}/{name} is damaged" if reason == "corrupt" else "the server refuses"
    if reason not in STATUSES:
        reason = "unavailable"
    raise StoreError(f"{message} (HTTP {answer.status})", reason=reason)


def _path(bucket: str, name: str) -> str:
    return f"{ROOT}/{check_bucket(bucket)}/{check_name(name)}"
