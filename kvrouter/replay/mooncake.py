"""Traces in Mooncake's form: JSON lines of timestamp (ms), input_length, output_length and hash_ids.

The ids name blocks of 512 tokens, the last, partial one included; equal ids are equal prefixes. Published with
"Mooncake: A KVCache-centric Disaggregated Architecture for LLM Serving" (FAST 2025).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from kvrouter.replay.lines import Line
from kvrouter.replay.trace import BLOCK_TOKENS, Trace, Turn, keys_of_ids, resolution

__all__ = ["read_mooncake"]

_SMALL: Final = 1 << 31


def read_mooncake(lines: Iterable[Line], *, name: str, block_tokens: int = BLOCK_TOKENS) -> Trace:
    """Read a trace; arrivals count from the first one.

    Raises:
        TraceError: a line is not what it should be.
    """
    numbers = _Numbers()
    turns = [_turn(line, block_tokens, numbers) for line in lines]
    turns.sort(key=lambda turn: turn.arrival)  # stable: what arrived at once stays in order
    begin = turns[0].arrival if turns else 0.0
    for turn in turns:
        turn.arrival -= begin
    return Trace(
        name=name, turns=turns, block_tokens=block_tokens, bin_seconds=resolution(turn.arrival for turn in turns)
    )


class _Numbers:
    """Numbers of 32 bits for ids of blocks, one for each.

    Small ids are their own. Others, such as hashes, are numbered above them as they come.
    """

    def __init__(self) -> None:
        self._others: dict[int, int] = {}

    def of(self, ids: Sequence[int]) -> Sequence[int]:
        """Return the numbers of ids."""
        if not ids or (min(ids) >= 0 and max(ids) < _SMALL):
            return ids
        others = self._others
        return [each if 0 <= each < _SMALL else others.setdefault(each, _SMALL + len(others)) for each in ids]


def _turn(line: Line, block_tokens: int, numbers: _Numbers) -> Turn:
    fields: dict[str, Any] = line.fields
    arrival = line.number(fields, "timestamp") / 1000.0
    input_tokens = line.tokens(fields, "input_length", at_least=1)
    output_tokens = line.tokens(fields, "output_length", at_least=0)
    ids = line.ids(fields, "hash_ids")
    needed = input_tokens // block_tokens
    if len(ids) < needed:
        raise line.error(
            "hash_ids", f"has {len(ids)} ids; {input_tokens} tokens fill {needed} blocks of {block_tokens}"
        )
    keys = keys_of_ids(numbers.of(ids[:needed]))
    return Turn(arrival=arrival, input_tokens=input_tokens, output_tokens=output_tokens, keys=keys)
