"""A peer that speaks HTTP/2 and does what a test tells it to: what no well-behaved server does."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings

__all__ = ["H2Peer", "h2_peer"]

Header = tuple[str, str]


class H2Peer(asyncio.Protocol):
    """One accepted connection. `on_request(peer, stream_id)` is called for each request whose headers have come."""

    def __init__(self, on_request: Callable[["H2Peer", int], None], streams_max: int) -> None:
        config = h2.config.H2Configuration(client_side=False, validate_outbound_headers=False)
        self.h2 = h2.connection.H2Connection(config)
        code = h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS
        self.h2.local_settings = h2.settings.Settings(client=False, initial_values={code: streams_max})
        self.resets: list[int] = []
        self.requests: list[int] = []
        self.pings = 0
        self._on_request = on_request
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say hello."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.h2.initiate_connection()
        self.flush()

    def data_received(self, data: bytes) -> None:
        """Note what the client does."""
        for event in self.h2.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                assert event.stream_id is not None
                self.requests.append(event.stream_id)
                self._on_request(self, event.stream_id)
            elif isinstance(event, h2.events.StreamReset):
                assert event.stream_id is not None
                self.resets.append(event.stream_id)
            elif isinstance(event, h2.events.PingReceived):
                self.pings += 1
        self.flush()

    def answer(
        self, stream_id: int, body: bytes = b"", *, status: str = "200", end: bool = False, **headers: str
    ) -> None:
        """Send headers, and a body as far as the windows allow."""
        named = {"content-type": "application/octet-stream"} | {k.replace("_", "-"): v for k, v in headers.items()}
        self.h2.send_headers(stream_id, [(":status", status), *named.items()])
        if body:
            self.h2.send_data(stream_id, body)
        if end:
            self.h2.end_stream(stream_id)
        self.flush()

    def goodbye(self) -> None:
        """Send GOAWAY."""
        self.h2.close_connection()
        self.flush()

    def flush(self) -> None:
        """Send what waits."""
        self.transport.write(self.h2.data_to_send())


@asynccontextmanager
async def h2_peer(
    on_request: Callable[[H2Peer, int], None], *, streams_max: int = 100
) -> AsyncIterator[tuple[str, list[H2Peer]]]:
    """Listen; gives the address of the request plane and the connections that were accepted."""
    peers: list[H2Peer] = []

    def accept() -> H2Peer:
        peers.append(H2Peer(on_request, streams_max))
        return peers[-1]

    server = await asyncio.get_running_loop().create_server(accept, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/rpc", peers
    finally:
        server.close()
        for peer in peers:
            peer.transport.abort()
        await server.wait_closed()
