"""Puts requests together that arrive in several messages; bounded in number and bytes. No sockets here."""

from kvrouter.errors import RefusedError, WireError
from kvrouter.transport.two_part import MESSAGE_BYTES_MAX

__all__ = ["RequestAssembly"]


class RequestAssembly:
    """The pieces of requests that are not whole yet, of one peer."""

    __slots__ = ("_bytes", "_bytes_max", "_message_bytes_max", "_pieces", "_requests_max")

    def __init__(
        self,
        *,
        message_bytes_max: int = MESSAGE_BYTES_MAX,
        bytes_max: int = 4 * MESSAGE_BYTES_MAX,
        requests_max: int = 1024,
    ) -> None:
        self._message_bytes_max, self._bytes_max, self._requests_max = message_bytes_max, bytes_max, requests_max
        self._pieces: dict[bytes, list[bytes]] = {}
        self._bytes = 0

    def __len__(self) -> int:
        """Requests that are not whole."""
        return len(self._pieces)

    def add(self, stream_id: bytes, piece: bytes | memoryview, *, more: bool) -> bytes | None:
        """Take a piece; returns the request once it is whole. What is refused is dropped wholly.

        Raises:
            RefusedError: too many requests, or bytes of them, are incomplete (`RESOURCE_EXHAUSTED`).
            WireError: this one exceeds the limit of a message (`too_large`).
        """
        pieces = self._pieces.get(stream_id)
        if pieces is None and not more:
            return bytes(piece)
        if pieces is None:
            if len(self._pieces) >= self._requests_max:
                raise RefusedError(f"{self._requests_max} requests are incomplete", code="RESOURCE_EXHAUSTED")
            pieces = self._pieces[stream_id] = []
        pieces.append(bytes(piece))
        self._bytes += len(piece)
        if sum(map(len, pieces)) > self._message_bytes_max:
            self.drop(stream_id)
            raise WireError(f"a request exceeds {self._message_bytes_max} bytes", reason="too_large")
        if self._bytes > self._bytes_max:
            self.drop(stream_id)
            raise RefusedError(f"{self._bytes_max} bytes of requests are incomplete", code="RESOURCE_EXHAUSTED")
        return None if more else b"".join(self.drop(stream_id))

    def drop(self, stream_id: bytes) -> list[bytes]:
        """Forget an incomplete request; returns its pieces."""
        pieces = self._pieces.pop(stream_id, [])
        self._bytes -= sum(map(len, pieces))
        return pieces

    def clear(self) -> None:
        """Forget all."""
        self._pieces.clear()
        self._bytes = 0
