"""Reads one source's live messages by libzmq: a SUB socket and its monitor.

It takes every transport, direction and security that ZeroMQ has; `live_stream` reads most of those in use faster.
"""

import time
from typing import Final

import zmq
from zmq.utils.monitor import parse_monitor_message

from kvrouter_subscribers.limits import CurveKeys, ZmqLimits
from kvrouter_subscribers.link import Link
from kvrouter_subscribers.workplace import Workplace

__all__ = ["LiveSocket", "configure"]

_BURST_MESSAGES: Final = 32
_HANDSHAKE_FAILURES = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
    zmq.EVENT_HANDSHAKE_FAILED_AUTH,
)
_STILL_TRYING = (zmq.EVENT_CONNECT_RETRIED, zmq.EVENT_CONNECT_DELAYED, zmq.EVENT_CONNECTED)
_MONITORED = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | sum(_HANDSHAKE_FAILURES) | sum(_STILL_TRYING)
_ABANDONED_SECONDS: Final = 1.0


class LiveSocket:
    """A `Live` on a socket of ZeroMQ; opened anew by `tick` for as long as it cannot be."""

    def __init__(self, link: Link, workplace: Workplace) -> None:
        self._link, self._work = link, workplace
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._failed_handshakes = 0
        self._lost_at: float | None = None
        self._refused = False

    def open(self) -> None:
        """Open the sockets and begin to connect; what fails here is kept in `last_error` for a later attempt."""
        link, work, address = self._link, self._work, self._link.address
        socket = monitor = None
        try:
            socket = work.context.socket(zmq.SUB)
            configure(socket, address.endpoint, work.limits, work.curve)
            socket.setsockopt(zmq.RCVHWM, work.limits.waiting_messages_max)
            monitor = socket.get_monitor_socket(_MONITORED)
            for topic in link.subscriptions:
                socket.setsockopt(zmq.SUBSCRIBE, topic)
            if address.bind:
                socket.bind(address.endpoint)
            else:
                socket.connect(address.endpoint)
        except zmq.ZMQError as error:
            link.last_error = f"{address.endpoint}: {error}"
            if socket is not None:
                _close(socket, monitor)
            return
        self._socket, self._monitor = socket, monitor
        if address.endpoint.startswith("inproc://"):
            link.connection_made()  # Both ends share a process: there is no handshake to observe.
        work.pump.watch(socket, monitor, drain=self._drain)

    def tick(self, now: float) -> None:
        """Open anew what could not be opened, or what ZeroMQ has given up."""
        if self._is_abandoned(now):
            if not self._refused:
                endpoint, bound = self._link.address.endpoint, self._work.limits.frame_bytes_max
                why = f"a frame of more than {bound} bytes, or bytes that are not ZeroMQ's"
                self._link.last_error = f"{endpoint}: {why} ended the connection"
            self.close()
        if self._socket is None:
            self.open()

    def close(self) -> None:
        """Close the sockets at once."""
        if self._socket is not None:
            self._work.pump.unwatch(self._socket)
            _close(self._socket, self._monitor)
        self._socket = self._monitor = self._lost_at = None
        self._failed_handshakes = 0
        self._link.gone()

    def _is_abandoned(self, now: float) -> bool:
        """Tell whether ZeroMQ has stopped connecting, so that the sockets must be opened anew.

        It reconnects after a loss, but never again to a peer that once broke the protocol, which is how it sees
        a frame beyond `frame_bytes_max` as well.
        """
        lost_at = self._lost_at
        return not self._link.address.bind and lost_at is not None and now - lost_at >= _ABANDONED_SECONDS

    def _drain(self, deadline: float) -> bool:
        """Read a burst, but nothing more after `deadline`; returns whether there may be more. Never raises."""
        if self._socket is None or self._monitor is None:
            return False
        self._read_monitor(self._monitor)
        receive = self._socket.recv_multipart
        for _ in range(_BURST_MESSAGES):
            try:
                frames = receive(zmq.NOBLOCK)
            except zmq.Again:
                return False
            self._link.take(frames)
            if time.perf_counter() >= deadline:  # batches may be large: a burst of them would hold up requests
                break
        return True

    def _read_monitor(self, monitor: zmq.Socket[bytes]) -> None:
        """Follow connections before their messages, so that a restart is seen before its first batch."""
        while int(monitor.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            event = parse_monitor_message(monitor.recv_multipart(zmq.NOBLOCK))["event"]
            if event in _STILL_TRYING:
                self._lost_at = None
            elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._link.connection_made()
            elif event == zmq.EVENT_DISCONNECTED:
                self._connection_lost()
            elif event in _HANDSHAKE_FAILURES:
                self._failed_handshakes += 1  # Its own DISCONNECTED follows; it never was a connection.
                self._link.handshake_failed()

    def _connection_lost(self) -> None:
        self._lost_at = self._link.now()
        self._refused = self._failed_handshakes > 0
        if self._refused:
            self._failed_handshakes -= 1
        else:
            self._link.connection_lost()


def configure(socket: zmq.Socket[bytes], endpoint: str, limits: ZmqLimits, curve: CurveKeys | None) -> None:
    """Set the options that live and replay sockets share.

    TCP keep-alive, not ZeroMQ heartbeats: the kernel answers for a process that is merely stopped, whose cache
    is intact, and does not answer for a machine that is gone.
    """
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.IPV6, int("[" in endpoint))
    socket.setsockopt(zmq.MAXMSGSIZE, limits.frame_bytes_max)
    socket.setsockopt(zmq.RECONNECT_IVL, 100)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, round(limits.reconnect_seconds_max * 1000))
    socket.setsockopt(zmq.HANDSHAKE_IVL, round(limits.handshake_seconds_max * 1000))
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 10)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 5)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)
    if curve is not None:
        socket.setsockopt(zmq.CURVE_SERVERKEY, curve.server_key)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, curve.public_key)
        socket.setsockopt(zmq.CURVE_SECRETKEY, curve.secret_key)


def _close(socket: zmq.Socket[bytes], monitor: zmq.Socket[bytes] | None) -> None:
    if monitor is not None:
        socket.disable_monitor()
        monitor.close(linger=0)
    socket.close(linger=0)
