"""ZMQ messages around a batch, live and replayed; sockets live elsewhere.

Live: `[topic, sequence, payload]`. Replay, as a DEALER sees it: `["", sequence,
payload]` from engines up to vLLM 0.25 and SGLang 0.5.21, `["", topic, sequence,
payload]` from later ones; the end has an empty payload and a sequence of all ones.
Both forms read the same from the right.

Our own publishers answer the request for `SNAPSHOT_START` with a snapshot in the same form. To any other publisher
that is a number that it never reached, so that it answers with the end alone.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from kvrouter.errors import WireError

__all__ = [
    "END_SEQUENCE",
    "SNAPSHOT_START",
    "ReplayData",
    "ReplayEnd",
    "live_frames",
    "parse_live",
    "parse_replay",
    "replay_request",
]

END_SEQUENCE: Final = 2**64 - 1
SNAPSHOT_START: Final = int.from_bytes(b"snapshot", "big")
_FRAMES_MAX: Final = 5


class ReplayData(NamedTuple):
    """One replayed batch."""

    sequence: int
    payload: bytes


class ReplayEnd(NamedTuple):
    """The publisher has no more to replay."""


def live_frames(topic: bytes, sequence: int, payload: bytes) -> list[bytes]:
    """Return the message that a publisher sends for one batch."""
    return [topic, sequence.to_bytes(8, "big"), payload]


def replay_request(start: int) -> list[bytes]:
    """Return what a DEALER sends to ask for everything from sequence `start`."""
    return [b"", start.to_bytes(8, "big")]


def parse_live(frames: Sequence[bytes]) -> tuple[bytes, int, bytes]:
    """Split a live message into topic, sequence and payload.

    Raises:
        WireError: it is not three frames with an eight-byte sequence.
    """
    if len(frames) != 3:
        raise WireError(f"a live message has 3 frames, not {len(frames)}", reason="bad_frames")
    return frames[0], _sequence(frames[1]), frames[2]


def parse_replay(frames: Sequence[bytes]) -> ReplayData | ReplayEnd:
    """Read one reply of a replay socket, in either form.

    Raises:
        WireError: too few or too many frames, or a sequence that is not eight bytes.
    """
    if not 2 <= len(frames) <= _FRAMES_MAX:
        raise WireError(f"a replay message has 2 to {_FRAMES_MAX} frames, not {len(frames)}", reason="bad_frames")
    sequence, payload = _sequence(frames[-2]), frames[-1]
    if not payload or sequence == END_SEQUENCE:
        return ReplayEnd()
    return ReplayData(sequence, payload)


def _sequence(frame: bytes) -> int:
    if len(frame) != 8:
        raise WireError(f"a sequence is 8 bytes, not {len(frame)}", reason="bad_sequence")
    return int.from_bytes(frame, "big")
