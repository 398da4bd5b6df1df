"""What the index benchmark does to every index: the cache events and lookups of a fleet that serves a trace.

A trace in Mooncake's form names 512-token chunks by ids that are chained: an id names its whole prefix. Requests go to
the rank that has most of their prefix and least other work; each rank keeps its latest chunks and gives up the least
recently used ones, tails first; answers add single blocks while they are decoded. What is learnt from it is the stream
of `stored` and `removed` events, in three forms of the same thing: sequence hashes, the JSON that Dynamo's tree takes,
and vLLM's own bytes. The last requests only ask.
"""

import json
import random
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from kvrouter.blocks import chain_hashes, hash_seed, token_bytes
from kvrouter.events import BlockRemoved, BlockStored, Event, EventBatch, encode_batch

__all__ = ["BLOCK_SIZE", "Change", "Fleet", "Request", "load_trace", "synthetic_trace"]

BLOCK_SIZE = 16
CHUNK_BLOCKS = 32
_EVENT_BLOCKS_MAX = 512
_CHUNK_TOKENS = BLOCK_SIZE * CHUNK_BLOCKS
_VOCABULARY = 128_000
_SEED = hash_seed(b"", None)
# Engines name blocks as they like; the name must not be ours.
_ENGINE_NAME = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt as chunks, and how many blocks its answer fills."""

    chunks: tuple[int, ...]
    answer_blocks: int


@dataclass(frozen=True, slots=True)
class Change:
    """One event of one rank. `tokens` is empty for removals."""

    rank: int
    parent: int | None
    hashes: NDArray[np.uint64]
    local: NDArray[np.uint64]
    tokens: NDArray[np.uint32]

    def dynamo(self, number: int) -> bytes:
        """As `RadixTree.apply_event` takes it."""
        if not len(self.tokens):
            data: dict[str, object] = {"removed": {"block_hashes": self.hashes.tolist()}}
        else:
            pairs = zip(self.hashes.tolist(), self.local.tolist(), strict=True)
            blocks = [{"block_hash": key, "tokens_hash": local} for key, local in pairs]
            data = {"stored": {"parent_hash": self.parent, "blocks": blocks}}
        return json.dumps({"event_id": number, "data": data}, separators=(",", ":")).encode()

    def vllm(self, timestamp: float) -> bytes:
        """As vLLM publishes it."""
        names = tuple((self.hashes ^ np.uint64(_ENGINE_NAME)).tolist())
        event: Event = BlockRemoved(block_hashes=names, medium="GPU")
        if len(self.tokens):
            event = BlockStored(
                block_hashes=names,
                parent_block_hash=None if self.parent is None else self.parent ^ _ENGINE_NAME,
                token_ids=tuple(self.tokens.tolist()),
                block_size=BLOCK_SIZE,
                medium="GPU",
            )
        return encode_batch(EventBatch(timestamp=timestamp, events=(event,), data_parallel_rank=0, skipped={}))


class _Chunk:
    """What the blocks of a chunk are called."""

    __slots__ = ("hashes", "local", "parent", "tokens")

    hashes: NDArray[np.uint64]

    def __init__(self, name: int, blocks: int, parent: "_Chunk | None") -> None:
        random_tokens = np.random.default_rng(name)
        self.parent = int(parent.hashes[-1]) if parent is not None else None
        self.tokens = random_tokens.integers(0, _VOCABULARY, size=blocks * BLOCK_SIZE, dtype=np.uint32)
        words = token_bytes(self.tokens)
        width = len(words) // blocks
        alone = [xxh3_64_intdigest(words[at : at + width], _SEED) for at in range(0, len(words), width)]
        self.local = np.array(alone, dtype=np.uint64)
        chained = chain_hashes(self.parent, words, BLOCK_SIZE, _SEED)
        self.hashes = np.array(chained, dtype=np.uint64)


class Fleet:
    """Serves requests and tells what happens to the caches. `blocks_max` is what one rank can keep."""

    def __init__(self, *, ranks: int, blocks_max: int) -> None:
        self.blocks_max = blocks_max
        self._chunks: dict[int, _Chunk] = {}
        self._held: list[OrderedDict[int, int]] = [OrderedDict() for _ in range(ranks)]
        self._holders: dict[int, set[int]] = {}
        self._blocks = [0] * ranks
        self._work = [0.0] * ranks
        # Work is done by all ranks at once: were it forgotten faster than requests come round to each, a few would do.
        self._kept_work = 1 - 0.64 / ranks
        self._answers = 0
        self._random = random.Random(0)

    def prompt(self, request: Request) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """The sequence hashes and the local hashes of a prompt."""
        chunks = self._describe(request.chunks)
        return np.concatenate([each.hashes for each in chunks]), np.concatenate([each.local for each in chunks])

    def serve(self, request: Request) -> Iterator[Change]:
        """Serve a request; yields what it does to the caches."""
        if CHUNK_BLOCKS * len(request.chunks) + request.answer_blocks > self.blocks_max:
            return
        chunks = self._describe(request.chunks)
        rank = self._choose(request.chunks)
        held = self._held[rank]
        first_new = next((at for at, name in enumerate(request.chunks) if name not in held), len(chunks))
        new, known = chunks[first_new:], request.chunks[:first_new]
        for name in reversed(known):
            held.move_to_end(name)
        self._work[rank] += len(new)
        yield from self._make_room(rank, CHUNK_BLOCKS * len(new) + request.answer_blocks)
        for start in range(0, len(new), _EVENT_BLOCKS_MAX // CHUNK_BLOCKS):
            yield _stored(rank, new[start : start + _EVENT_BLOCKS_MAX // CHUNK_BLOCKS])
        if request.answer_blocks:
            yield from self._answer(rank, request.answer_blocks, chunks[-1])
        # Whatever continues a prefix is given up before it.
        for name in reversed(request.chunks[first_new:]):
            self._keep(rank, name, CHUNK_BLOCKS)
        for name in reversed(known):
            held.move_to_end(name)

    def pairs(self) -> int:
        """Blocks held, summed over the ranks."""
        return sum(self._blocks)

    def _answer(self, rank: int, blocks: int, parent: "_Chunk") -> Iterator[Change]:
        """An answer is stored block by block."""
        self._answers += 1
        answer = self._chunks[-self._answers] = _Chunk(2**62 + self._answers, blocks, parent)
        self._keep(rank, -self._answers, blocks)
        before = answer.parent
        for at in range(blocks):
            one, tokens = slice(at, at + 1), slice(at * BLOCK_SIZE, (at + 1) * BLOCK_SIZE)
            yield Change(rank, before, answer.hashes[one], answer.local[one], answer.tokens[tokens])
            before = int(answer.hashes[at])

    def _describe(self, names: Sequence[int]) -> list[_Chunk]:
        found: list[_Chunk] = []
        for name in names:
            chunk = self._chunks.get(name)
            if chunk is None:
                chunk = self._chunks[name] = _Chunk(name, CHUNK_BLOCKS, found[-1] if found else None)
            found.append(chunk)
        return found

    def _choose(self, names: Sequence[int]) -> int:
        """The rank that has most of the prefix, weighed against its work of late."""
        self._work = [self._kept_work * work for work in self._work]
        scores = [-0.25 * work for work in self._work]
        alive: set[int] | None = None
        for depth, name in enumerate(names, 1):
            holders = self._holders.get(name, set())
            alive = set(holders) if alive is None else alive & holders
            if not alive:
                break
            for rank in alive:
                scores[rank] = depth - 0.25 * self._work[rank]
        best = max(scores)
        return self._random.choice([rank for rank, score in enumerate(scores) if score == best])

    def _keep(self, rank: int, name: int, blocks: int) -> None:
        if name not in self._held[rank]:
            self._blocks[rank] += blocks
            self._holders.setdefault(name, set()).add(rank)
        self._held[rank][name] = blocks
        self._held[rank].move_to_end(name)

    def _make_room(self, rank: int, blocks: int) -> Iterator[Change]:
        held, gone = self._held[rank], []
        while self._blocks[rank] + blocks > self.blocks_max and held:
            name, size = held.popitem(last=False)
            self._blocks[rank] -= size
            self._holders[name].discard(rank)
            gone.append(self._chunks[name].hashes[::-1])
            if name < 0:
                del self._chunks[name]
        if gone:
            hashes = np.concatenate(gone)
            for start in range(0, len(hashes), _EVENT_BLOCKS_MAX):
                part = hashes[start : start + _EVENT_BLOCKS_MAX]
                yield Change(rank, None, part, part, np.empty(0, np.uint32))


def _stored(rank: int, chunks: Sequence[_Chunk]) -> Change:
    return Change(
        rank,
        chunks[0].parent,
        np.concatenate([each.hashes for each in chunks]),
        np.concatenate([each.local for each in chunks]),
        np.concatenate([each.tokens for each in chunks]),
    )


def load_trace(path: Path, *, copies: int = 1) -> list[Request]:
    """The requests of a trace file in time, several times side by side under other names."""
    requests = []
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            entry = json.loads(line)
            answer = int(entry["output_length"]) // BLOCK_SIZE
            requests += [
                Request(tuple(int(name) * copies + copy for name in entry["hash_ids"]), answer)
                for copy in range(copies)
                if entry["hash_ids"]
            ]
    return requests


def synthetic_trace(requests: int) -> list[Request]:
    """Conversations that grow turn by turn under a few shared openings, where no recorded trace is at hand."""
    choose = random.Random(1)
    openings = [tuple(range(start, start + 4)) for start in range(0, 64, 4)]
    conversations: list[tuple[int, ...]] = []
    name, trace = 64, []
    for _ in range(requests):
        if conversations and choose.random() < 0.7:
            at = choose.randrange(max(0, len(conversations) - 400), len(conversations))
        else:
            at = len(conversations)
            conversations.append(choose.choice(openings))
        turns = choose.choice([1, 2, 4, 8, 32])
        conversations[at] += tuple(range(name, name + turns))
        name += turns
        trace.append(Request(conversations[at], choose.randrange(40)))
    return trace
