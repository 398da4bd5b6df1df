"""TensorRT-LLM's JSON events (`POST /kv_cache_events`, `LLM.get_kv_cache_events`) as ours.

They are polled, not streamed, and reading drains them. One buffer carries every attention-data-parallel rank, events
are numbered per rank, and a jump means that the engine's ring buffer overflowed: nothing repeats what was in it. They
name no tier where a block is removed, and report partial last blocks, so a little state is kept per rank. Versions
0.20 to 1.3; its streaming form (1.3) is vLLM's wire and needs nothing of this.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from kvrouter.errors import WireError
from kvrouter.events.model import AllBlocksCleared, BlockRemoved, BlockStored, Event

__all__ = ["TrtllmEvents"]

_DOCUMENT_BYTES_MAX: Final = 256 << 20
_RANK_MAX: Final = 4095
_WAITING_MAX: Final = 1024
_MEDIA: Final = ("GPU", "CPU")
_HASH_MASK: Final = (1 << 64) - 1


class TrtllmEvents:
    """Translates one engine's events, in the order in which they were read.

    `block_size` is the engine's `tokens_per_block`. Without it it is learnt from the first block that another one
    follows in the same event, and what comes before that waits. `skipped` counts, by reason, what was left out, and
    `gaps` the jumps of event numbers: after one the rank's blocks are given up, because removals may be lost.
    """

    def __init__(self, *, block_size: int | None = None) -> None:
        if block_size is not None and block_size < 1:
            raise ValueError(f"block_size is {block_size}; it must be at least 1")
        self.skipped: dict[str, int] = {}
        self.gaps = 0
        self.block_size = block_size
        self._ranks: dict[int, _Rank] = {}

    def decode(self, document: bytes) -> dict[int, tuple[Event, ...]]:
        """Return the new events of each rank that the answer `document` speaks of.

        Raises:
            WireError: it is not a JSON array, or longer than 256 MiB; nothing of it was taken.
        """
        if len(document) > _DOCUMENT_BYTES_MAX:
            raise WireError(f"the answer has {len(document)} bytes; at most {_DOCUMENT_BYTES_MAX} are read")
        try:
            events = json.loads(document)
        except (ValueError, RecursionError) as error:
            raise WireError(f"the answer is not JSON: {error}", reason="not_json") from None
        if not isinstance(events, list):
            raise WireError("the answer is not a JSON array of events", reason="not_an_array")
        found: dict[int, list[Event]] = {}
        for event in events:
            self._take(event, found)
        return {rank: tuple(taken) for rank, taken in found.items() if taken}

    def _take(self, event: object, found: dict[int, list[Event]]) -> None:
        if not isinstance(event, dict) or not isinstance(data := event.get("data"), dict):
            return self._skip("malformed")
        number, kind, rank_number = event.get("event_id"), data.get("type"), event.get("attention_dp_rank") or 0
        if not isinstance(number, int) or not isinstance(kind, str):
            return self._skip("malformed")
        if not isinstance(rank_number, int) or not 0 <= rank_number <= _RANK_MAX:
            return self._skip("bad_rank")
        rank = self._ranks.setdefault(rank_number, _Rank())
        into = found.setdefault(rank_number, [])
        if rank.expected not in (None, number):
            self.gaps += 1
            into.extend(rank.give_up())
        rank.expected = number + 1
        if not rank.follows(event.get("window_size"), into):
            return self._skip("smaller_window")
        try:
            self._read(kind, data, rank, into)
        except (KeyError, TypeError, ValueError, AttributeError):
            self._skip("malformed")
            if kind != "stored":  # A removal that nobody understands: what it removed may be anything.
                into.extend(rank.give_up())
        return None

    def _read(self, kind: str, data: Mapping[str, Any], rank: "_Rank", into: list[Event]) -> None:
        if kind == "stored":
            self._learn_block_size(data["blocks"])
            if self.block_size is None:
                self._wait(data, rank)
            else:
                for waiting in rank.take_waiting():
                    self._try_store(waiting, rank, into)
                self._store(data, rank, into)
        elif kind == "removed":
            into.extend(rank.remove([_hash(each) for each in data["block_hashes"]]))
        elif kind == "updated":
            if data.get("cache_level") is not None:
                medium = _medium(data["cache_level"]["new_value"])
                into.extend(rank.move(_hash(data["block_hash"]), medium))
        elif kind != "created":
            self._skip("unknown_event")

    def _learn_block_size(self, blocks: Sequence[Mapping[str, Any]]) -> None:
        if self.block_size is None and len(blocks) > 1:
            self.block_size = len(blocks[0]["tokens"]) or None

    def _wait(self, data: Mapping[str, Any], rank: "_Rank") -> None:
        if len(rank.waiting) >= _WAITING_MAX:
            self._skip("block_size_unknown")
        else:
            rank.waiting.append(data)

    def _try_store(self, data: Mapping[str, Any], rank: "_Rank", into: list[Event]) -> None:
        """State what waited; that it was malformed shows only now, and says nothing about what came after it."""
        try:
            self._store(data, rank, into)
        except (KeyError, TypeError, ValueError, AttributeError):
            self._skip("malformed")

    def _store(self, data: Mapping[str, Any], rank: "_Rank", into: list[Event]) -> None:
        """State the whole blocks of a chain that are new, each run of them that belongs together as one event."""
        parent = None if data["parent_hash"] is None else _hash(data["parent_hash"])
        blocks = [_Block(each) for each in data["blocks"]]
        run: list[_Block] = []
        for block in blocks:
            if len(block.tokens) != self.block_size or block.has_extra_ids:
                self._skip("partial_block" if not block.has_extra_ids else "token_extra_id")
                break
            if rank.media.get(block.hash) is not None:
                into.extend(_stored(run, parent, self.block_size))
                into.extend(rank.move(block.hash, block.medium))
                parent, run = block.hash, []
                continue
            if run and (run[-1].medium, run[-1].salt) != (block.medium, block.salt):
                into.extend(_stored(run, parent, self.block_size))
                parent, run = run[-1].hash, []
            run.append(block)
            rank.media[block.hash] = block.medium
        into.extend(_stored(run, parent, self.block_size or 0))

    def _skip(self, reason: str) -> None:
        self.skipped[reason] = self.skipped.get(reason, 0) + 1


class _Rank:
    """What one rank has said so far: which blocks it holds and where."""

    __slots__ = ("expected", "media", "waiting", "window")

    def __init__(self) -> None:
        self.expected: int | None = None
        self.media: dict[int, str] = {}
        self.waiting: list[Mapping[str, Any]] = []
        self.window = 0

    def take_waiting(self) -> list[Mapping[str, Any]]:
        """Return the stores that waited for the block size, and forget them."""
        waiting, self.waiting = self.waiting, []
        return waiting

    def follows(self, window: object, into: list[Event]) -> bool:
        """Whether an event belongs to the layers that remember most; those with smaller windows forget on their own."""
        if not isinstance(window, int) or window == self.window:
            return True
        if window < self.window:
            return False
        if self.window:
            into.extend(self.give_up())
        self.window = window
        return True

    def give_up(self) -> Iterable[Event]:
        """Say that nothing is known any more."""
        below = tuple(each for each, medium in self.media.items() if medium != "GPU")
        self.media.clear()
        self.waiting.clear()
        if below:
            yield BlockRemoved(block_hashes=below, medium="CPU")
        yield AllBlocksCleared()

    def remove(self, hashes: Sequence[int]) -> Iterable[Event]:
        """Say where the blocks were; partial ones were never stated."""
        for medium in _MEDIA:
            gone = tuple(each for each in hashes if self.media.get(each) == medium)
            if gone:
                yield BlockRemoved(block_hashes=gone, medium=medium)
        for each in hashes:
            self.media.pop(each, None)

    def move(self, block: int, medium: str) -> Iterable[Event]:
        """Say that a block went to another tier; it arrives before it leaves, so that its meaning is never lost."""
        before = self.media.get(block)
        if before is None or before == medium:
            return
        self.media[block] = medium
        yield BlockStored(block_hashes=(block,), medium=medium)
        yield BlockRemoved(block_hashes=(block,), medium=before)


class _Block:
    """One stored block as it came."""

    __slots__ = ("has_extra_ids", "hash", "items", "medium", "salt", "tokens")

    def __init__(self, block: Mapping[str, Any]) -> None:
        self.hash = _hash(block["block_hash"])
        self.tokens = tuple(_token(each["token_id"]) for each in block["tokens"])
        self.has_extra_ids = any(each.get("token_extra_id") for each in block["tokens"])
        self.medium = _medium(block.get("cache_level", 0))
        salt = block.get("cache_salt")
        self.salt = None if salt is None else str(salt)
        self.items = tuple(dict(each) for each in block.get("mm_keys") or ()) or None


def _stored(run: Sequence[_Block], parent: int | None, block_size: int | None) -> Iterable[Event]:
    if run:
        yield BlockStored(
            block_hashes=tuple(block.hash for block in run),
            parent_block_hash=parent,
            token_ids=tuple(token for block in run for token in block.tokens),
            block_size=block_size or 0,
            medium=run[0].medium,
            cache_salt=run[0].salt,
            mm_keys=tuple(block.items for block in run) if any(block.items for block in run) else None,
        )


def _hash(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"a block hash is {type(value).__name__}")
    return value & _HASH_MASK


def _token(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value < 1 << 32:
        raise ValueError(f"a token id is {value!r}")
    return value


def _medium(level: object) -> str:
    if not isinstance(level, int) or not 0 <= level < len(_MEDIA):
        raise ValueError(f"cache level {level!r} is neither 0 (GPU) nor 1 (host)")
    return _MEDIA[level]
