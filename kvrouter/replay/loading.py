"""Opens trace files, whatever form they have: the first line shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

from kvrouter.errors import SettingsError
from kvrouter.replay.lines import STANDARD_INPUT, Line, read_lines
from kvrouter.replay.mooncake import read_mooncake
from kvrouter.replay.sessions import read_sessions
from kvrouter.replay.trace import BLOCK_TOKENS, Trace

__all__ = ["FORMATS", "LoadOptions", "load_trace"]

Format: TypeAlias = Literal["mooncake", "sessions", "openai"]
FORMATS: Final[tuple[Format, ...]] = ("mooncake", "sessions", "openai")
_MARKS: Final[Mapping[str, Format]] = MappingProxyType(
    {
        "hash_ids": "mooncake",
        "turns": "sessions",
        "messages": "openai",
        "prompt": "openai",
        "input": "openai",
        "body": "openai",
        "request": "openai",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How to read what a file does not tell itself.

    Attributes:
        format: of all files; None: each file's first line shows it.
        block_tokens: tokens per block; None: the form's own.
        tokenizer: tokenizer.json, or the folder that has it, for logs of requests.
        rate: arrivals per second, for logs without timestamps.
    """

    format: Format | None = None
    block_tokens: int | None = None
    tokenizer: Path | None = None
    rate: float | None = None


def load_trace(path: Path, options: LoadOptions = LoadOptions(), *, warn: Callable[[str], None] | None = None) -> Trace:
    """Read one file; `-` is standard input. `warn` hears what a person should know although it is no error.

    Raises:
        SettingsError: the file cannot be read, is empty, or of no known form.
        TraceError: a line is not what it should be.
    """
    lines = read_lines(path)
    first = next(lines, None)
    if first is None:
        raise SettingsError(f"{path} is empty; a trace has at least one line")
    form = options.format or _format(first)
    every: Iterator[Line] = chain((first,), lines)
    if options.format is None:
        every = _alike(every, form)
    match form:
        case "mooncake":
            trace = read_mooncake(every, name=path.stem, block_tokens=options.block_tokens or BLOCK_TOKENS)
        case "sessions":
            trace = read_sessions(every, name=path.stem, block_tokens=options.block_tokens)
        case "openai":
            from kvrouter.replay.request_log import LOG_BLOCK_TOKENS, RequestLogReader  # noqa: PLC0415 - loads tokenizers

            reader = RequestLogReader(
                tokenizer=options.tokenizer, block_tokens=options.block_tokens or LOG_BLOCK_TOKENS
            )
            trace = reader.read(every, name=path.stem, rate=options.rate)
            if reader.fallbacks and warn is not None:
                reasons = ", ".join(f"{reason} {count}" for reason, count in reader.fallbacks.items())
                warn(f"{path}: prompts that the tokenizer cannot serve count four bytes as a token ({reasons})")
    if options.rate is not None and warn is not None and (form != "openai" or "timestamp" in first.fields):
        warn(f"{path}: its own arrivals are played, not those of --rate; --rate-scale makes them denser")
    if path == STANDARD_INPUT:
        return replace(trace, name="standard input")
    return replace(trace, name=path.name.removesuffix(".gz").removesuffix(".jsonl"))


def _alike(lines: Iterable[Line], form: Format) -> Iterator[Line]:
    """Yield lines that may be of a form; one that is plainly of another is an error that says so."""
    for line in lines:
        forms = [other for mark, other in _MARKS.items() if mark in line.fields]
        if forms and form not in forms:
            raise line.error("", f"is of the form {forms[0]}, and the first line of {form}; a file has one form")
        yield line


def _format(line: Line) -> Format:
    for mark, form in _MARKS.items():
        if mark in line.fields:
            return form
    names = ", ".join(map(repr, list(line.fields)[:8])) or "nothing"
    raise line.error(
        "", f"is of no known form: it has {names}; hash_ids, turns, messages, prompt, input or body is needed"
    )
