"""Which blocks of a long prompt predictions are kept for: all of the first ones, then fewer and fewer.

A sequence hash names its whole prefix, so some blocks are enough to find again how far two prompts agree. A short
prompt is known block by block; of a long one the last few blocks may go unseen, at most 7 of 64..512 blocks and 31
beyond. What is predicted for the few seconds until events tell may well be a little too little, and it costs a
fraction of the work and of the memory.
"""

from collections.abc import Mapping, Sequence
from typing import Final

__all__ = ["landmark_depth", "landmarks", "landmarks_known", "landmarks_within"]

# Up to this many blocks every block is a landmark, then every 8th, then every 32nd.
_DENSE: Final = 64
_MIDDLE: Final = 512
_MIDDLE_STEP, _FAR_STEP = 8, 32
_MIDDLE_COUNT: Final = _DENSE + (_MIDDLE - _DENSE) // _MIDDLE_STEP


def landmarks(hashes: Sequence[int]) -> Sequence[int]:
    """The sequence hashes at which predictions look, of all the hashes of a prompt."""
    if len(hashes) <= _DENSE:
        return hashes
    return [
        *hashes[:_DENSE],
        *hashes[_DENSE + _MIDDLE_STEP - 1 : _MIDDLE : _MIDDLE_STEP],
        *hashes[_MIDDLE + _FAR_STEP - 1 :: _FAR_STEP],
    ]


def landmarks_within(blocks: int) -> int:
    """How many landmarks a prefix of so many blocks has."""
    if blocks <= _DENSE:
        return blocks
    if blocks <= _MIDDLE:
        return _DENSE + (blocks - _DENSE) // _MIDDLE_STEP
    return _MIDDLE_COUNT + (blocks - _MIDDLE) // _FAR_STEP


def landmarks_known(tokens: Mapping[int, int], block_size: int) -> dict[int, int]:
    """The same for the prefix of each rank, given in tokens."""
    return {
        rank: blocks if (blocks := known // block_size) <= _DENSE else landmarks_within(blocks)
        for rank, known in tokens.items()
    }


def landmark_depth(count: int) -> int:
    """How many blocks the first `count` landmarks reach."""
    if count <= _DENSE:
        return count
    if count <= _MIDDLE_COUNT:
        return _DENSE + (count - _DENSE) * _MIDDLE_STEP
    return _MIDDLE + (count - _MIDDLE_COUNT) * _FAR_STEP
