"""What a writer and its readers do in processes of their own: `python -m tests.index.mapped_side write|read PATH`.

At any moment one of two ranks holds the whole of each prompt, one rank always holds exactly its first half, and others
come and go. A reader that mixes two moments finds a prompt that nobody holds.
"""

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvrouter.errors import BusyIndexError, StaleIndexError
from kvrouter.index import PrefixIndex
from kvrouter.index.mapped import MappedIndex, share

PROMPTS = 24
HALF = 40
GUESTS = range(100, 104)
CROWD = range(200, 260)
_FRESH_PER_ROUND = 600
_ROUNDS_GROWING = 12


def prompts() -> list[NDArray[np.uint64]]:
    """The same in every process: long ones and short ones."""
    draw = np.random.default_rng(7)
    return [draw.integers(1, 2**63, int(draw.integers(3, 300)), dtype=np.uint64) for _ in range(PROMPTS)]


def rank_of(prompt: int, turn: int) -> int:
    """Who holds it all in even and in odd rounds."""
    return 2 * prompt + turn % 2


def write(path: str, rounds: int) -> None:
    """Change the index as fast as it goes, for so many rounds or, with 0, for ever."""
    index = share(path, capacity_bytes=1 << 30)
    known = prompts()
    for number, prompt in enumerate(known):
        index.store_chain(HALF + 300, prompt[: len(prompt) // 2])
        index.store_chain(rank_of(number, 0), prompt)
    print(json.dumps({"ready": True}), flush=True)
    draw = np.random.default_rng(int(time.time()))
    done = 0
    while not rounds or done < rounds:
        done += 1
        for number, prompt in enumerate(known):
            _hand_over(index, number, done, prompt, draw)
        _make_way(index, done, draw)
    index.freeze()


def _hand_over(
    index: PrefixIndex, number: int, turn: int, prompt: NDArray[np.uint64], draw: np.random.Generator
) -> None:
    guest = int(draw.choice(GUESTS))
    if draw.random() < 0.5:
        index.store_chain(rank_of(number, turn), prompt)
    else:
        index.store(rank_of(number, turn), prompt[draw.permutation(len(prompt))])
    index.store_chain(guest, prompt[: int(draw.integers(len(prompt) + 1))])
    index.remove(rank_of(number, turn + 1), prompt[:: int(draw.choice([1, -1]))])
    if draw.random() < 0.3:
        index.clear(guest)


def _make_way(index: PrefixIndex, turn: int, draw: np.random.Generator) -> None:
    """Blocks of others, so that tables grow, and become smaller again at once."""
    rank = int(draw.choice(CROWD))
    index.store(rank, draw.integers(1, 2**63, _FRESH_PER_ROUND, dtype=np.uint64))
    if turn % _ROUNDS_GROWING == 0:
        index.clear(rank)


def read(path: str, matches: int, seconds: float) -> None:
    """Match and look for what never was; say what was found."""
    mapped, known = MappedIndex(path, patience_seconds=0.2), prompts()
    found: dict[str, Any] = {"matches": 0, "busy": 0, "stale": False, "wrong": []}
    print(json.dumps({"ready": True}), flush=True)
    deadline = time.monotonic() + seconds
    for number in _cycle(matches, deadline):
        try:
            depths = mapped.match_depths(known[number])
        except BusyIndexError:
            found["busy"] += 1
        except StaleIndexError:
            found["stale"] = True
            break
        else:
            found["matches"] += 1
            problem = _problem(depths, number, len(known[number]))
            if problem:
                found["wrong"].append(problem)
                break
    print(json.dumps(found | mapped.counts()), flush=True)


def _cycle(matches: int, deadline: float) -> Iterator[int]:
    for done in range(matches or sys.maxsize):
        if done % 64 == 0 and time.monotonic() > deadline:
            return
        yield done * 7 % PROMPTS


def _problem(depths: dict[int, int], number: int, blocks: int) -> str | None:
    first, second = (depths.get(rank_of(number, turn), 0) for turn in (0, 1))
    if blocks not in (first, second):
        return f"prompt {number} of {blocks} blocks is held as far as {first} and {second}"
    if depths.get(HALF + 300, 0) != blocks // 2:
        return f"half of prompt {number} is {depths.get(HALF + 300)} of {blocks} blocks"
    strangers = depths.keys() - {rank_of(number, 0), rank_of(number, 1), HALF + 300, *GUESTS}
    if strangers or max(depths.values()) > blocks:
        return f"prompt {number}: {depths}"
    return None


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(sys.argv[2], int(sys.argv[3]))
    else:
        read(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
