"""How objects travel over HTTP: paths, headers, and bodies that carry their own digest. Pure but for the iterators.

    GET    /v1/objects                   {"buckets": [...]}
    PUT    /v1/objects/BUCKET            an empty bucket
    GET    /v1/objects/BUCKET            {"names": [...]}
    DELETE /v1/objects/BUCKET            with all that is in it
    PUT    /v1/objects/BUCKET/NAME       the bytes; answered with what `stat` tells
    GET    /v1/objects/BUCKET/NAME       the bytes; HEAD: what is known about them
    DELETE /v1/objects/BUCKET/NAME

A body of the type `application/x-kvrouter-object` is the object's bytes and then their SHA-256, 32 bytes: neither side
can take what was cut short or changed on the way for the whole. Any other body is the bytes alone, for `curl`.
"""

import json
from collections import deque
from collections.abc import AsyncIterator, Mapping
from hashlib import sha256
from typing import Any, Final

from kvrouter.errors import StoreError
from kvrouter.store.objects import ObjectInfo

__all__ = [
    "FRAMED",
    "INFO_HEADER",
    "META_BYTES_MAX",
    "META_HEADER",
    "NO_DIGEST",
    "ROOT",
    "STATUSES",
    "decode_info",
    "decode_meta",
    "encode_info",
    "encode_meta",
    "framed",
    "unframed",
]

ROOT: Final = "/v1/objects"
FRAMED: Final = "application/x-kvrouter-object"
INFO_HEADER: Final = "kvrouter-object"
"""What `stat` tells, as JSON in ASCII."""
META_HEADER: Final = "kvrouter-meta"
"""The writer's meta data, as JSON in ASCII."""
META_BYTES_MAX: Final = 16 << 10
"""Servers and proxies bound their headers."""
NO_DIGEST: Final = bytes(32)
"""Ends a body that its server found damaged."""

STATUSES: Final[Mapping[str, int]] = {
    "bad_name": 400,
    "missing": 404,
    "too_large": 413,
    "corrupt": 500,
    "unsupported": 501,
    "unavailable": 503,
}


def encode_info(info: ObjectInfo) -> str:
    """What is known about an object, for a header or a body."""
    fields = {
        "bucket": info.bucket,
        "name": info.name,
        "size": info.size,
        "digest": info.digest,
        "chunks": info.chunks,
        "modified": info.modified,
        "meta": dict(info.meta),
    }
    return json.dumps(fields, separators=(",", ":"))


def decode_info(text: str) -> ObjectInfo:
    """Read what `encode_info` wrote.

    Raises:
        StoreError: it is not that (`unavailable`: whoever answered is no object server).
    """
    try:
        fields: dict[str, Any] = json.loads(text)
        return ObjectInfo(
            bucket=str(fields["bucket"]),
            name=str(fields["name"]),
            size=int(fields["size"]),
            digest=str(fields["digest"]),
            chunks=int(fields["chunks"]),
            modified=float(fields["modified"]),
            meta=_meta(fields["meta"]),
        )
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise StoreError("the server's answer does not describe an object", reason="unavailable") from error


def encode_meta(meta: Mapping[str, str]) -> str:
    """The writer's meta data for a header.

    Raises:
        StoreError: they are too long (`too_large`).
    """
    text = json.dumps(dict(meta), separators=(",", ":"))
    if len(text) > META_BYTES_MAX:
        raise StoreError(f"the meta data of an object exceed {META_BYTES_MAX} bytes", reason="too_large")
    return text


def decode_meta(text: str) -> dict[str, str]:
    """Read what `encode_meta` wrote.

    Raises:
        StoreError: it is not that (`bad_name`).
    """
    try:
        return _meta(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        message = f"the header {META_HEADER} is no JSON object of texts"
        raise StoreError(message, reason="bad_name") from error


async def framed(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Put the digest behind the bytes. What the server finds damaged ends without one."""
    digest = sha256()
    try:
        async for piece in pieces:
            digest.update(piece)
            yield piece
    except StoreError as error:
        if error.reason != "corrupt":
            raise
        yield NO_DIGEST
    else:
        yield digest.digest()


async def unframed(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Take the digest off again; the bytes before it are held back by 32.

    Raises:
        StoreError: at the end, they have another digest (`corrupt`).
    """
    digest, held, length = sha256(), deque[bytes](), 0
    async for piece in pieces:
        held.append(piece)
        length += len(piece)
        while length - len(held[0]) >= len(NO_DIGEST):
            first = held.popleft()
            length -= len(first)
            digest.update(first)
            yield first
    rest = b"".join(held)
    last, claimed = rest[: -len(NO_DIGEST)], rest[-len(NO_DIGEST) :]
    digest.update(last)
    if last:
        yield last
    if digest.digest() != claimed:
        raise StoreError("an object is damaged: its digest differs", reason="corrupt")


def _meta(fields: object) -> dict[str, str]:
    if not isinstance(fields, dict) or not all(isinstance(value, str) for value in fields.values()):
        raise TypeError("not an object of texts")
    return fields
