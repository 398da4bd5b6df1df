"""The bound on memory, as it is kept for sources: whose blocks go first, and when they are asked for again.

The index counts its own bytes and those of the tables beside it, and says what the bound has cost (`losses`). Here that
is turned into what it means for a source. One whose blocks were forgotten gives up the rest that is known of it, and
one whose blocks were refused goes on with what it has; both are incomplete, not wrong. When there is room again, they
are asked for all they hold, rarely and ever more rarely while it does not fit.
"""

from collections.abc import Mapping
from typing import Final

from kvrouter.index import PrefixIndex
from kvrouter.ingest.followed import Followed
from kvrouter.ingest.receipts import SourceState

__all__ = ["Budget"]

_ROOM_SHARE: Final = 4


class Budget:
    """Of one index that has a bound."""

    def __init__(self, index: PrefixIndex, by_rank: Mapping[int, Followed]) -> None:
        bytes_max = index.bytes_max()
        assert bytes_max is not None
        self._index, self._by_rank = index, by_rank
        self._room_below = bytes_max - bytes_max // _ROOM_SHARE
        self._doubted: set[int] = set()

    def note(self, rank: int, state: SourceState) -> None:
        """Say how far a rank is believed: what is in doubt goes first, the longest doubted before the others."""
        if state == "live":
            if rank in self._doubted:
                self.confirm(rank)
        elif rank not in self._doubted:
            self._doubted.add(rank)
            self._index.doubt(rank)

    def confirm(self, rank: int) -> None:
        """What a rank holds is about to be told anew, or is gone."""
        self._doubted.discard(rank)
        self._index.trust(rank)

    def settle(self, followed: Followed) -> bool:
        """After a change by `followed`: draw conclusions from what was lost; returns whether there is more to do."""
        losses = self._index.losses()
        if losses is not None:
            forgotten, refused = losses
            for rank in forgotten:
                self._give_up(rank)
            if refused:
                followed.starve()
            return True
        return followed.starved and followed.now >= followed.retry_at and followed.seek_room(has_room=self._has_room())

    def _give_up(self, rank: int) -> None:
        self._doubted.discard(rank)  # The index has forgotten that as well.
        followed = self._by_rank.get(rank)
        if followed is not None:
            followed.give_up()
            self.note(rank, followed.state())

    def _has_room(self) -> bool:
        return self._index.nbytes() + self._index.nbytes_beside() <= self._room_below
