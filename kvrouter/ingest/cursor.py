"""What a sequencer hands its batches to, and what is saved of one; `sequencer` does the ordering."""

from dataclasses import dataclass
from typing import Protocol

from kvrouter.ingest.waiting import DigestRows

__all__ = ["Cursor", "Feed"]


class Feed(Protocol):
    """What the ordered batches are for."""

    def apply(self, payload: bytes) -> bool:
        """Apply the next batch; returns whether it could be understood."""
        ...

    def forget(self, *, restarted: bool) -> None:
        """Drop what earlier batches said: they are lost or come again, or another life has begun."""
        ...

    def miss(self) -> None:
        """Batches are lost for good, so that not all is known that the publisher holds."""
        ...

    def compare(self, digest: DigestRows) -> None:
        """Compare what is known after the last applied batch with what the publisher says that it holds."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """Where a sequencer stood; what waited and was asked for is not part of it, and comes again."""

    expected: int
    incarnation: int
    life: int | None
    left: tuple[tuple[int, int], ...]
    given_up_below: int
    fingerprints: bytes
    covered_at: float | None
