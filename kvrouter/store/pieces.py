"""Objects on their way into a store: cut into pieces, measured, and held to a bound."""

import time
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from hashlib import sha256

from kvrouter.errors import StoreError
from kvrouter.store.objects import ObjectInfo

__all__ = ["Measure", "damaged", "missing", "pieces"]


class Measure:
    """What is known of an object's bytes so far."""

    def __init__(self, *, bytes_max: int) -> None:
        self.size = self.pieces = 0
        self._bytes_max, self._digest = bytes_max, sha256()

    def add(self, piece: bytes) -> bytes:
        """Count the next piece, and return it.

        Raises:
            StoreError: `too_large`.
        """
        self.size += len(piece)
        if self.size > self._bytes_max:
            raise StoreError(f"an object exceeds {self._bytes_max} bytes", reason="too_large")
        self._digest.update(piece)
        self.pieces += 1
        return piece

    def info(self, bucket: str, name: str, meta: Mapping[str, str] | None) -> ObjectInfo:
        """Describe the object that ends here."""
        return ObjectInfo(
            bucket=bucket,
            name=name,
            size=self.size,
            digest=self._digest.hexdigest(),
            chunks=self.pieces,
            modified=round(time.time(), 3),
            meta=dict(meta or {}),
        )

    def agrees(self, info: ObjectInfo) -> bool:
        """Tell whether these are the bytes that `info` describes."""
        return (self.size, self._digest.hexdigest()) == (info.size, info.digest)


def missing(bucket: str, name: str) -> StoreError:
    """The error of an object that is not there."""
    return StoreError(f"there is no object {bucket}/{name}", reason="missing")


def damaged(bucket: str, name: str) -> StoreError:
    """The error of an object whose bytes are not those that were put."""
    return StoreError(f"object {bucket}/{name} is damaged: its digest differs", reason="corrupt")


async def pieces(data: bytes | AsyncIterable[bytes], *, size: int) -> AsyncIterator[bytes]:
    """Cut `data` into pieces of exactly `size` bytes, but the last."""
    if isinstance(data, bytes | bytearray | memoryview):
        view = memoryview(data)
        for start in range(0, len(view), size):
            yield bytes(view[start : start + size])
        return
    rest = bytearray()
    async for chunk in data:
        rest += chunk
        while len(rest) >= size:
            yield bytes(rest[:size])
            del rest[:size]
    if rest:
        yield bytes(rest)
