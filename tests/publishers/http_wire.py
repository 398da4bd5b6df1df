"""A plain HTTP client for the publisher's tests: bytes in, bytes out, nothing helped along."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from kvrouter.events import Envelope, decode_envelope
from kvrouter_publishers import HttpEventPublisher, HttpEventServer
from kvrouter_subscribers.http_frames import split_frames
from tests.publishers.wire import WAIT_SECONDS

LOOPBACK = "127.0.0.1:0"


class Reply(NamedTuple):
    """A whole answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def envelopes(self) -> list[Envelope]:
        """The body as frames."""
        return [decode_envelope(frame) for frame in split_frames(self.body)]

    @property
    def position(self) -> tuple[str, int]:
        """The life and the next number of the stream."""
        return self.headers["kv-incarnation"], int(self.headers["kv-next-sequence"])


class Client:
    """One connection that says what it is told to say."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=WAIT_SECONDS)
        self._buffer = b""

    def send(self, data: bytes) -> None:
        """Send any bytes."""
        self.socket.sendall(data)

    def ask(self, target: str, *headers: str) -> None:
        """Send a GET without waiting for its answer."""
        self.send("\r\n".join([f"GET {target} HTTP/1.1", "Host: here", *headers, "", ""]).encode())

    def get(self, target: str, *headers: str) -> Reply:
        """Send a GET and read its answer."""
        self.ask(target, *headers)
        return self.reply()

    def reply(self) -> Reply:
        """Read one answer."""
        while b"\r\n\r\n" not in self._buffer:
            self._more()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        size = int(headers.get("content-length", 0))
        while len(self._buffer) < size:
            self._more()
        body, self._buffer = self._buffer[:size], self._buffer[size:]
        return Reply(int(first.split(" ")[1]), headers, body)

    def is_closed(self) -> bool:
        """Wait until the server closes the connection; whatever it still says is dropped."""
        try:
            while self.socket.recv(65536):
                continue
        except ConnectionError:
            pass
        return True

    def _more(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise EOFError(self._buffer)
        self._buffer += data


@contextmanager
def client(of: HttpEventPublisher | HttpEventServer) -> Iterator[Client]:
    """A client of a publisher or server, closed at the end."""
    assert of.endpoint is not None
    opened = Client(int(of.endpoint.rpartition(":")[2]))
    try:
        yield opened
    finally:
        opened.socket.close()
