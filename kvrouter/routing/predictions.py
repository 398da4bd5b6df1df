"""Blocks that ranks will hold soon, because of what was just routed to them.

A decision writes its prompt's blocks here at once, so that the siblings of a burst follow the first one before any
event could have told. What was written ends by time, and the oldest of a rank ends when it has too much. For a rank
without live events this is all there is to know: the approximate mode.

Only blocks beyond the known prefix need to be written. A match therefore continues, rank by rank, where confirmed
blocks end. Nothing here is believed over an event: a rank's overlap is the longer of the two.

This is the reference implementation; the native core has one with the same contract, in which a decision costs about
a fortieth. `knowledge.py` takes the core's where it is present.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from heapq import heappop, heappush
from typing import TypeAlias

import msgspec

from kvrouter.routing.landmarks import landmark_depth, landmarks, landmarks_known, landmarks_within

__all__ = ["PredictedBlocks"]


class _Note(msgspec.Struct, eq=False, frozen=True, gc=False):
    """What one decision wrote for a rank, and until when it holds. There are very many: the collector skips them."""

    bit: int
    deadline: float
    hashes: Sequence[int]


# The latest note that has a block: of the one rank that is predicted to hold it, as nearly always, or of each.
_Latest: TypeAlias = _Note | tuple[_Note, ...]


class _RankNotes:
    """What was written for one rank, oldest first."""

    __slots__ = ("bit", "distinct", "notes", "queued", "written")

    def __init__(self, rank: int) -> None:
        self.bit = 1 << rank
        self.notes: deque[_Note] = deque()
        self.written = 0  # blocks in `notes`, those that a later note repeats included
        self.distinct = 0  # and without them
        self.queued = False


class PredictedBlocks:
    """Predicted blocks of every rank, for one block size. Time is an argument.

    Deadlines of one rank never decrease in the order of writing, so both ends, by time and by number, take notes
    from the front. Memory is bounded by `blocks_max` blocks written per rank and `total_max` over all.
    """

    __slots__ = ("_blocks_max", "_due", "_followed", "_latest", "_queued", "_ranks", "_total_max", "_written")

    def __init__(self, *, blocks_max: int = 65_536, total_max: int = 4_194_304) -> None:
        self._blocks_max, self._total_max = blocks_max, total_max
        self._latest: dict[int, _Latest] = {}
        self._ranks: dict[int, _RankNotes] = {}
        self._written = 0
        self._followed: dict[int, bool] = {}
        # Each rank that has notes is here once, under a time before which none of them is due. Numbers break ties.
        self._due: list[tuple[float, int, _RankNotes]] = []
        self._queued = 0

    def __len__(self) -> int:
        """Blocks written and not ended, over all ranks; at most `total_max`."""
        return self._written

    def blocks(self, rank: int) -> int:
        """Distinct blocks predicted on one rank; at most `blocks_max`."""
        own = self._ranks.get(rank)
        return own.distinct if own is not None else 0

    def deadline(self, rank: int, key: int) -> float | None:
        """Until when a block is predicted on a rank; None if it is not."""
        note = _of_rank(self._latest.get(key), 1 << rank)
        return note.deadline if note is not None else None

    def promised(self, confirmed: dict[int, int], hashes: bytes, block_size: int, tokens: int) -> dict[int, int]:
        """The tokens of a prompt that ranks have, with those that are predicted to follow the `confirmed` ones.

        `hashes` are all of the prompt's, as 64-bit integers in the machine's byte order, and `tokens` its length.
        Returns `confirmed` itself where nothing is predicted.
        """
        if not self._written:
            return confirmed
        depths = self.match(_landmarks(hashes), landmarks_known(confirmed, block_size))
        # An engine computes at least the last token itself, to have something to continue from.
        limit = (tokens - 1) // block_size
        promised = confirmed
        for rank, marks in depths.items():
            predicted = min(landmark_depth(marks), limit) * block_size
            if predicted > confirmed.get(rank, 0):
                if promised is confirmed:
                    promised = dict(confirmed)
                promised[rank] = predicted
        return promised

    def predict(  # noqa: PLR0917 - by position: this is called for every request
        self,
        rank: int,
        hashes: bytes,
        block_size: int,
        confirmed: int,
        promised: int,
        deadline: float,
        fresh: float,
    ) -> None:
        """Predict until `deadline` that a rank holds a prompt, of which it has `confirmed` tokens for certain.

        What is `promised` beyond them is written again only if its own deadline is not after `fresh`.
        """
        marks = _landmarks(hashes)
        begin = landmarks_within(confirmed // block_size)
        known = min(landmarks_within(promised // block_size), len(marks))
        if known > begin:
            until = self.deadline(rank, marks[known - 1])
            if until is not None and until > fresh:
                begin = known
        self.store(rank, tuple(marks[begin:]), deadline)

    def follow(self, rank: int, is_live: bool) -> None:  # noqa: FBT001 - the state itself
        """Say whether a rank's events confirm predictions; what was predicted when it was otherwise is dropped."""
        if self._followed.get(rank) is not is_live:
            self._followed[rank] = is_live
            self.drop(rank)

    def store(self, rank: int, hashes: Sequence[int], deadline: float) -> None:
        """Predict that `rank` holds these blocks, a run of one prompt, until `deadline`.

        A run longer than the bounds loses its end. The deadline is put off to the rank's latest if it is earlier.
        """
        if not hashes:
            return
        own = self._ranks.get(rank)
        if own is None:
            own = self._ranks[rank] = _RankNotes(rank)
        if own.notes:
            deadline = max(deadline, own.notes[-1].deadline)
        hashes = hashes[: min(self._blocks_max, self._total_max)]
        note = _Note(own.bit, deadline, hashes)
        self._note_latest(own, note)
        own.notes.append(note)
        own.written += len(hashes)
        self._written += len(hashes)
        while own.written > self._blocks_max or (self._written > self._total_max and len(own.notes) > 1):
            self._end_oldest(own)
        if self._written > self._total_max:
            self._end_oldest_of_longest()
        if own.notes and not own.queued:
            self._queue(own)

    def match(self, hashes: Sequence[int], known: Mapping[int, int]) -> dict[int, int]:
        """Depths, rank to blocks, of the ranks whose prefix is predicted to reach beyond what is `known` of them.

        `known` is the confirmed prefix of each rank in blocks; absent means none.
        """
        found: dict[int, int] = {}
        starts = self._starts(hashes, known)
        if not starts:
            return found
        latest_of, length = self._latest.get, len(hashes)
        joints = sorted(starts)
        alive = 0
        # Ranks join where their confirmed prefix ends; between two joints only the loss of a rank is of interest.
        for begin, end in zip(joints, [*joints[1:], length], strict=True):
            if alive:
                kept = alive & _holders(latest_of(hashes[begin]))
                _note_depth(found, alive ^ kept, begin)
                alive = kept
            alive |= starts[begin]
            previous: _Latest | None = None
            for position, latest in enumerate(map(latest_of, hashes[begin + 1 : end]), begin + 1):
                if latest is previous and latest is not None:
                    continue  # the next block of the same run
                previous = latest
                kept = alive & _holders(latest)
                if kept != alive:
                    _note_depth(found, alive ^ kept, position)
                    alive = kept
                    if not kept:
                        break
        _note_depth(found, alive, length)
        return found

    def expire(self, now: float) -> None:
        """End what is over. Costs nothing when nothing is due; is asked for at every request."""
        while self._due and self._due[0][0] <= now:
            own = heappop(self._due)[2]
            own.queued = False
            while own.notes and own.notes[0].deadline <= now:
                self._end_oldest(own)
            if own.notes:
                self._queue(own)

    def drop(self, rank: int) -> None:
        """Forget a rank."""
        own = self._ranks.pop(rank, None)
        while own is not None and own.notes:
            self._end_oldest(own)

    def _starts(self, hashes: Sequence[int], known: Mapping[int, int]) -> dict[int, int]:
        """Where ranks' predicted runs begin: position to the set of ranks predicted to hold that block."""
        starts: dict[int, int] = {}
        latest_of, length = self._latest.get, len(hashes)
        others = _holders(latest_of(hashes[0])) if length else 0
        # Nearly always nothing is predicted there, and ranks that know equally much share one look.
        seen, holders = -1, 0
        for rank, position in known.items():
            if position != seen:
                seen, holders = position, _holders(latest_of(hashes[position])) if position < length else 0
            bit = 1 << rank
            others &= ~bit
            if holders & bit:
                starts[position] = starts.get(position, 0) | bit
        if others:
            starts[0] = starts.get(0, 0) | others
        return starts

    def _end_oldest_of_longest(self) -> None:
        """Make room when all ranks together have too much: the rank that has most gives."""
        while self._written > self._total_max:
            rank = max(self._ranks, key=lambda each: (self._ranks[each].written, -each))
            self._end_oldest(self._ranks[rank])

    def _queue(self, own: _RankNotes) -> None:
        own.queued = True
        self._queued += 1
        heappush(self._due, (own.notes[0].deadline, self._queued, own))

    def _note_latest(self, own: _RankNotes, note: _Note) -> None:
        """Make `note` the latest of its blocks for its rank."""
        latest, size, joined = self._latest, len(self._latest), 0
        before: _Latest | None = None
        after: _Latest = note
        new = False
        for key in note.hashes:
            found = latest.setdefault(key, note)
            if found is note:
                continue
            if found is not before:  # neighbouring blocks mostly have the same notes
                before, after, new = found, _joined(found, note), _of_rank(found, note.bit) is None
            latest[key] = after
            joined += new
        own.distinct += len(latest) - size + joined

    def _end_oldest(self, own: _RankNotes) -> None:
        note = own.notes.popleft()
        own.written -= len(note.hashes)
        self._written -= len(note.hashes)
        latest, latest_of, size, left = self._latest, self._latest.get, len(self._latest), 0
        before: _Latest | None = None
        after: _Latest | None = None
        for key in note.hashes:
            found = latest_of(key)
            if found is note:
                del latest[key]
                continue
            if found is not before:
                before, after = found, _without(found, note)
            if after is not None:
                latest[key] = after
                left += 1
        own.distinct -= size - len(latest) + left


def _landmarks(hashes: bytes) -> Sequence[int]:
    return landmarks(memoryview(hashes).cast("Q"))


def _holders(latest: _Latest | None) -> int:
    """The ranks of the notes, as a set of bits."""
    if latest is None:
        return 0
    if isinstance(latest, _Note):
        return latest.bit
    holders = 0
    for note in latest:
        holders |= note.bit
    return holders


def _of_rank(latest: _Latest | None, bit: int) -> _Note | None:
    """The note of one rank."""
    if isinstance(latest, tuple):
        return next((note for note in latest if note.bit == bit), None)
    return latest if latest is not None and latest.bit == bit else None


def _joined(latest: _Latest, note: _Note) -> _Latest:
    """The notes of the other ranks, and this one."""
    if isinstance(latest, tuple):
        return (*(each for each in latest if each.bit != note.bit), note)
    return note if latest.bit == note.bit else (latest, note)


def _without(latest: _Latest | None, note: _Note) -> _Latest | None:
    """The notes of the other ranks; None if the note is not among them, but a later one of its rank."""
    if not isinstance(latest, tuple) or note not in latest:
        return None
    others = tuple(each for each in latest if each is not note)
    return others if len(others) > 1 else others[0]


def _note_depth(found: dict[int, int], ranks: int, depth: int) -> None:
    while ranks:
        lowest = ranks & -ranks
        found[lowest.bit_length() - 1] = depth
        ranks ^= lowest
