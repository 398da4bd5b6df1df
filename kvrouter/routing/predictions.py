"""Blocks that ranks will hold soon, because of what was just routed to them.

A decision writes its prompt's blocks here at once, so that the siblings of a burst follow the first one before any
event could have told. Entries end by time, and the least recently routed of a rank end when it has too many. For a
rank without live events this is all there is to know: the approximate mode.

Only blocks beyond the known prefix need to be written. A match therefore continues, rank by rank, where confirmed
blocks end. Nothing here is believed over an event: a rank's overlap is the longer of the two.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from heapq import heappop, heappush

__all__ = ["PredictedBlocks"]


class PredictedBlocks:
    """Predicted blocks of every rank, for one block size. Time is an argument.

    Each rank's blocks are kept in the order in which they were last written, with deadlines that never decrease in
    that order. So both ends, by time and by number, take from the front.
    """

    __slots__ = ("_deadlines", "_due", "_held", "_holders", "_queued", "blocks_max", "total_max")

    def __init__(self, *, blocks_max: int = 65_536, total_max: int = 4_194_304) -> None:
        self.blocks_max, self.total_max = blocks_max, total_max
        self._holders: dict[int, int] = {}
        self._deadlines: dict[int, OrderedDict[int, float]] = {}
        self._held = 0
        # A rank is queued once, under a time at which its front may be due.
        self._due: list[tuple[float, int]] = []
        self._queued: set[int] = set()

    def __len__(self) -> int:
        """Pairs of a block and a rank that is predicted to hold it; at most `total_max`."""
        return self._held

    def blocks(self, rank: int) -> int:
        """Blocks predicted on one rank; at most `blocks_max`."""
        return len(self._deadlines.get(rank, ()))

    def deadline(self, rank: int, key: int) -> float | None:
        """Until when a block is predicted on a rank; None if it is not."""
        deadlines = self._deadlines.get(rank)
        return deadlines.get(key) if deadlines else None

    def store(self, rank: int, hashes: Sequence[int], deadline: float) -> None:
        """Predict that `rank` holds these blocks, a run of one prompt, until `deadline`.

        The deadline is put off to the latest one that the rank has, if it is earlier.
        """
        if not hashes:
            return
        deadlines = self._deadlines.get(rank)
        if deadlines is None:
            deadlines = self._deadlines[rank] = OrderedDict()
        elif deadlines:
            deadline = max(deadline, deadlines[next(reversed(deadlines))])
        holders, bit = self._holders, 1 << rank
        before = len(deadlines)
        # Backwards: when the rank has too many, the tail of the oldest prompt goes first, as it does in engines.
        for key in reversed(hashes):
            if key in deadlines:
                deadlines.move_to_end(key)
            else:
                holders[key] = holders.get(key, 0) | bit
            deadlines[key] = deadline
        self._held += len(deadlines) - before
        while deadlines and (len(deadlines) > self.blocks_max or self._held > self.total_max):
            self._pop_front(deadlines, bit)
        if rank not in self._queued:
            self._queued.add(rank)
            heappush(self._due, (deadline, rank))

    def match(self, hashes: Sequence[int], known: Mapping[int, int]) -> dict[int, int]:
        """Depths, rank to blocks, of the ranks whose prefix is predicted to reach beyond what is `known` of them.

        `known` is the confirmed prefix of each rank in blocks; absent means none.
        """
        found: dict[int, int] = {}
        holders_of, length = self._holders, len(hashes)
        starts = self._starts(hashes, known)
        # `alive` are the ranks whose prefix reaches `position`; each begins where its confirmed prefix ends.
        while starts:
            position = min(starts)
            alive = starts.pop(position)
            while alive:
                position += 1
                holders = holders_of.get(hashes[position], 0) if position < length else 0
                left = alive & ~holders
                while left:
                    lowest = left & -left
                    found[lowest.bit_length() - 1] = position
                    left ^= lowest
                alive = (alive & holders) | starts.pop(position, 0)
        return found

    def expire(self, now: float) -> None:
        """End what is over. Costs nothing when nothing is due."""
        while self._due and self._due[0][0] <= now:
            _, rank = heappop(self._due)
            self._queued.discard(rank)
            deadlines = self._deadlines.get(rank)
            bit = 1 << rank
            while deadlines:
                first = next(iter(deadlines.values()))
                if first > now:
                    self._queued.add(rank)
                    heappush(self._due, (first, rank))
                    break
                self._pop_front(deadlines, bit)

    def drop(self, rank: int) -> None:
        """Forget a rank."""
        deadlines = self._deadlines.pop(rank, None)
        bit = 1 << rank
        while deadlines:
            self._pop_front(deadlines, bit)

    def _starts(self, hashes: Sequence[int], known: Mapping[int, int]) -> dict[int, int]:
        """Where ranks' predicted runs begin: position to the set of ranks predicted to hold that block."""
        starts: dict[int, int] = {}
        holders_of, length = self._holders, len(hashes)
        others = holders_of.get(hashes[0], 0) if length else 0
        for rank, position in known.items():
            bit = 1 << rank
            others &= ~bit
            if position < length and holders_of.get(hashes[position], 0) & bit:
                starts[position] = starts.get(position, 0) | bit
        if others:
            starts[0] = starts.get(0, 0) | others
        return starts

    def _pop_front(self, deadlines: OrderedDict[int, float], bit: int) -> None:
        key, _ = deadlines.popitem(last=False)
        self._held -= 1
        left = self._holders[key] & ~bit
        if left:
            self._holders[key] = left
        else:
            del self._holders[key]
