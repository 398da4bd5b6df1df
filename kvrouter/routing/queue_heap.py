"""A heap whose members may leave from anywhere: they are marked, and dropped when they surface or become too many."""

from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

__all__ = ["LeavingHeap"]

_SPARE = 32

Member = TypeVar("Member")


class LeavingHeap(Generic[Member]):
    """Smallest key first; of equal keys, the one that came first.

    `is_here` tells of a member whether it is still one. Whoever makes one leave calls `left`, once for each; adding,
    leaving and looking at the first one cost O(log n), spread over all calls.
    """

    __slots__ = ("_gone", "_is_here", "_items")

    def __init__(self, is_here: Callable[[Member], bool]) -> None:
        self._is_here = is_here
        self._items: list[tuple[float, int, Member]] = []
        self._gone = 0

    def __len__(self) -> int:
        """Members that have not left."""
        return len(self._items) - self._gone

    @property
    def kept(self) -> int:
        """Entries in memory, those of members that left included: never more than twice the members, and a few."""
        return len(self._items)

    def members(self) -> Iterator[Member]:
        """All of them, in no order."""
        return (member for _, _, member in self._items if self._is_here(member))

    def add(self, key: float, serial: int, member: Member) -> None:
        """Add a member; `serial` grows with every one, so that members are never compared."""
        heappush(self._items, (key, serial, member))

    def first(self) -> Member | None:
        """The member with the smallest key."""
        items = self._items
        while items:
            member = items[0][2]
            if self._is_here(member):
                return member
            heappop(items)
            self._gone -= 1
        return None

    def left(self) -> None:
        """One member has left."""
        self._gone += 1
        if self._gone > _SPARE + len(self._items) // 2:
            self._items = [item for item in self._items if self._is_here(item[2])]
            heapify(self._items)
            self._gone = 0
