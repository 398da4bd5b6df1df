"""Traces of sessions: JSON lines, one for each conversation, whose next turn comes after the answer to the last one.

    {"session": "a", "start": 12.5, "turns": [
        {"runs": [[0, 24], [1000, 3]], "input_length": 13700, "output_length": 250},
        {"runs": [[0, 24], [1000, 9]], "input_length": 16500, "output_length": 80, "think": 4.0}]}

`start` is in seconds. A prompt's blocks are written as runs: `[1000, 3]` is the blocks 1000, 1001 and 1002; equal ids
are equal prefixes. `think` is the time between the end of the last answer and the turn, in seconds, 0 if not given.
Where a turn's blocks begin with all full blocks of the one before it, those that follow are that one's answer: the
worker that gave it has them. `block_tokens` of the first line holds for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from kvrouter.replay.lines import IDS_MAX, Line, shown
from kvrouter.replay.trace import BLOCK_TOKENS, Trace, Turn, TurnKeys, keys_of_ids

__all__ = ["read_sessions"]

_ID_MAX: Final = (1 << 32) - 1


def read_sessions(lines: Iterable[Line], *, name: str, block_tokens: int | None = None) -> Trace:
    """Read a trace of sessions; `block_tokens` overrules what the first line says.

    Raises:
        TraceError: a line is not what it should be.
    """
    turns: list[Turn] = []
    for position, line in enumerate(lines):
        if block_tokens is None:
            said = line.fields.get("block_tokens", BLOCK_TOKENS) if position == 0 else BLOCK_TOKENS
            block_tokens = line.tokens({"block_tokens": said}, "block_tokens", at_least=1)
        turns += _session(line, position, len(turns), block_tokens)
    return Trace(name=name, turns=turns, block_tokens=block_tokens or BLOCK_TOKENS)


def _session(line: Line, position: int, begin: int, block_tokens: int) -> Iterator[Turn]:
    fields = line.fields
    start = line.number(fields, "start", default=0.0)
    name = line.text(fields, "session") or f"line-{position + 1}"
    listed = fields.get("turns")
    if not isinstance(listed, list) or not listed:
        raise line.error("turns", f"is {shown(listed)}; a list of at least one turn is needed")
    read = [_Read(line, at, each, block_tokens) for at, each in enumerate(listed)]
    for at, each in enumerate(read):
        following = read[at + 1] if at + 1 < len(read) else None
        yield Turn(
            arrival=each.think if at else start,
            input_tokens=each.input_tokens,
            output_tokens=each.output_tokens,
            keys=each.keys if following is None else each.with_answer(following, block_tokens),
            session=name,
            follows=begin + at - 1 if at else None,
        )


class _Read:
    """One turn as it is written, checked."""

    __slots__ = ("input_tokens", "keys", "output_tokens", "think")

    def __init__(self, line: Line, position: int, value: Any, block_tokens: int) -> None:
        prefix = f"turns[{position}]."
        if not isinstance(value, dict):
            raise line.error(f"turns[{position}]", f"is {shown(value)}; an object is needed")
        self.think = line.number(value, "think", prefix=prefix, default=0.0)
        self.input_tokens = line.tokens(value, "input_length", at_least=1, prefix=prefix)
        self.output_tokens = line.tokens(value, "output_length", at_least=0, prefix=prefix)
        ids = _ids(line, value, prefix)
        needed = self.input_tokens // block_tokens
        if len(ids) < needed:
            raise line.error(
                prefix + "runs",
                f"name {len(ids)} blocks; {self.input_tokens} tokens fill {needed} of {block_tokens} tokens",
            )
        self.keys = keys_of_ids(ids[:needed])

    def with_answer(self, following: _Read, block_tokens: int) -> TurnKeys:
        """Return the keys with those of the answer, if the next prompt tells them."""
        own, more = len(self.keys), following.keys
        if own and (len(more) <= own or more[own - 1] != self.keys[-1]):
            return self.keys
        return more[: (self.input_tokens + self.output_tokens) // block_tokens]


def _ids(line: Line, value: Mapping[str, Any], prefix: str) -> Sequence[int]:
    runs = value.get("runs")
    if not isinstance(runs, list):
        raise line.error(prefix + "runs", f"is {shown(runs)}; a list of [first, count] is needed")
    ids: list[int] = []
    for at, run in enumerate(runs):
        if not (
            isinstance(run, list) and len(run) == 2 and all(isinstance(n, int) and not isinstance(n, bool) for n in run)
        ):
            raise line.error(f"{prefix}runs[{at}]", f"is {shown(run)}; [first, count] of whole numbers is needed")
        first, count = run
        if first < 0 or count < 1 or first + count - 1 > _ID_MAX:
            raise line.error(f"{prefix}runs[{at}]", f"is {shown(run)}; ids are 0..{_ID_MAX} and a run has at least one")
        if len(ids) + count > IDS_MAX:
            raise line.error(prefix + "runs", f"name more than {IDS_MAX} blocks")
        ids.extend(range(first, first + count))
    return ids
