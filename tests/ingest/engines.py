"""Event payloads as engines write them, in few words, for tests of ingest."""

from collections.abc import Sequence
from typing import Any

from kvrouter.blocks import Prompt
from kvrouter.events import AllBlocksCleared, BlockRemoved, BlockStored, Event, EventBatch, Source, encode_batch
from kvrouter.index import PrefixIndex
from kvrouter.ingest import Ingest, IngestLimits, Receipt, SourceStatus

SOURCE = Source("worker", 0)
RANK = 5


def tokens(blocks: int, *, start: int = 0, size: int = 4) -> tuple[int, ...]:
    """`blocks` blocks of tokens that are all different."""
    return tuple(range(1000 + start * size, 1000 + (start + blocks) * size))


def stored(
    hashes: Sequence[int],
    token_ids: Sequence[int],
    *,
    parent: int | None = None,
    size: int = 4,
    **fields: Any,
) -> BlockStored:
    """A store on the GPU unless `medium` says otherwise."""
    return BlockStored(
        block_hashes=tuple(hashes),
        parent_block_hash=parent,
        token_ids=tuple(token_ids),
        block_size=size,
        **fields,
    )


def removed(*hashes: int, **fields: Any) -> BlockRemoved:
    """A removal from the GPU unless `medium` says otherwise."""
    return BlockRemoved(block_hashes=hashes, **fields)


CLEARED = AllBlocksCleared()


def payload(*events: Event, stamp: float = 0.0) -> bytes:
    """One batch."""
    return encode_batch(EventBatch(timestamp=stamp, events=events, data_parallel_rank=0))


class Rank:
    """One followed source, fed in order unless told otherwise."""

    def __init__(
        self, *, limits: IngestLimits | None = None, block_size: int | None = 4, index: PrefixIndex | None = None
    ) -> None:
        self.index = PrefixIndex() if index is None else index
        self.ingest = Ingest(self.index, limits=limits or IngestLimits())
        self.ingest.open(SOURCE, RANK, block_size=block_size, now=0.0)
        self.sequence = 0

    def send(self, *events: Event) -> Receipt:
        """The next batch arrives."""
        receipt = self.receive(self.sequence, *events)
        self.sequence += 1
        return receipt

    def receive(self, sequence: int, *events: Event, replayed: bool = False, stamp: float = 0.0) -> Receipt:
        """A batch with that number arrives."""
        return self.ingest.receive(
            SOURCE, sequence, payload(*events, stamp=stamp), now=float(sequence), replayed=replayed
        )

    def usable(self, token_ids: Sequence[int], *, salt: bytes = b"", lora: str | None = None) -> int:
        """Usable tokens of a prompt that goes on after `token_ids`, so that the last-token rule costs nothing."""
        prompt = Prompt([*token_ids, 7, 8], salt=salt, lora=lora)
        return self.ingest.usable_tokens(prompt).get(RANK, 0)

    @property
    def status(self) -> SourceStatus:
        """What `GET /sources` would show."""
        (status,) = self.ingest.status(now=1000.0)
        return status
