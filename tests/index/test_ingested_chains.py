"""What engines report reaches the index as chains, so that matching may take whole stretches of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from kvrouter.blocks import sequence_hashes
from kvrouter.events import BlockRemoved, BlockStored, Event, EventBatch, Source, encode_batch
from kvrouter.index.native import PrefixIndex
from kvrouter.ingest import Ingest

BLOCK_SIZE = 16
TOKENS = [number * 7919 % 128_000 for number in range(100 * BLOCK_SIZE)]
NAMES = tuple(range(5000, 5100))


@dataclass
class Engine:
    """One that reports blocks of TOKENS, named by NAMES."""

    index: PrefixIndex = field(default_factory=PrefixIndex)

    def __post_init__(self) -> None:
        self.ingest = Ingest(self.index)  # type: ignore[arg-type] # one contract, two classes
        self.source, self.next = Source("0", 0), 0
        self.ingest.open(self.source, 0, now=0.0)

    def report(self, events: Sequence[Event]) -> None:
        batch = EventBatch(timestamp=0.0, events=tuple(events), data_parallel_rank=0, skipped={})
        self.ingest.receive(self.source, self.next, encode_batch(batch), now=0.0)
        self.next += 1

    def store(self, start: int, stop: int) -> None:
        event = BlockStored(
            block_hashes=NAMES[start:stop],
            parent_block_hash=NAMES[start - 1] if start else None,
            token_ids=tuple(TOKENS[start * BLOCK_SIZE : stop * BLOCK_SIZE]),
            block_size=BLOCK_SIZE,
            medium="GPU",
        )
        self.report([event])

    def remove(self, start: int, stop: int) -> None:
        self.report([BlockRemoved(block_hashes=NAMES[start:stop], medium="GPU")])


def test_reported_blocks_have_their_places() -> None:
    """Whether they are new, come one by one, overlap with what is known, or come back."""
    engine = Engine()
    engine.store(0, 40)
    engine.store(30, 70)
    for at in range(70, 100):
        engine.store(at, at + 1)
    assert (engine.index.placed(), len(engine.index)) == (100, 100)

    engine.remove(20, 100)
    engine.store(20, 90)

    assert (engine.index.placed(), len(engine.index)) == (90, 90)
    assert engine.index.match_depths(sequence_hashes(TOKENS, BLOCK_SIZE)) == {0: 90}
