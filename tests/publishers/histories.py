"""Random histories of a rank's cache, and the consumer that judges whether two of them end alike.

Blocks are the nodes of two binary trees of equal tokens, one of them salted: block n continues block n // 2, and its
tokens and its engine hash follow from n.
"""

from collections.abc import Iterable, Sequence

from hypothesis import strategies as st

from kvrouter.blocks import Prompt
from kvrouter.events import AllBlocksCleared, BlockRemoved, BlockStored, Event, EventBatch, Source, encode_batch
from kvrouter.index import PrefixIndex
from kvrouter.ingest import Ingest

BLOCKS = range(1, 32)
SALTED = 32
"""Added to the number of a block in the salted tree."""
SIZE = 4
SOURCE = Source("worker", 0)
_MEDIA = ("GPU", None, "CPU", "CPU_PINNED", "DISK", "REMOTE", "somewhere")
_GPU_ALONE = ("GPU", None, "REMOTE")


def block_hash(block: int) -> int:
    """The engine's name for a block."""
    return 0x9000_0000_0000_0000 + block


def block_tokens(block: int) -> tuple[int, ...]:
    """The tokens of a block alone."""
    node = block % SALTED
    return tuple(range(SIZE * node, SIZE * node + SIZE))


def lineage(block: int) -> list[int]:
    """A block and all that it continues, from the first on."""
    tree, node = divmod(block, SALTED)
    return [*(lineage(tree * SALTED + node // 2) if node > 1 else []), block]


def prompts() -> list[Prompt]:
    """A prompt for each path of the trees, with a token that is always computed anew."""
    return [
        Prompt([*(token for each in lineage(leaf) for token in block_tokens(each)), 7], salt=salt)
        for leaf in BLOCKS[15:]
        for salt in (b"", b"salt")
    ]


@st.composite
def _stores(draw: st.DrawFn, kinds: bool, offloads: bool) -> BlockStored:
    salted = draw(st.sampled_from((0, 0, SALTED)))
    path = lineage(draw(st.sampled_from(BLOCKS)) + salted)
    start = draw(st.integers(0, len(path) - 1))
    parent = block_hash(path[start - 1]) if start else None
    medium = draw(st.sampled_from(_MEDIA if offloads else _GPU_ALONE))
    group = draw(st.sampled_from((None, 0, 1) if kinds and offloads else (None, 0)))
    form = draw(st.sampled_from(("plain", "plain", "plain", "masked", "bare" if offloads else "masked")))
    blocks = path[start:]
    named = blocks[len(blocks) // 2 :] if form == "masked" else blocks
    keys = ((("salt",) if salted and not start and named == blocks else None), *(None,) * (len(named) - 1))
    tells = salted and form != "bare" and medium in ("GPU", None)
    return BlockStored(
        block_hashes=tuple(map(block_hash, named)),
        parent_block_hash=None if form == "bare" else parent,
        token_ids=() if form == "bare" else tuple(token for block in blocks for token in block_tokens(block)),
        block_size=0 if form == "bare" else SIZE,
        medium=medium,
        extra_keys=keys if tells else None,
        group_idx=group,
        kv_cache_spec_kind=("sliding_window" if group else "full_attention") if kinds else None,
        kv_cache_spec_sliding_window=9 if kinds and group else None,
    )


@st.composite
def _removals(draw: st.DrawFn) -> BlockRemoved:
    blocks = draw(st.lists(st.sampled_from((*BLOCKS, *(block + SALTED for block in BLOCKS))), min_size=1, max_size=4))
    return BlockRemoved(
        block_hashes=tuple(map(block_hash, blocks)),
        medium=draw(st.sampled_from(_MEDIA)),
        group_idx=draw(st.sampled_from((None, None, 0, 1))),
    )


@st.composite
def histories(draw: st.DrawFn, *, orphans: bool = False) -> list[tuple[Event, ...]]:
    """Batches in which anything may happen, of an engine that names kinds of attention or one that does not.

    With `orphans`, blocks may come before the blocks that they continue. An engine that offloads shows it at once;
    one that does not has nobody who names a block without saying what it is.
    """
    kinds, offloads = draw(st.booleans()), draw(st.booleans())
    stores = _stores(kinds, offloads)
    events = st.one_of(stores, stores, stores, stores, _removals(), _removals(), st.just(AllBlocksCleared()))
    batches = draw(st.lists(st.lists(events, min_size=1, max_size=4).map(tuple), max_size=14))
    beginning = [(BlockStored(block_hashes=(block_hash(BLOCKS[-1]),), medium="CPU"),)] if offloads else []
    return _plausible([*beginning, *batches], orphans=orphans)


def _plausible(batches: list[tuple[Event, ...]], *, orphans: bool) -> list[tuple[Event, ...]]:
    """Leave out what no engine says: a salted block elsewhere, described without its salt, that the GPU never had."""
    known: set[int | None] = {None}
    kept: list[tuple[Event, ...]] = []
    for events in batches:
        some: list[Event] = []
        for event in events:
            if isinstance(event, BlockStored) and event.token_ids:
                on_gpu = event.medium in ("GPU", None)
                salted = event.block_hashes[-1] >= block_hash(SALTED)
                rooted = orphans or event.parent_block_hash in known
                if not rooted or (salted and not on_gpu and not known.issuperset(event.block_hashes)):
                    continue
                if on_gpu and not event.group_idx and len(event.token_ids) == SIZE * len(event.block_hashes):
                    known.update(event.block_hashes)
            some.append(event)
        if some:
            kept.append(tuple(some))
    return kept


class Consumer:
    """A router's view of one rank."""

    def __init__(self) -> None:
        self.ingest = Ingest(PrefixIndex())
        self.ingest.open(SOURCE, 0, block_size=SIZE, now=0.0)
        self._sequence = 0

    def hear(self, batches: Iterable[Sequence[Event]]) -> "Consumer":
        """Apply batches over their wire form."""
        for events in batches:
            payload = encode_batch(EventBatch(timestamp=0.0, events=tuple(events)))
            receipt = self.ingest.receive(SOURCE, self._sequence, payload, now=0.0)
            assert receipt.outcome == "applied"
            self._sequence += 1
        return self

    def copies(self) -> dict[tuple[str, int], dict[int, int]]:
        """Copies per engine hash, by place."""
        return self.ingest.copies(SOURCE)

    def usable(self) -> list[dict[int, int]]:
        """What each prompt could use."""
        return [self.ingest.usable_tokens(prompt, ("gpu", "cpu", "disk")) for prompt in prompts()]
