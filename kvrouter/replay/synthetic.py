"""Traces made up on the spot: five kinds of traffic, each with a few parameters, the same for the same seed.

They are caricatures on purpose. Each has one property that separates good routing from bad: a prompt that everybody
shares, conversations that grow, caches that overflow, parts that recur in any order, and nothing to hit at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
from math import log
from random import Random
from types import MappingProxyType
from typing import Any, ClassVar, Final, NamedTuple

from kvrouter.errors import SettingsError
from kvrouter.replay.trace import Trace, Turn, keys_of_ids

__all__ = ["KINDS", "Agents", "MultiTurn", "Rag", "SharedPrompt", "Synthetic", "Uniform", "parse_synthetic"]

_TOKENS_MAX: Final = 1 << 24
_SPREAD: Final = 0.6
_SUMMARY_TOKENS: Final = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Synthetic:
    """What all kinds have: how many requests, how many new ones (or new sessions) a second, tokens per block."""

    kind: ClassVar[str] = ""
    requests: int = 4000
    rate: float = 4.0
    block_tokens: int = 64

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 < value <= _TOKENS_MAX:
                raise SettingsError(
                    f"{self.kind}: {field.name} is {value:g}; it must be above 0 and at most {_TOKENS_MAX}"
                )

    @property
    def name(self) -> str:
        """The kind."""
        return self.kind

    def trace(self, seed: int) -> Trace:
        """Return the trace of one seed."""
        maker = _Maker(seed, self.block_tokens, self.requests)
        turns: list[Turn] = []
        at = 0.0
        while len(turns) < self.requests:
            at += maker.random.expovariate(self.rate)
            turns += self._arrival(maker, at, len(turns))
        return Trace(name=self.kind, turns=turns[: self.requests], block_tokens=self.block_tokens)

    def _arrival(self, maker: _Maker, at: float, position: int) -> Iterator[Turn]:
        """Yield the turns that begin with one arrival; the first will be at `position` of the trace."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedPrompt(Synthetic):
    """Single questions under one of a few long system prompts, some of them far more popular than others.

    Whoever only looks for the longest prefix sends all of one application to one worker.
    """

    kind: ClassVar[str] = "shared-prompt"
    rate: float = 80.0
    prompts: int = 12
    prompt_tokens: int = 3000
    question_tokens: int = 400
    output_tokens: int = 150

    def _arrival(self, maker: _Maker, at: float, position: int) -> Iterator[Turn]:  # noqa: ARG002 - needs no place
        shared = maker.part("prompt", maker.popular(self.prompts), self.prompt_tokens)
        yield maker.turn(at, shared + maker.fresh(self.question_tokens), self.output_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiTurn(Synthetic):
    """Chats: each question brings the whole conversation so far, and comes some time after the last answer."""

    kind: ClassVar[str] = "multi-turn"
    rate: float = 7.0
    turns: float = 5.0
    prompt_tokens: int = 800
    question_tokens: int = 1200
    output_tokens: int = 200
    think_seconds: float = 8.0

    def _arrival(self, maker: _Maker, at: float, position: int) -> Iterator[Turn]:
        opening = maker.part("prompt", 0, self.prompt_tokens)
        talk = _Talk(opening, self.question_tokens, self.output_tokens, self.think_seconds)
        yield from maker.conversation(at, position, talk, maker.count(self.turns))


@dataclass(frozen=True, slots=True, kw_only=True)
class Agents(Synthetic):
    """Long tasks of an agent: many steps in quick succession over a context that grows until it is summarised.

    Few sessions with much context each: their working set may be larger than all caches together.
    """

    kind: ClassVar[str] = "agents"
    block_tokens: int = 256
    rate: float = 0.8
    kinds: int = 3
    turns: float = 12.0
    prompt_tokens: int = 6000
    task_tokens: int = 3000
    step_tokens: int = 2500
    output_tokens: int = 150
    think_seconds: float = 3.0
    context_tokens: int = 100_000

    def _arrival(self, maker: _Maker, at: float, position: int) -> Iterator[Turn]:
        opening = maker.part("prompt", maker.popular(self.kinds), self.prompt_tokens) + maker.fresh(self.task_tokens)
        talk = _Talk(opening, self.step_tokens, self.output_tokens, self.think_seconds, self.context_tokens)
        yield from maker.conversation(at, position, talk, maker.count(self.turns))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rag(Synthetic):
    """Questions over documents that a search found: a short common instruction, then some documents, then a question.

    Popular documents recur, but only those in front are shared: what comes after another document is another prefix.
    """

    kind: ClassVar[str] = "rag"
    rate: float = 14.0
    documents: int = 2000
    found: int = 4
    document_tokens: int = 1000
    prompt_tokens: int = 300
    question_tokens: int = 100
    output_tokens: int = 200

    def _arrival(self, maker: _Maker, at: float, position: int) -> Iterator[Turn]:  # noqa: ARG002 - needs no place
        parts = maker.part("prompt", 0, self.prompt_tokens)
        for _ in range(self.found):
            parts = parts + maker.part("document", maker.popular(self.documents), self.document_tokens)
        yield maker.turn(at, parts + maker.fresh(self.question_tokens), self.output_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Uniform(Synthetic):
    """Prompts that have nothing in common. Here the best router is the best load balancer."""

    kind: ClassVar[str] = "uniform"
    rate: float = 16.0
    prompt_tokens: int = 3000
    output_tokens: int = 250

    def _arrival(self, maker: _Maker, at: float, position: int) -> Iterator[Turn]:  # noqa: ARG002 - needs no place
        yield maker.turn(at, maker.fresh(self.prompt_tokens), self.output_tokens)


KINDS: Mapping[str, type[Synthetic]] = MappingProxyType(
    {each.kind: each for each in (SharedPrompt, MultiTurn, Agents, Rag, Uniform)}
)


def parse_synthetic(text: str) -> Synthetic:
    """Return the generator that `KIND` or `KIND:name=value,...` describes.

    Raises:
        SettingsError: kind, name or value is wrong; it lists what there is.
    """
    kind, _, rest = text.partition(":")
    made = KINDS.get(kind)
    if made is None:
        raise SettingsError(f"synthetic trace {kind!r} is unknown; known: {', '.join(KINDS)}")
    known = {field.name: field.type for field in fields(made)}
    given: dict[str, Any] = {}
    for pair in filter(None, rest.split(",")):
        name, equals, value = pair.partition("=")
        if name not in known or not equals:
            raise SettingsError(f"{kind} has no parameter {pair!r}; it has {', '.join(f'{each}=' for each in known)}")
        convert = float if known[name] == "float" else int
        try:
            given[name] = convert(value)
        except ValueError:
            raise SettingsError(
                f"{kind}: {name} is {value!r}; {'a' if convert is float else 'a whole'} number is needed"
            ) from None
    return made(**given)


class _Text:
    """A piece of a prompt: an id for each of its tokens' blocks would not do, as pieces begin anywhere.

    So a text is a sequence of (piece, tokens), and a block is known by what of which pieces it covers.
    """

    __slots__ = ("pieces", "tokens")

    def __init__(self, pieces: tuple[tuple[int, int], ...]) -> None:
        self.pieces = pieces
        self.tokens = sum(tokens for _, tokens in pieces)

    def __add__(self, other: _Text) -> _Text:
        return _Text(self.pieces + other.pieces)


class _Talk(NamedTuple):
    """How a session goes on; its context is summarised when it is longer than `context_tokens`, if there is a limit."""

    opening: _Text
    question_tokens: float
    output_tokens: float
    think_seconds: float
    context_tokens: int = 0


class _Maker:
    """Draws lengths and choices, and knows which texts are equal."""

    def __init__(self, seed: int, block_tokens: int, requests: int) -> None:
        self.random = Random(seed)
        self._block_tokens, self._requests = block_tokens, requests
        self._pieces = 0
        self._named: dict[tuple[str, int], _Text] = {}
        self._weights: dict[int, list[float]] = {}
        self._ids: dict[tuple[tuple[int, int], ...], int] = {}
        self._sessions = 0

    def length(self, mean: float) -> int:
        """Draw a length: log-normal, so that some are several times the mean."""
        return max(1, round(self.random.lognormvariate(log(mean) - _SPREAD * _SPREAD / 2, _SPREAD)))

    def count(self, mean: float) -> int:
        """Draw a number of turns: geometric, at least 1."""
        return 1 + (int(log(1.0 - self.random.random()) / log(1.0 - 1.0 / mean)) if mean > 1 else 0)

    def popular(self, choices: int) -> int:
        """Draw one of so many things; the n-th is 1/n as popular as the first."""
        weights = self._weights.get(choices)
        if weights is None:
            weights = self._weights[choices] = list(accumulate(1.0 / (rank + 1) for rank in range(choices)))
        return self.random.choices(range(choices), cum_weights=weights)[0]

    def fresh(self, mean_tokens: float) -> _Text:
        """Make up a text that nobody has seen, of about so many tokens."""
        self._pieces += 1
        return _Text(((self._pieces, self.length(mean_tokens)),))

    def part(self, what: str, number: int, mean_tokens: float) -> _Text:
        """Return the text of that name and number; always the same one."""
        found = self._named.get((what, number))
        if found is None:
            found = self._named[what, number] = self.fresh(mean_tokens)
        return found

    def turn(self, at: float, text: _Text, output_tokens: float) -> Turn:
        """Return a request that stands for itself."""
        return Turn(
            arrival=at,
            input_tokens=text.tokens,
            output_tokens=self.length(output_tokens),
            keys=keys_of_ids(self._blocks(text)[: text.tokens // self._block_tokens]),
        )

    def conversation(self, at: float, position: int, talk: _Talk, turns: int) -> Iterator[Turn]:
        """Yield the turns of a session; each prompt is the last one, its answer, and something new."""
        self._sessions += 1
        text = talk.opening
        for number in range(min(turns, self._requests - position)):
            if talk.context_tokens and text.tokens > talk.context_tokens:
                text = talk.opening + self.fresh(_SUMMARY_TOKENS)
            text += self.fresh(talk.question_tokens)
            answer = self.fresh(talk.output_tokens)
            prompt_tokens, text = text.tokens, text + answer
            yield Turn(
                arrival=self.random.expovariate(1.0 / talk.think_seconds) if number else at,
                input_tokens=prompt_tokens,
                output_tokens=answer.tokens,
                keys=keys_of_ids(self._blocks(text)),
                session=f"session-{self._sessions}",
                follows=position + number - 1 if number else None,
            )

    def _blocks(self, text: _Text) -> Sequence[int]:
        """Return an id for each full block: equal ids are equal tokens."""
        size, ids, found = self._block_tokens, self._ids, []
        cover: list[tuple[int, int]] = []
        room = size
        for piece, tokens in text.pieces:
            offset = 0
            while tokens - offset >= room:
                cover.append((piece, offset))
                key = tuple(cover)
                found.append(ids.setdefault(key, len(ids)))
                offset += room
                cover, room = [], size
            if offset < tokens:
                cover.append((piece, offset))
                room -= tokens - offset
        return found
