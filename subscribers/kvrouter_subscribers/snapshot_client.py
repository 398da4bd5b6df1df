"""Ask one publisher for its whole state, and put the parts of the answer together.

The request is a replay's, for a number that stands for it (`kvrouter.events.frames.SNAPSHOT_START`); so is the answer.
A publisher that has no snapshot answers with the end alone.
"""

from collections.abc import Callable

import zmq

from kvrouter.errors import WireError
from kvrouter.events.envelope_stream import Opened
from kvrouter.events.frames import SNAPSHOT_START
from kvrouter_subscribers.limits import CurveKeys, ZmqLimits
from kvrouter_subscribers.pump import Pump
from kvrouter_subscribers.replay_client import Replay

__all__ = ["Snapshot"]


class Snapshot:
    """One request for a snapshot. After a complete `run`: its parts as bare batches, and what they describe."""

    def __init__(self, open_envelope: Callable[[int, bytes], Opened], *, limits: ZmqLimits) -> None:
        self.batches: list[bytes] = []
        self.sequence = self.incarnation = 0
        self.error: str | None = None
        self._open_envelope, self._limits = open_envelope, limits
        self._parts = self._bytes = 0
        self._replay = Replay(
            SNAPSHOT_START,
            deliver=self._take,
            reject=self._fail,
            limits=limits,
            silence_seconds=limits.snapshot_silence_seconds,
        )

    async def run(
        self, context: zmq.Context[zmq.Socket[bytes]], pump: Pump, endpoint: str, curve: CurveKeys | None
    ) -> bool:
        """Ask and receive; returns whether all of it came. Otherwise `error` says what was missing."""
        complete = await self._replay.run(context, pump, endpoint, curve)
        if self.error is None and not complete:
            self.error = self._replay.error or "the snapshot was given up"
        if self.error is None and not self._parts:
            self.error = f"{endpoint}: the publisher has no snapshot"
        if self.error is None and len(self.batches) < self._parts:
            self.error = f"{endpoint}: {len(self.batches)} of {self._parts} parts of a snapshot came"
        return self.error is None

    def abandon(self) -> None:
        """Read nothing more; whoever runs us is being cancelled."""
        self._replay.abandon()

    def _take(self, sequence: int, frame: bytes) -> None:
        """Take the next part; parts come in order."""
        try:
            envelope = self._open_envelope(sequence, frame)
        except WireError as error:
            self._fail(error)
            return
        self._bytes += len(frame)
        if not self._parts and envelope.snapshot is not None:
            self.sequence, self.incarnation = envelope.sequence, envelope.incarnation
            self._parts = envelope.snapshot[1]
        is_next = envelope.snapshot == (len(self.batches), self._parts)
        if not is_next or (envelope.sequence, envelope.incarnation) != (self.sequence, self.incarnation):
            self._fail(WireError(f"part {len(self.batches)} of a snapshot is missing", reason="bad_snapshot"))
        elif self._bytes > self._limits.snapshot_bytes_max:
            self._fail(WireError(f"a snapshot exceeds {self._limits.snapshot_bytes_max} bytes", reason="too_large"))
        else:
            self.batches.append(envelope.payload)

    def _fail(self, error: WireError) -> None:
        self.error = self.error or str(error)
        self.batches.clear()
        self._replay.give_up()
