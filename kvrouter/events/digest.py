"""A digest of a set of blocks: what tells two sides that they hold the same, in a few bytes.

Each engine hash is mixed and the results are combined by exclusive or, so that a set's digest follows every change in
one step and does not depend on the order of changes. Not a protection against anybody: whoever can send events can
also send digests that fit.
"""

from typing import Final, NamedTuple

__all__ = ["DigestRow", "mix64"]

_MASK: Final = 2**64 - 1


class DigestRow(NamedTuple):
    """The blocks in one place: how many distinct engine hashes, and the exclusive or of `mix64` over them."""

    medium: str | None
    group: int
    count: int  # type: ignore[assignment] # hides `tuple.count`, which nobody needs of a row
    xor: int


def mix64(value: int) -> int:
    """Scatter a 64-bit number over all 64 bits: the finaliser of splitmix64 (Steele, Lea, Flood: 2014)."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)
