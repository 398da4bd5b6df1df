"""Traces from logs of OpenAI requests: JSON lines, each a request body or an object that has one.

    {"timestamp": 1717000000.25, "body": {"model": "m", "messages": [...]}, "output_length": 120}

The body is found under `body` or `request`, or is the line itself. `timestamp` is in seconds or an ISO 8601 date; where
no line has one, arrivals are drawn for a given rate. The answer's length is `output_length`, else the completion tokens
of a `usage` beside the body or in its `response`, else what the request allows, else a default.

Prompts become tokens as in the router: with a tokenizer.json and its chat template where one is given, token ids as
they are, and else by counting four bytes as a token.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Iterable, Mapping
from pathlib import Path
from random import Random
from typing import Any, Final

import msgspec

from kvrouter.blocks import Prompt
from kvrouter.errors import RequestError
from kvrouter.replay.lines import Line, kind, shown
from kvrouter.replay.trace import Trace, Turn, resolution
from kvrouter.service.prompts import PrefixCache, PromptResolver, RequestReader, TextLimits

__all__ = ["LOG_BLOCK_TOKENS", "RequestLogReader"]

LOG_BLOCK_TOKENS: Final = 64
_OUTPUT_TOKENS: Final = 256
_CACHE_BYTES: Final = 256 << 20
_ANY_LENGTH: Final = 1 << 62
_MODEL: Final = "replayed"


class RequestLogReader:
    """Reads logs; remembers how prompts became tokens, so that a conversation costs only what it grew by."""

    def __init__(self, *, tokenizer: Path | None = None, block_tokens: int = LOG_BLOCK_TOKENS) -> None:
        self._block_tokens = block_tokens
        cache = PrefixCache(_CACHE_BYTES)
        self._reader = RequestReader(cache)
        limits = TextLimits(inline_characters_max=_ANY_LENGTH, new_characters_max=_ANY_LENGTH)
        self._resolver = PromptResolver(cache, text_limits=limits)
        if tokenizer is not None:
            self._resolver.add_model(_MODEL, tokenizer=tokenizer)

    @property
    def fallbacks(self) -> Mapping[str, int]:
        """Prompts that the given tokenizer could not serve, by reason; four bytes of them count as a token."""
        return self._resolver.statistics.fallbacks

    def read(self, lines: Iterable[Line], *, name: str, rate: float | None = None, seed: int = 0) -> Trace:
        """Read a log; `rate` is in requests per second, and used where no line has a timestamp.

        Raises:
            TraceError: a line is not what it should be.
        """
        random, arrival = Random(seed), 0.0
        turns: list[Turn] = []
        stamped: bool | None = None
        try:
            with asyncio.Runner() as runner:
                for line in lines:
                    turn = self._turn(line, runner)
                    has_stamp = line.fields.get("timestamp") is not None
                    if stamped is None:
                        stamped = has_stamp
                    if has_stamp != stamped:
                        raise line.error("timestamp", f"is {'given' if has_stamp else 'missing'}, unlike in line 1")
                    if has_stamp:
                        turn.arrival = _seconds(line)
                    elif rate is None:
                        raise line.error("timestamp", "is missing; give one in all lines, or a rate with --rate")
                    else:
                        arrival += random.expovariate(rate)
                        turn.arrival = arrival
                    turns.append(turn)
        finally:
            self._resolver.close()
        turns.sort(key=lambda turn: turn.arrival)
        begin = turns[0].arrival if turns else 0.0
        for turn in turns:
            turn.arrival -= begin
        bins = resolution(turn.arrival for turn in turns) if stamped else 0.0
        return Trace(name=name, turns=turns, block_tokens=self._block_tokens, bin_seconds=bins)

    def _turn(self, line: Line, runner: asyncio.Runner) -> Turn:
        body = _body(line)
        path = _path(line, body)
        try:
            read = self._reader.read(path, msgspec.json.encode(body))
        except RequestError as error:
            raise line.error(error.param or "body", f"cannot be read: {error.message}") from None
        resolved = self._resolver.resolve(read, model_profile=_MODEL)
        if resolved is not None and not isinstance(resolved, Prompt):
            resolved = runner.run(_awaited(resolved))
        if resolved is None or not resolved.tokens:
            raise line.error("body", f"has no prompt; {_wanted(path)} is needed")
        return Turn(
            arrival=0.0,
            input_tokens=resolved.tokens,
            output_tokens=_output_tokens(line, read.max_tokens),
            keys=resolved.hashes(self._block_tokens),
            session=read.session,
        )


async def _awaited(prompt: Any) -> Prompt:
    found = await prompt
    assert isinstance(found, Prompt)
    return found


def _body(line: Line) -> dict[str, Any]:
    for name in ("body", "request"):
        found = line.fields.get(name)
        if found is not None:
            if not isinstance(found, dict):
                raise line.error(name, f"is {kind(found)}; a request body is needed")
            return found
    return line.fields


def _path(line: Line, body: Mapping[str, Any]) -> str:
    """Return the endpoint: OpenAI's batch files name it, otherwise the fields tell."""
    url = line.fields.get("url")
    if isinstance(url, str) and "/v1/" in url:
        return url[url.index("/v1/") :]
    if "messages" in body:
        return "/v1/chat/completions"
    if "input" in body:
        return "/v1/responses"
    return "/v1/completions"


def _wanted(path: str) -> str:
    return {"/v1/chat/completions": "`messages`", "/v1/responses": "`input`"}.get(path, "`messages` or `prompt`")


def _output_tokens(line: Line, allowed: int | None) -> int:
    fields = line.fields
    if fields.get("output_length") is not None:
        return line.tokens(fields, "output_length", at_least=0)
    response = fields.get("response")
    nested = response.get("body", response) if isinstance(response, dict) else None
    for holder in (fields, nested):
        usage = holder.get("usage") if isinstance(holder, dict) else None
        if isinstance(usage, dict):
            for name in ("completion_tokens", "output_tokens"):
                if usage.get(name) is not None:
                    return line.tokens(usage, name, at_least=0, prefix="usage.")
    return _OUTPUT_TOKENS if allowed is None else allowed


def _seconds(line: Line) -> float:
    value = line.fields["timestamp"]
    if isinstance(value, str):
        try:
            return dt.datetime.fromisoformat(value).astimezone(dt.UTC).timestamp()
        except (ValueError, OverflowError):
            raise line.error("timestamp", f"is {shown(value)}; seconds or an ISO 8601 date is needed") from None
    return line.number(line.fields, "timestamp")
