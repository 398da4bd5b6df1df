"""What an engine evicts is counted, and what of it comes back soon."""

from kvrouter.events import BlockRemoved, BlockStored, Event, EventBatch, Source, encode_batch
from kvrouter.index import PrefixIndex
from kvrouter.ingest import Ingest

SOURCE = Source("a", 0)
BLOCK = 16


class Engine:
    """Says what its cache does; block `n` is the first one of a prompt of its own."""

    def __init__(self) -> None:
        self.ingest = Ingest(PrefixIndex())
        self.ingest.open(SOURCE, 3, block_size=BLOCK, now=0.0)
        self._sequence = 0

    def store(self, *blocks: int) -> None:
        """Announce blocks."""
        self._tell(
            *(
                BlockStored(block_hashes=(block,), token_ids=tuple([block] * BLOCK), block_size=BLOCK, medium="GPU")
                for block in blocks
            )
        )

    def evict(self, *blocks: int) -> None:
        """Take them back."""
        self._tell(BlockRemoved(block_hashes=blocks, medium="GPU"))

    def _tell(self, *events: Event) -> None:
        batch = EventBatch(timestamp=0.0, events=events, data_parallel_rank=None, skipped={})
        self.ingest.receive(SOURCE, self._sequence, encode_batch(batch), now=0.0)
        self._sequence += 1


def test_nothing_is_evicted_at_first() -> None:
    """Nor by a rank that nobody knows."""
    engine = Engine()
    engine.store(1, 2, 3)

    assert engine.ingest.evictions(3)[:2] == (0, 0)
    assert engine.ingest.evictions(99) == (0, 0, 1.0, 0)


def test_evicted_blocks_are_counted_and_those_that_come_back() -> None:
    """Once each time; a block that is stored twice was not evicted."""
    engine = Engine()
    engine.store(*range(1, 11))
    engine.evict(1, 2, 3, 4)
    assert engine.ingest.evictions(3)[:2] == (4, 0)

    engine.store(2, 3, 5, 50)
    engine.evict(2)

    evicted, returned, share, held = engine.ingest.evictions(3)
    assert (evicted, returned, held) == (5, 2, 8)
    assert 0 < share <= 1


def test_what_comes_back_late_is_new() -> None:
    """Only so many are remembered: a share of what the rank holds."""
    engine = Engine()
    blocks = list(range(1, 40_001))
    engine.store(*blocks)
    engine.evict(*blocks[:20_000])
    engine.store(*blocks[:100])

    evicted, returned, share, held = engine.ingest.evictions(3)

    assert (evicted, returned, held) == (20_000, 0, 20_100)
    assert share < 0.2
