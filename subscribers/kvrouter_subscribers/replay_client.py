"""Ask one publisher for the batches that we missed.

Every request has a socket of its own, so that a late answer to a request that was given up cannot be taken for
the answer to the present one. It is a DEALER without a receive bound that is read at once: the ROUTER of old
engines drops what a slow reader does not take, in the middle and without a word.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable

import zmq

from kvrouter.errors import WireError
from kvrouter.events.frames import ReplayEnd, parse_replay, replay_request
from kvrouter_subscribers.limits import CurveKeys, ZmqLimits
from kvrouter_subscribers.live_socket import configure
from kvrouter_subscribers.pump import Pump

__all__ = ["Replay"]

_BURST_MESSAGES = 32


class Replay:
    """One request for everything from `start` on; batches go to `deliver` in the order in which they come."""

    def __init__(
        self,
        start: int,
        *,
        deliver: Callable[[int, bytes], None],
        reject: Callable[[WireError], None],
        limits: ZmqLimits,
        silence_seconds: float | None = None,
    ) -> None:
        self.start = start
        self._silence_seconds = limits.replay_silence_seconds if silence_seconds is None else silence_seconds
        self.batches = 0
        self.error: str | None = None
        self._deliver, self._reject, self._limits = deliver, reject, limits
        self._socket: zmq.Socket[bytes] | None = None
        self._reading = True
        self._given_up = False
        self._ended = asyncio.Event()

    async def run(
        self, context: zmq.Context[zmq.Socket[bytes]], pump: Pump, endpoint: str, curve: CurveKeys | None
    ) -> bool:
        """Ask and receive; returns whether the end marker came. Otherwise `error` says what was missing."""
        socket = None
        try:
            socket = context.socket(zmq.DEALER)
            configure(socket, endpoint, self._limits, curve)
            socket.setsockopt(zmq.RCVHWM, 0)
            socket.connect(endpoint)
            socket.send_multipart(replay_request(self.start), zmq.NOBLOCK)
            self._socket = socket
            pump.watch(socket, drain=self._drain)
            await self._wait()
        except zmq.ZMQError as error:
            self.error = f"{endpoint}: {error}"
        finally:
            self._reading = False
            if socket is not None:
                pump.unwatch(socket)
                socket.close(linger=0)
        return self._ended.is_set() and not self._given_up

    def abandon(self) -> None:
        """Deliver nothing more; whoever runs us is being cancelled."""
        self._reading = False

    def give_up(self) -> None:
        """Read nothing more: what came cannot be used. `run` returns soon."""
        self._reading = False
        self._given_up = True
        self._ended.set()

    async def _wait(self) -> None:
        """Wait for the end marker as long as batches keep coming, within the total bound."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._limits.replay_seconds_max
        while (left := deadline - loop.time()) > 0:
            before = self.batches
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, self._silence_seconds)):
                    await self._ended.wait()
            if self._ended.is_set():
                return
            if self.batches == before and left > self._silence_seconds:
                self.error = f"replay from {self.start}: no answer for {self._silence_seconds:g} s"
                return
        self.error = f"replay from {self.start}: no end within {self._limits.replay_seconds_max:g} s"

    def _drain(self, deadline: float) -> bool:
        if self._socket is None or not self._reading:
            return False
        receive = self._socket.recv_multipart
        for _ in range(_BURST_MESSAGES):
            try:
                frames = receive(zmq.NOBLOCK)
            except zmq.Again:
                return False
            if not self._take(frames):
                return False
            if time.perf_counter() >= deadline:  # as in `Link.drain`
                break
        return True

    def _take(self, frames: list[bytes]) -> bool:
        """Take one message; returns whether to go on, because what we deliver may make somebody abandon us."""
        try:
            reply = parse_replay(frames)
        except WireError as error:
            self._reject(error)
            return True
        if isinstance(reply, ReplayEnd):
            self._reading = False
            self._ended.set()
        else:
            self.batches += 1
            self._deliver(reply.sequence, reply.payload)
        return self._reading
