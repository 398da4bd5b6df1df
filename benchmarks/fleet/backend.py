"""Workers of our own, for what nginx cannot do: `python -m benchmarks.fleet.backend PORT...` streams paced chunks.

All streams of a process advance together, one chunk per step, as the sequences of an engine's batch do. Plain requests
are answered at once, so that the benchmark also runs where nginx is not installed. No model, no cache, no events.
"""

import argparse
import asyncio
import json
import sys
from typing import cast

import httptools

from benchmarks import event_loop
from benchmarks.fleet.answers import CHUNKS, COMPLETION, FIXED, STEP_SECONDS, STREAM_CHUNK

_BACKLOG = 4096
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def main() -> int:
    """Listen on every port until the process is told to end."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet.backend", description=__doc__)
    parser.add_argument("ports", type=int, nargs="+")
    event_loop.run(_serve(parser.parse_args().ports))
    return 0


class Steps:
    """Gives every running stream its next chunk, all in one step."""

    def __init__(self) -> None:
        self._left: dict[asyncio.Transport, int] = {}
        self._chunk = _framed(STREAM_CHUNK)
        self._last = _framed(b"data: [DONE]\n\n") + b"0\r\n\r\n"

    def begin(self, transport: asyncio.Transport) -> None:
        """Start a stream: its head leaves at once, with its first chunk."""
        transport.write(_STREAM_HEAD + self._chunk)
        self._left[transport] = CHUNKS - 1

    def lost(self, transport: asyncio.Transport) -> None:
        """Forget a stream whose client has gone."""
        self._left.pop(transport, None)

    async def run(self) -> None:
        """Step for ever."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due = max(due + STEP_SECONDS, loop.time())
            await asyncio.sleep(due - loop.time())
            for transport, left in list(self._left.items()):
                self._advance(transport, left)

    def _advance(self, transport: asyncio.Transport, left: int) -> None:
        if left > 1:
            transport.write(self._chunk)
            self._left[transport] = left - 1
        else:
            transport.write(self._last)
            del self._left[transport]


class Worker(asyncio.Protocol):
    """One connection to the pretended engine."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._path, self._stream = b"", False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            assert self._transport is not None
            self._transport.close()  # as an engine does when somebody tries HTTP/2 on it

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002 - the loop's signature
        if self._transport is not None:
            self._steps.lost(self._transport)

    def on_url(self, url: bytes) -> None:
        """Note the path of a new request."""
        self._path, self._stream = url, False

    def on_body(self, body: bytes) -> None:
        """Note whether a stream is asked for."""
        self._stream = self._stream or b'"stream":true' in body

    def on_message_complete(self) -> None:
        """Answer."""
        assert self._transport is not None
        if self._stream:
            self._steps.begin(self._transport)
        else:
            self._transport.write(_answer(self._path))


async def _serve(ports: list[int]) -> None:
    loop, steps = asyncio.get_running_loop(), Steps()
    for port in ports:
        await loop.create_server(lambda: Worker(steps), "127.0.0.1", port, backlog=_BACKLOG)
    await steps.run()


def _answer(path: bytes) -> bytes:
    return _ANSWERS.get(path) or (_ANSWERS[b"/v1/"] if path.startswith(b"/v1/") else _NOT_FOUND)


def _response(status: str, answer: object) -> bytes:
    body = json.dumps(answer).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _framed(chunk: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(chunk), chunk)


_ANSWERS = {path.encode(): _response("200 OK", answer) for path, answer in {**FIXED, "/v1/": COMPLETION}.items()}
_NOT_FOUND = _response("404 Not Found", {"detail": "Not Found"})

if __name__ == "__main__":
    sys.exit(main())
