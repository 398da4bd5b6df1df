"""Whatever an engine says, ingest neither raises nor loses its bearings."""

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from kvrouter.blocks import Prompt
from kvrouter.events import AllBlocksCleared, BlockRemoved, BlockStored, Event
from kvrouter.ingest import IngestLimits
from tests.ingest.engines import RANK, SOURCE, Rank, payload

_hashes = st.lists(st.integers(0, 12), max_size=4).map(tuple)
_tokens = st.lists(st.integers(0, 3), max_size=12).map(tuple)
_media = st.sampled_from([None, "GPU", "CPU", "CPU_PINNED", "DISK", "EXTERNAL"])
_groups = st.sampled_from([None, 0, 1, 2, -1, 10**9])
_kinds = st.sampled_from(
    [None, "full_attention", "sliding_window", "mamba", "cross_attention", "chunked_local_attention", "new"]
)


@st.composite
def _stores(draw: st.DrawFn) -> BlockStored:
    hashes = draw(_hashes)
    per_hash = len(hashes)
    return BlockStored(
        block_hashes=hashes,
        parent_block_hash=draw(st.none() | st.integers(0, 12)),
        token_ids=draw(_tokens),
        block_size=draw(st.integers(0, 4)),
        medium=draw(_media),
        group_idx=draw(_groups),
        kv_cache_spec_kind=draw(_kinds),
        kv_cache_spec_sliding_window=draw(st.none() | st.integers(-1, 9)),
        lora_id=draw(st.none() | st.integers(-1, 2)),
        cache_salt=draw(st.sampled_from([None, "", "t"])),
        extra_keys=draw(st.none() | st.just((("t",),) * per_hash) | st.just((None,) * per_hash)),
        sequence_hashes=draw(
            st.none() | st.lists(st.none() | st.integers(0, 9), min_size=per_hash, max_size=per_hash).map(tuple)
        ),
        lookahead_token_ids=draw(st.none() | st.just(((1,),) * per_hash) | st.just(((1, 2, 3, 4, 5),) * per_hash)),
    )


_removals = st.builds(BlockRemoved, block_hashes=_hashes, medium=_media, group_idx=_groups)
_events = st.lists(_stores() | _removals | st.just(AllBlocksCleared()), max_size=6)
_LIMITS = IngestLimits(idle_hashes_max=3, orphan_blocks_max=4, unresolved_hashes_max=3)


@settings(max_examples=400, deadline=None)
@given(st.lists(_events, max_size=6), _tokens)
def test_no_events_confuse_ingest(batches: Sequence[Sequence[Event]], asked: tuple[int, ...]) -> None:
    """It answers after every batch, within the prompt, and closing leaves nothing behind."""
    rank = Rank(limits=_LIMITS, block_size=None)
    prompt = Prompt(asked)

    for batch in batches:
        receipt = rank.send(*batch)
        usable = rank.ingest.usable_tokens(prompt).get(RANK, 0)

        assert receipt.outcome == "applied"
        assert 0 <= usable < max(1, len(asked))
        rank.ingest.tier_blocks(prompt)
        status = rank.status
        assert status.orphans <= 4
        assert status.unresolved <= 3
        assert all(count > 0 for copies in rank.ingest.copies(SOURCE).values() for count in copies.values())

    rank.ingest.close(SOURCE)
    assert len(rank.index) == 0


@settings(max_examples=200, deadline=None)
@given(_events)
def test_a_restart_leaves_nothing_of_the_old_life(batch: Sequence[Event]) -> None:
    """A clear in the new life finds an empty rank already."""
    rank = Rank(limits=_LIMITS, block_size=None)
    rank.send(*batch)

    rank.ingest.receive(SOURCE, 0, payload(AllBlocksCleared(), stamp=99.0), now=0.0)

    assert len(rank.index) == 0
    assert rank.ingest.copies(SOURCE) == {}
