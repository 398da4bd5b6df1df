"""Publish events over ZeroMQ, exactly as vLLM and SGLang do, so that any consumer of theirs understands us.

Live events go out of a PUB socket as `[topic, sequence: u64 big-endian, payload]`; a ROUTER socket replays the
last batches on request (`replay_server`). The thread behind it is in `zmq_loop`.
"""

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Literal, Self, cast

import zmq

from kvrouter.errors import SettingsError
from kvrouter.events import Event
from kvrouter.events.endpoints import check_endpoint, publisher_binds, rank_endpoint
from kvrouter_publishers.counters import Counters
from kvrouter_publishers.outbox import Outbox
from kvrouter_publishers.replay_server import ReplayServer
from kvrouter_publishers.ring import ReplayRing
from kvrouter_publishers.zmq_loop import PublisherLoop

__all__ = ["ZmqEventPublisher"]

_REQUEST_BYTES_MAX = 4096
_UNREADABLE = cast("tuple[Event, ...]", (None,))
"""Stands for a step whose events could not even be listed."""


class ZmqEventPublisher:
    """An `EventPublisher` over ZeroMQ PUB, with replay.

    Args:
        endpoint: where events go, for rank 0; rank N uses the port N above. It is bound if it is a wildcard
            (`*`, `::`, `0.0.0.0`), `ipc` or `inproc`, otherwise connected; `bind` overrides that.
        replay_endpoint: where replays are served, by the same rules but always bound; None serves none.
        topic: first frame of every message; subscribers filter by its prefix.
        rank: data-parallel rank of this publisher; part of every batch.
        buffer_steps: batches kept for replay.
        buffer_bytes: bytes kept for replay; whichever bound is reached first counts.
        hwm: messages that ZeroMQ keeps for each slow subscriber before it drops.
        max_queue_size: batches that wait for the publisher's thread. When they are too many the oldest are
            dropped, and the stream says so: a number is skipped and `AllBlocksCleared` follows.
        encoding: `map` (vLLM >= 0.24, SGLang >= 0.5.20) or `array` (before).
        replay_topic: whether replays carry the topic (vLLM >= 0.26); see `replay_server`.
        curve_secret_key: Z85 CURVE secret key; subscribers must then know the public key. None is plain text.
        context: needed for `inproc` endpoints, whose both sides share one; by default we own a context.

    After `fork` the child has neither our thread nor our sockets: its `publish` drops and counts. A process that
    publishes builds its own publisher, after the fork.

    Raises:
        SettingsError: an endpoint is malformed, or its address cannot be bound.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        replay_endpoint: str | None = None,
        topic: str = "",
        rank: int = 0,
        buffer_steps: int = 10_000,
        buffer_bytes: int = 256 << 20,
        hwm: int = 100_000,
        max_queue_size: int = 100_000,
        encoding: Literal["map", "array"] = "map",
        bind: bool | None = None,
        replay_topic: bool = True,
        curve_secret_key: bytes | None = None,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
    ) -> None:
        self._owns_context = context is None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context() if context is None else context
        self._curve_secret_key = curve_secret_key
        self._process = os.getpid()
        self._closing = False
        self._counters = Counters()
        self._outbox = Outbox(max_queue_size)
        self._ring = ReplayRing(batches_max=buffer_steps, bytes_max=buffer_bytes)
        live, replays = self._open(endpoint, replay_endpoint, rank, hwm, bind=bind)
        topic_frame = topic.encode()
        server = None
        if replays is not None:
            server = ReplayServer(
                replays, self._ring, topic=topic_frame, with_topic=replay_topic, counters=self._counters
            )
        self._loop = PublisherLoop(
            live=live,
            replays=server,
            outbox=self._outbox,
            ring=self._ring,
            counters=self._counters,
            topic=topic_frame,
            rank=rank,
            encoding=encoding,
        )
        self.endpoint = live.getsockopt_string(zmq.LAST_ENDPOINT)
        self.replay_endpoint = replays.getsockopt_string(zmq.LAST_ENDPOINT) if replays else None
        self._thread = threading.Thread(target=self._loop.run, name=f"kvrouter-publisher-{rank}", daemon=True)
        self._thread.start()

    def publish(self, events: Sequence[Event]) -> None:
        """Hand over the events of one engine step; see `EventPublisher` for what may be relied on."""
        try:
            batch = tuple(events)
        except Exception:  # noqa: BLE001 - a guest never raises into its host; the thread counts it and states a loss
            batch = _UNREADABLE
        if not batch:
            return
        if os.getpid() != self._process:
            self._counters.events_dropped_forked += len(batch)
        elif self._closing or not self._loop.running:
            self._counters.events_dropped_not_running += len(batch)
        else:
            self._outbox.put(time.time(), batch)
            if self._loop.sleeping:
                self._loop.ring_bell()

    def close(self, *, timeout_seconds: float = 2.0) -> None:
        """Send what waits, for at most `timeout_seconds`, then release the sockets."""
        if os.getpid() != self._process:
            return  # Sockets and thread belong to the parent; touching them here would disturb it.
        self._closing = True
        self._loop.stop(deadline=time.monotonic() + timeout_seconds)
        self._thread.join(timeout_seconds + 1.0)
        if self._owns_context and not self._thread.is_alive():
            self._context.term()

    def statistics(self) -> dict[str, int]:
        """Return counters since the start, and the state now, as plain integers."""
        return {
            **asdict(self._counters),
            "outbox_batches": len(self._outbox),
            "replayable_batches": len(self._ring),
            "replayable_bytes": self._ring.bytes,
            "next_sequence": self._loop.next_sequence,
            "running": int(self._loop.running),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(
        self, endpoint: str, replay_endpoint: str | None, rank: int, hwm: int, *, bind: bool | None
    ) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes] | None]:
        """Open the sockets in the caller's thread, so that a wrong address fails here and not in the background."""
        binds = publisher_binds(endpoint) if bind is None else bind
        live = replays = None
        try:
            live = self._socket(zmq.PUB)
            live.setsockopt(zmq.SNDHWM, hwm)
            _attach(live, rank_endpoint(check_endpoint(endpoint), rank), bind=binds)
            if replay_endpoint is not None:
                replays = self._socket(zmq.ROUTER)
                replays.setsockopt(zmq.ROUTER_MANDATORY, 1)
                replays.setsockopt(zmq.MAXMSGSIZE, _REQUEST_BYTES_MAX)
                _attach(replays, rank_endpoint(check_endpoint(replay_endpoint), rank), bind=True)
        except (SettingsError, zmq.ZMQError) as error:
            for socket in (live, replays):
                if socket is not None:
                    socket.close(linger=0)
            if self._owns_context:
                self._context.term()
            if isinstance(error, SettingsError):
                raise
            raise SettingsError(f"cannot publish events on {endpoint}: {error}") from error
        return live, replays

    def _socket(self, kind: int) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        try:
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
            if self._curve_secret_key is not None:
                socket.setsockopt(zmq.CURVE_SERVER, 1)
                socket.setsockopt(zmq.CURVE_SECRETKEY, self._curve_secret_key)
        except zmq.ZMQError:
            socket.close(linger=0)
            raise
        return socket


def _attach(socket: zmq.Socket[bytes], endpoint: str, *, bind: bool) -> None:
    socket.setsockopt(zmq.IPV6, int("[" in endpoint))
    try:
        if bind:
            socket.bind(endpoint)
        else:
            socket.connect(endpoint)
    except zmq.ZMQError as error:
        raise SettingsError(f"cannot {'bind' if bind else 'connect to'} {endpoint}: {error}") from error
