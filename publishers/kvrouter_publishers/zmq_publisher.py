"""Publish events over ZeroMQ, exactly as vLLM and SGLang do, so that any consumer of theirs understands us.

Live events go out of a PUB socket as `[topic, sequence: u64 big-endian, payload]`; a ROUTER socket replays the
last batches on request (`replay_server`). With the native wire the payload is an envelope of ours instead, and load
reports go out of the same socket under a topic of their own.
"""

import math
import time
from typing import Literal

import zmq

from kvrouter.errors import SettingsError
from kvrouter.events.encode import Encoding
from kvrouter.events.endpoints import check_endpoint, publisher_binds, rank_endpoint
from kvrouter.events.frames import live_frames
from kvrouter.events.load import KV_METRICS_TOPIC, LoadReport, encode_load
from kvrouter_publishers.core import PublisherCore
from kvrouter_publishers.replay_server import ReplayServer
from kvrouter_publishers.threaded import ThreadedPublisher

__all__ = ["ZmqEventPublisher"]

_REQUEST_BYTES_MAX = 4096
_TURN_BATCHES_MAX = 64
"""Live batches sent before requests get their turn."""
_IDLE_POLL_SECONDS = 1.0
_LOAD_TOPIC = KV_METRICS_TOPIC.encode()


class ZmqEventPublisher(ThreadedPublisher):
    """An `EventPublisher` over ZeroMQ PUB, with replay.

    Args:
        endpoint: where events go, for rank 0; rank N uses the port N above. It is bound if it is a wildcard
            (`*`, `::`, `0.0.0.0`), `ipc` or `inproc`, otherwise connected; `bind` overrides that.
        replay_endpoint: where replays and snapshots are served, by the same rules but always bound; None serves none.
        topic: first frame of every message of events; subscribers filter by its prefix. Not `kv_metrics`.
        rank: data-parallel rank of this publisher; part of every batch.
        wire: `vllm` sends what vLLM sends. `native` sends envelopes (docs/wire.md), which only our own subscribers
            understand: they name the publisher's life, carry digests, and snapshots are served.
        worker_id: who publishes; needed by the native wire and by load reports.
        buffer_steps: batches kept for replay.
        buffer_bytes: bytes kept for replay; whichever bound is reached first counts.
        hwm: messages that ZeroMQ keeps for each slow subscriber before it drops.
        max_queue_size: engine steps that wait for the publisher's thread. Of more than these only what they changed
            in sum is kept, and sent.
        encoding: `map` (vLLM >= 0.24, SGLang >= 0.5.20) or `array` (before).
        digest_seconds: how often the native wire says what the cache holds; None never.
        snapshots: whether the native wire's publisher follows what the cache holds, for digests and snapshots.
        load_reports: whether `publish_load` sends. By default only the native wire does: consumers of vLLM's events
            that subscribe to every topic would take a report for a batch.
        replay_topic: whether replays carry the topic (vLLM >= 0.26); see `replay_server`.
        curve_secret_key: Z85 CURVE secret key; subscribers must then know the public key. None is plain text.
        context: needed for `inproc` endpoints, whose both sides share one; by default we own a context.

    After `fork` the child has neither our thread nor our sockets: its `publish` drops and counts. A process that
    publishes builds its own publisher, after the fork.

    Raises:
        SettingsError: an endpoint is malformed or its address cannot be bound, or another setting is out of its bounds.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        replay_endpoint: str | None = None,
        topic: str = "",
        rank: int = 0,
        wire: Literal["vllm", "native"] = "vllm",
        worker_id: str = "",
        buffer_steps: int = 10_000,
        buffer_bytes: int = 256 << 20,
        hwm: int = 100_000,
        max_queue_size: int = 100_000,
        encoding: Encoding = "map",
        digest_seconds: float | None = 30.0,
        snapshots: bool = True,
        load_reports: bool | None = None,
        bind: bool | None = None,
        replay_topic: bool = True,
        curve_secret_key: bytes | None = None,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
    ) -> None:
        if topic == KV_METRICS_TOPIC:
            raise SettingsError(f"topic {topic!r} is that of load reports")
        if load_reports and not worker_id:
            raise SettingsError("load reports need a worker_id: they name whose they are")
        core = PublisherCore(
            worker_id=worker_id,
            rank=rank,
            native=wire == "native",
            encoding=encoding,
            buffer_steps=buffer_steps,
            buffer_bytes=buffer_bytes,
            max_queue_size=max_queue_size,
            digest_seconds=digest_seconds,
            snapshots=snapshots and wire == "native",
        )
        self._owns_context = context is None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context() if context is None else context
        self._curve_secret_key = curve_secret_key
        self._topic = topic.encode()
        self._tells_load = wire == "native" if load_reports is None else load_reports
        self._live, replays = self._open(endpoint, replay_endpoint, rank, hwm, bind=bind)
        self._replays = None
        if replays is not None:
            self._replays = ReplayServer(replays, core, topic=self._topic, with_topic=replay_topic)
        self.endpoint = self._live.getsockopt_string(zmq.LAST_ENDPOINT)
        self.replay_endpoint = replays.getsockopt_string(zmq.LAST_ENDPOINT) if replays else None
        super().__init__(core)
        self._start()

    def publish_load(self, report: LoadReport) -> None:
        """Tell how busy our rank is; see `EventPublisher`. Counted as refused where nothing is to be told."""
        if self._tells_load:
            super().publish_load(report)
        else:
            self._core.counters.load_reports_refused += 1

    def _run(self) -> None:
        """Send, answer, sleep; from here on no other code touches the sockets."""
        try:
            poller = zmq.Poller()
            poller.register(self._live, zmq.POLLIN)  # Never readable, but polling lets it handle new subscriptions.
            if self._replays is not None:
                poller.register(self._replays.socket, zmq.POLLIN)
            poller.register(self._bell_descriptor(), zmq.POLLIN)
            while not self._is_finished():
                self._send_some()
                if self._replays is not None:
                    self._replays.advance(time.monotonic())
                self._wait(poller)
        finally:
            self._close_sockets()

    def _send_some(self) -> None:
        """Send live batches and our load, but let replays have their turn."""
        now = time.monotonic()
        report = self._take_load(now)
        if report is not None:
            number = self._core.counters.load_reports_sent - 1
            self._live.send_multipart(live_frames(_LOAD_TOPIC, number, encode_load(report)))
        for _ in range(_TURN_BATCHES_MAX):
            frame = self._core.take(now)
            if frame is None:
                return
            self._live.send_multipart(live_frames(self._topic, frame.sequence, frame.payload))

    def _wait(self, poller: zmq.Poller) -> None:
        """Sleep until there is work: a batch, a request, or an answer in progress."""
        busy = None if self._replays is None else self._replays.poll_milliseconds()
        seconds = self._begin_sleep(_IDLE_POLL_SECONDS if busy is None else busy / 1000)
        ready = dict(poller.poll(math.ceil(seconds * 1000)))
        self._end_sleep()
        if self._replays is not None and self._replays.socket in ready:
            self._replays.accept()

    def _close_sockets(self) -> None:
        """What was sent has until the deadline to reach the network."""
        now = time.monotonic()
        linger = max(0, round(((self._stop_deadline or now) - now) * 1000))
        self._live.close(linger=linger)
        if self._replays is not None:
            self._replays.socket.close(linger=linger)

    def _release(self) -> None:
        if self._owns_context:
            self._context.term()

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
