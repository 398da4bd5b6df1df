"""Blocks that ranks will hold soon, because of what was just routed to them.

A decision writes its prompt's blocks here at once, so that the siblings of a burst follow the first one before any
event could have told. What was written ends by time, and the oldest of a rank ends when it has too much. For a rank
without live events this is all there is to know: the approximate mode.

Only blocks beyond the known prefix need to be written. A match therefore continues, rank by rank, where confirmed
blocks end. Nothing here is believed over an event: a rank's overlap is the longer of the two.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from heapq import heappop, heappush
from typing import TypeAlias

__all__ = ["PredictedBlocks"]

# Until when, and which blocks: what one decision wrote.
_Note: TypeAlias = tuple[float, Sequence[int]]


class _RankNotes:
    """What was written for one rank, oldest first, and for every block the latest note that has it."""

    __slots__ = ("latest", "notes", "queued", "rank", "written")

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.latest: dict[int, _Note] = {}
        self.notes: deque[_Note] = deque()
        self.written = 0  # blocks in `notes`, those that a later note repeats included
        self.queued = False


class PredictedBlocks:
    """Predicted blocks of every rank, for one block size. Time is an argument.

    Deadlines of one rank never decrease in the order of writing, so both ends, by time and by number, take notes
    from the front. Memory is bounded by `blocks_max` blocks written per rank and `total_max` over all.
    """

    __slots__ = ("_due", "_holders", "_queued", "_ranks", "_written", "blocks_max", "total_max")

    def __init__(self, *, blocks_max: int = 65_536, total_max: int = 4_194_304) -> None:
        self.blocks_max, self.total_max = blocks_max, total_max
        self._holders: dict[int, int] = {}
        self._ranks: dict[int, _RankNotes] = {}
        self._written = 0
        # Each rank that has notes is here once, under a time before which none of them is due. Numbers break ties.
        self._due: list[tuple[float, int, _RankNotes]] = []
        self._queued = 0

    def __len__(self) -> int:
        """Blocks written and not ended, over all ranks; at most `total_max`."""
        return self._written

    def blocks(self, rank: int) -> int:
        """Distinct blocks predicted on one rank; at most `blocks_max`."""
        own = self._ranks.get(rank)
        return len(own.latest) if own is not None else 0

    def deadline(self, rank: int, key: int) -> float | None:
        """Until when a block is predicted on a rank; None if it is not."""
        own = self._ranks.get(rank)
        note = own.latest.get(key) if own is not None else None
        return note[0] if note is not None else None

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
            deadline = max(deadline, own.notes[-1][0])
        hashes = hashes[: min(self.blocks_max, self.total_max)]
        note = (deadline, hashes)
        latest, holders, bit = own.latest, self._holders, 1 << rank
        for key in hashes:
            if key not in latest:
                holders[key] = holders.get(key, 0) | bit
            latest[key] = note
        own.notes.append(note)
        own.written += len(hashes)
        self._written += len(hashes)
        while own.written > self.blocks_max or (self._written > self.total_max and len(own.notes) > 1):
            self._end_oldest(own)
        if self._written > self.total_max:
            self._end_oldest_of_longest()
        if own.notes and not own.queued:
            self._queue(own)

    def match(self, hashes: Sequence[int], known: Mapping[int, int]) -> dict[int, int]:
        """Depths, rank to blocks, of the ranks whose prefix is predicted to reach beyond what is `known` of them.

        `known` is the confirmed prefix of each rank in blocks; absent means none.
        """
        found: dict[int, int] = {}
        holders_of, length = self._holders.get, len(hashes)
        starts = self._starts(hashes, known)
        if not starts:
            return found
        joints = sorted(starts)
        alive = 0
        # Ranks join where their confirmed prefix ends; between two joints only the loss of a rank is of interest.
        for begin, end in zip(joints, [*joints[1:], length], strict=True):
            if alive:
                kept = alive & holders_of(hashes[begin], 0)
                _note_depth(found, alive ^ kept, begin)
                alive = kept
            alive |= starts[begin]
            for position, holders in enumerate(map(holders_of, hashes[begin + 1 : end]), begin + 1):
                if holders == alive:
                    continue
                kept = alive & (holders or 0)
                _note_depth(found, alive ^ kept, position)
                alive = kept
                if not kept:
                    break
        _note_depth(found, alive, length)
        return found

    def expire(self, now: float) -> None:
        """End what is over. Costs nothing when nothing is due."""
        while self._due and self._due[0][0] <= now:
            own = heappop(self._due)[2]
            own.queued = False
            while own.notes and own.notes[0][0] <= now:
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
        holders_of, length = self._holders.get, len(hashes)
        others = holders_of(hashes[0], 0) if length else 0
        for rank, position in known.items():
            bit = 1 << rank
            others &= ~bit
            if position < length and holders_of(hashes[position], 0) & bit:
                starts[position] = starts.get(position, 0) | bit
        if others:
            starts[0] = starts.get(0, 0) | others
        return starts

    def _end_oldest_of_longest(self) -> None:
        """Make room when all ranks together have too much: the rank that has most gives."""
        while self._written > self.total_max:
            rank = max(self._ranks, key=lambda each: self._ranks[each].written)
            self._end_oldest(self._ranks[rank])

    def _queue(self, own: _RankNotes) -> None:
        own.queued = True
        self._queued += 1
        heappush(self._due, (own.notes[0][0], self._queued, own))

    def _end_oldest(self, own: _RankNotes) -> None:
        note = own.notes.popleft()
        own.written -= len(note[1])
        self._written -= len(note[1])
        latest, holders, bit = own.latest, self._holders, 1 << own.rank
        for key in note[1]:
            if latest.get(key) is note:
                del latest[key]
                left = holders[key] & ~bit
                if left:
                    holders[key] = left
                else:
                    del holders[key]


def _note_depth(found: dict[int, int], ranks: int, depth: int) -> None:
    while ranks:
        lowest = ranks & -ranks
        found[lowest.bit_length() - 1] = depth
        ranks ^= lowest
