"""Answers subscribers that missed batches, on the publisher's own thread, a little between live events.

A request is exactly `[identity, b"", start: u64 big-endian]`, sent from a DEALER. The answer is every kept batch
from `start` on, then an end marker:

    vLLM >= 0.26, SGLang >= 0.5.22    [b"", topic, sequence, payload] ... [b"", b"", FF*8, b""]
    before                            [b"", sequence, payload] ...        [b"", FF*8, b""]

The start `SNAPSHOT_START` asks for a snapshot instead, which comes in the same form: its frames are envelopes, all
under the number of the last batch that they include.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import zmq

from kvrouter.events.frames import END_SEQUENCE, SNAPSHOT_START
from kvrouter_publishers.core import PublisherCore

__all__ = ["ReplayServer"]

REPLAYS_MAX = 16
TURN_BATCHES_MAX = 64
"""Batches sent to each subscriber before live events get their turn again."""
STALLED_SECONDS_MAX = 30.0
"""A subscriber that reads nothing for so long is given up."""
STALLED_POLL_MILLISECONDS = 5
SNAPSHOT_PART_BYTES = 1 << 18
"""A part of a snapshot: about ten milliseconds' work, after which live events get their turn again."""
SNAPSHOT_SECONDS_MAX = 2.0
"""A snapshot that is not older is given to others who ask, as long as the batches after it are kept."""


class _Replay:
    """One subscriber's answer in progress; it holds its batches, so that the ring may move on meanwhile."""

    __slots__ = ("frames", "identity", "pending", "stalled_since")

    def __init__(self, identity: bytes, frames: Iterator[list[bytes]]) -> None:
        self.identity, self.frames = identity, frames
        self.pending: list[bytes] | None = next(frames)
        self.stalled_since: float | None = None


class ReplayServer:
    """Serves a bounded number of replays and snapshots, a few batches of each per turn.

    The socket must be a ROUTER with `ROUTER_MANDATORY`: a subscriber that reads slowly then makes us wait for it
    instead of losing batches in the middle, which is how old engines answer without contiguity or end.
    """

    def __init__(self, socket: zmq.Socket[bytes], core: PublisherCore, *, topic: bytes, with_topic: bool) -> None:
        self.socket = socket
        self._core, self._counters = core, core.counters
        self._waiting: set[bytes] = set()  # Who asked for the snapshot that is being made.
        self._preparing: Iterator[list[bytes]] | None = None
        self._prepared_sequence = 0
        self._snapshot: list[tuple[int, bytes]] = []
        self._snapshot_until = 0.0
        self._head = [b"", topic] if with_topic else [b""]
        end = [END_SEQUENCE.to_bytes(8), b""]
        self._end = [b"", b"", *end] if with_topic else [b"", *end]
        self._replays: dict[bytes, _Replay] = {}

    def poll_milliseconds(self) -> int | None:
        """Return how soon `advance` should be called again; None when nobody waits for anything."""
        if self._preparing is not None:
            return 0
        if not self._replays:
            return None
        all_stalled = all(replay.stalled_since is not None for replay in self._replays.values())
        return STALLED_POLL_MILLISECONDS if all_stalled else 0

    def accept(self) -> None:
        """Take the requests that have arrived, at most one turn's worth."""
        for _ in range(TURN_BATCHES_MAX):
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if len(frames) != 3 or frames[1] != b"" or len(frames[2]) != 8:
                self._counters.replay_requests_ignored += 1
                continue
            identity, start = frames[0], int.from_bytes(frames[2])
            known = identity in self._replays or identity in self._waiting
            if not known and len(self._replays) + len(self._waiting) >= REPLAYS_MAX:
                self._counters.replays_refused += 1
            elif start == SNAPSHOT_START:
                self._ask_snapshot(identity)
            else:
                self._waiting.discard(identity)
                self._begin(identity, self._core.since(start))

    def advance(self, now: float) -> None:
        """Send the next batches of every replay; `now` is monotonic seconds."""
        self._advance_snapshot(now)
        for replay in list(self._replays.values()):
            outcome = self._send_some(replay, now)
            if outcome == "more":
                continue
            del self._replays[replay.identity]
            if outcome == "done":
                self._counters.replays_served += 1
            else:
                self._counters.replays_abandoned += 1

    def _begin(self, identity: bytes, batches: Sequence[tuple[int, bytes]]) -> None:
        self._replays[identity] = _Replay(identity, self._messages(batches))

    def _messages(self, batches: Sequence[tuple[int, bytes]]) -> Iterator[list[bytes]]:
        for sequence, payload in batches:
            yield [*self._head, sequence.to_bytes(8), payload]
        yield self._end

    def _ask_snapshot(self, identity: bytes) -> None:
        """Several routers that lost the same batches share one, as long as what follows it is kept."""
        oldest = self._core.oldest_sequence()
        if self._snapshot and oldest is not None and oldest <= self._snapshot[0][0] + 1:
            self._begin(identity, self._snapshot)
            return
        self._replays.pop(identity, None)
        self._waiting.add(identity)
        if self._preparing is None:
            self._snapshot = []
            self._preparing = self._core.prepare_snapshot(part_bytes_max=SNAPSHOT_PART_BYTES)
            self._prepared_sequence = self._core.next_sequence - 1

    def _advance_snapshot(self, now: float) -> None:
        """Make the next part of a snapshot that somebody waits for, or forget one that is too old to share."""
        if self._preparing is None:
            if self._snapshot and now >= self._snapshot_until:
                self._snapshot = []
            return
        frames = next(self._preparing, None)
        if frames == []:
            return
        self._preparing = None
        self._snapshot = [(self._prepared_sequence, frame) for frame in frames or ()]
        self._snapshot_until = now + SNAPSHOT_SECONDS_MAX
        for identity in self._waiting:
            self._begin(identity, self._snapshot)
        self._waiting.clear()

    def _send_some(self, replay: _Replay, now: float) -> Literal["more", "done", "gone"]:
        for _ in range(TURN_BATCHES_MAX):
            if replay.pending is None:
                return "done"
            try:
                self.socket.send_multipart([replay.identity, *replay.pending], zmq.NOBLOCK)
            except zmq.Again:
                replay.stalled_since = now if replay.stalled_since is None else replay.stalled_since
                return "gone" if now - replay.stalled_since > STALLED_SECONDS_MAX else "more"
            except zmq.ZMQError as error:
                if error.errno == zmq.EHOSTUNREACH:
                    return "gone"
                raise
            replay.stalled_since = None
            self._counters.replay_batches_sent += replay.pending is not self._end
            replay.pending = next(replay.frames, None)
        return "more"
