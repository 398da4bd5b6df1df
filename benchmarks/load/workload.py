"""The requests of a benchmark: every one different, all of one size, made from ready pieces while they are sent.

A body is `opening + stem + unique + tail + closing`, or one of the `ready` ones. Stems repeat from request to request,
as the earlier turns of a conversation do; what follows the stem was never sent before. With one empty stem no two
prompts share a block. Nothing is sent here.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

__all__ = [
    "ID_LOW",
    "UNIQUE_RANGE",
    "Workload",
    "ready_bodies",
    "text_completions",
    "token_completions",
    "token_selections",
]

_CONVERSATIONS = 64
_TAILS = 16
_SYSTEM_SHARE = 0.2
_STEM_SHARE = 0.9
# Ids of five digits: in real vocabularies most ids are, and so all bodies of a workload have one length.
ID_LOW, _ID_HIGH = 10_000, 99_999
UNIQUE_RANGE = 80_000
_UNIQUE_IDS = 3
_TOKEN_BYTES = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Ready pieces of requests; `separator` stands between the words or ids of a prompt."""

    name: str
    path: str
    opening: str
    stems: tuple[str, ...]
    separator: str
    tails: tuple[str, ...]
    closing: str
    ready: tuple[str, ...] = ()

    def body(self, counter: int, seed: int) -> bytes:
        """Return the body number `counter` of the run that `seed` numbers."""
        if self.ready:
            return self.ready[counter % len(self.ready)].encode()
        high, low = divmod(counter, UNIQUE_RANGE)
        unique = "".join(f"{ID_LOW + part}{self.separator}" for part in (seed % UNIQUE_RANGE, high, low))
        stem, tail = self.stems[counter % len(self.stems)], self.tails[counter % len(self.tails)]
        return (self.opening + stem + unique + tail + self.closing % (counter % 10**7)).encode()

    def head(self, host: str, body_bytes: int) -> bytes:
        """Return the request head for a body of that size; clients of real fleets send about these headers."""
        lines = [
            f"POST {self.path} HTTP/1.1",
            f"Host: {host}",
            "Content-Type: application/json",
            "Accept: */*",
            "User-Agent: kvrouter-benchmark",
            f"Content-Length: {body_bytes}",
        ]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def request(self, counter: int, seed: int, host: str) -> bytes:
        """Return head and body number `counter`."""
        body = self.body(counter, seed)
        return self.head(host, len(body)) + body

    def stem_ids(self) -> list[list[int]]:
        """Return the token ids of every stem of a workload of ids, for whoever pretends to have them cached."""
        return [[int(each) for each in stem.split(",") if each] for stem in self.stems]

    def save(self, path: Path) -> None:
        """Write the pieces for a generator process."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Workload":
        """Read what `save` wrote."""
        pieces = json.loads(path.read_text(encoding="utf-8"))
        listed = {name: tuple(piece) for name, piece in pieces.items() if isinstance(piece, list)}
        return cls(**{**pieces, **listed})


def token_completions(name: str, body_bytes: int, *, conversations: bool, stream: bool = False) -> Workload:
    """Return completions whose prompts are token ids."""
    options = f'],"max_tokens":16,"stream":{str(stream).lower()},"seed":1%07d}}'
    return _completions(name, body_bytes, '{"model":"bench","prompt":[', options, ",", conversations=conversations)


def text_completions(name: str, body_bytes: int, *, conversations: bool, stream: bool = False) -> Workload:
    """Return completions of the same sizes and the same repetition whose prompts are text, for routers of text."""
    options = f'","max_tokens":16,"stream":{str(stream).lower()},"seed":1%07d}}'
    return _completions(name, body_bytes, '{"model":"bench","prompt":"', options, " ", conversations=conversations)


def token_selections(name: str, tokens: int, *, conversations: bool) -> Workload:
    """Return selections for prompts of `tokens` ids; `seed` is a field that no router knows."""
    opening, closing = '{"model_name":"bench","token_ids":[', '],"seed":1%07d}'
    size = len(opening) + len(closing % 0) + tokens * _TOKEN_BYTES - 1
    workload = _completions(name, size, opening, closing, ",", conversations=conversations)
    return replace(workload, path="/select")


def ready_bodies(name: str, path: str, bodies: Sequence[str]) -> Workload:
    """Return requests that repeat `bodies` in turn, for bodies that cannot be made from pieces."""
    return Workload(
        name=name, path=path, opening="", stems=("",), separator=",", tails=("",), closing="", ready=tuple(bodies)
    )


def _completions(
    name: str, body_bytes: int, opening: str, closing: str, separator: str, *, conversations: bool
) -> Workload:
    choice = random.Random(name)
    words = (body_bytes - len(opening) - len(closing % 0) + 1) // _TOKEN_BYTES
    stem_words = int(words * _STEM_SHARE) if conversations else 0
    stems = _stems(choice, stem_words, separator) if conversations else ("",)
    tail_words = words - stem_words - _UNIQUE_IDS
    tails = tuple(_words(choice, tail_words, separator)[: -len(separator)] for _ in range(_TAILS))
    padding = body_bytes - len(opening) - len(closing % 0) - words * _TOKEN_BYTES + 1
    return Workload(
        name=name,
        path="/v1/completions",
        opening=opening,
        stems=stems,
        separator=separator,
        tails=tails,
        closing=closing[:-1] + " " * padding + closing[-1],
    )


def _stems(choice: random.Random, words: int, separator: str) -> tuple[str, ...]:
    """Make the earlier turns of every conversation; all begin with one system prompt."""
    system = _words(choice, int(words * _SYSTEM_SHARE), separator)
    own = words - int(words * _SYSTEM_SHARE)
    return tuple(system + _words(choice, own, separator) for _ in range(_CONVERSATIONS))


def _words(choice: random.Random, count: int, separator: str) -> str:
    if separator == ",":
        return "".join(f"{choice.randint(ID_LOW, _ID_HIGH)}," for _ in range(count))
    return "".join("".join(choice.choices("etaoinshrdlu", k=5)) + separator for _ in range(count))
