"""Requests whose answers come in one piece: nobody tells when their prompts were computed.

An answer that is no stream begins when it is complete, after all of its tokens. That moment says nothing of the speed
at which prompts are computed, and until then the rank has long gone on with others. So such a prompt counts as computed
when the time is over that was predicted for it, and its rank's speed is learnt from others.
"""

from heapq import heapify, heappop, heappush
from typing import Final

from kvrouter.routing.load import LoadBook

__all__ = ["WholeAnswers"]

_KEPT_MIN: Final = 1024


class WholeAnswers:
    """When the prompts of those that are under way count as computed. Costs nothing where none is due."""

    __slots__ = ("_book", "_due")

    def __init__(self, book: LoadBook) -> None:
        self._book = book
        self._due: list[tuple[float, int]] = []

    def __len__(self) -> int:
        """Those that are waited for; some of them may have ended."""
        return len(self._due)

    def expect(self, booking: int, *, due: float) -> None:
        """The prompt of a booking is predicted to be computed at a time."""
        if len(self._due) > _KEPT_MIN + 2 * len(self._book):
            self._due = [each for each in self._due if each[1] in self._book]
            heapify(self._due)
        heappush(self._due, (due, booking))

    def advance(self, now: float) -> bool:
        """End the prefill of all that are due, each at its time; whether there were any that had not ended before."""
        due, were_any = self._due, False
        while due and due[0][0] <= now:
            at, booking = heappop(due)
            were_any |= self._book.prefill_complete(booking, now=at)
        return were_any
