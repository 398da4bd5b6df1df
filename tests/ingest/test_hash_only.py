"""The hash-only form: nothing of a prompt leaves, and the router knows as much as before."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.accuracy import replay_recording
from kvrouter.events import BlockStored, Event, Source, decode_batch, encode_batch
from kvrouter.ingest import Ingest, Receipt
from kvrouter.ingest.hash_only import HashOnly
from tests.ingest.engines import CLEARED, Rank, payload, removed, stored, tokens

RECORDINGS = sorted((Path(__file__).resolve().parent.parent / "golden" / "recordings").glob("*.jsonl.gz"))


def send(rank: Rank, form: HashOnly, *events: Event) -> None:
    """The next batch goes out rewritten and arrives."""
    rank.send(*form.rewrite(events))


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.name.removesuffix(".jsonl.gz"))
def test_recorded_engines_are_known_as_exactly_without_tokens(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every lookup and every copy, hybrid groups and offloading included."""
    forms: dict[tuple[Ingest, Source], HashOnly] = defaultdict(HashOnly)
    receive = Ingest.receive

    def rewritten(ingest: Ingest, source: Source, sequence: int, frame: bytes, **arguments: Any) -> Receipt:
        batch = decode_batch(frame)
        events = forms[ingest, source].rewrite(batch.events)
        return receive(ingest, source, sequence, encode_batch(replace(batch, events=events)), **arguments)

    monkeypatch.setattr(Ingest, "receive", rewritten)
    result = replay_recording(path)

    assert forms
    assert result.misses == []
    assert result.lookups == result.exact > 80
    assert result.dumps == result.dumps_exact


_prompts = st.lists(st.sampled_from([(1, 2, 3, 4), (5, 6, 7, 8), (1, 1, 1, 1)]), min_size=1, max_size=4)
_steps = st.lists(
    st.tuples(
        st.sampled_from(["store", "store", "remove", "clear"]), _prompts, st.integers(0, 3), st.sampled_from("ab")
    ),
    max_size=25,
)


def _engine_hash(path: Sequence[tuple[int, ...]], salt: str) -> int:
    return int.from_bytes(blake2b(repr((path, salt)).encode(), digest_size=8).digest(), "big")


def _step(kind: str, path: Sequence[tuple[int, ...]], start: int, salt: str) -> Event:
    """What an engine would say: stores begin anywhere in a prompt, and only a prompt's beginning states its salt."""
    start = min(start, len(path) - 1)
    if kind == "clear":
        return CLEARED
    if kind == "remove":
        return removed(_engine_hash(path, salt))
    return stored(
        [_engine_hash(path[: end + 1], salt) for end in range(start, len(path))],
        [token for block in path[start:] for token in block],
        parent=_engine_hash(path[:start], salt) if start else None,
        cache_salt=None if start else salt,
    )


@settings(max_examples=300, deadline=None)
@given(_steps, st.integers(0, 5))
def test_never_more_is_claimed_than_with_tokens_and_as_much_where_parents_were_seen(
    steps: Sequence[tuple[str, list[tuple[int, ...]], int, str]], missed: int
) -> None:
    """Also where the publishing side came late and knows fewer parents than the engine has blocks."""
    events = [_step(*step) for step in steps]
    with_tokens, hash_only, late = Rank(), Rank(), Rank()
    form, late_form, orphaned = HashOnly(), HashOnly(), False

    for number, event in enumerate(events):
        with_tokens.send(event)
        orphaned = orphaned or with_tokens.status.orphans > 0
        send(hash_only, form, event)
        send(late, late_form, event) if number >= missed else late.send(event)
        for rank in (hash_only, late):
            for path, salt in {(tuple(step[1]), step[3]) for step in steps}:
                prompt = [token for block in path for token in block]
                truth = with_tokens.usable(prompt, salt=salt.encode())
                claimed = rank.usable(prompt, salt=salt.encode())
                assert claimed <= truth
                assert rank is late or orphaned or claimed == truth


def test_nothing_of_a_prompt_leaves() -> None:
    """No tokens, salts, sessions, adapters or items, in no field."""
    event = stored(
        [11],
        tokens(1),
        lora_id=3,
        lora_name="adapter",
        cache_salt="secret",
        session_id="session",
        ownership="owner",
        extra_keys=(("adapter", "image", "secret"),),
        mm_keys=(("image",),),
    )

    (rewritten,) = HashOnly().rewrite([event])

    assert isinstance(rewritten, BlockStored)
    assert rewritten.sequence_hashes is not None
    assert rewritten == BlockStored(block_hashes=(11,), block_size=4, sequence_hashes=rewritten.sequence_hashes)


def test_salted_and_adapted_blocks_stay_apart() -> None:
    """The hash covers what is not sent, for children too, which name neither."""
    rank, form = Rank(), HashOnly()

    send(rank, form, stored([11], tokens(1), cache_salt="a", lora_name="x"))
    send(rank, form, stored([12], tokens(1, start=1), parent=11))

    assert rank.usable(tokens(2), salt=b"a", lora="x") == 8
    assert rank.usable(tokens(2)) == 0


def test_removals_and_clears_find_their_blocks() -> None:
    """By the engine's hashes, as ever."""
    rank, form = Rank(), HashOnly()
    send(rank, form, stored([11, 12], tokens(2)))

    send(rank, form, removed(12, ownership="owner"))
    after_removal = rank.usable(tokens(2))
    send(rank, form, CLEARED)

    assert after_removal == 4
    assert rank.usable(tokens(1)) == 0


def test_an_offloaded_copy_is_named_too() -> None:
    """Its event has hashes alone; a consumer that came late then needs no event of the GPU."""
    form, late = HashOnly(), Rank()
    form.rewrite([stored([11], tokens(1))])

    send(late, form, stored([11], (), size=0, medium="CPU"))

    assert late.status.unresolved == 0
    assert late.index.blocks(5, "cpu") == 1


def _untold() -> list[tuple[str, Sequence[Event]]]:
    return [
        ("unknown parent", [stored([12], tokens(1), parent=99)]),
        ("another size of blocks", [stored([11], tokens(1)), stored([12], tokens(2, start=1), parent=11, size=8)]),
        ("tokens after the block", [stored([12], tokens(1), lookahead_token_ids=((1,),))]),
        ("more tokens than blocks", [stored([12], tokens(2))]),
        ("a copy without salt", [stored([11], tokens(1), extra_keys=(("s",),)), stored([12], tokens(1), medium="CPU")]),
        ("a foreign medium", [stored([12], tokens(1), medium="REMOTE")]),
    ]


@pytest.mark.parametrize(("why", "events"), _untold(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_block_whose_hash_cannot_be_told_is_counted_and_never_claimed(why: str, events: Sequence[Event]) -> None:
    """Too few claims heal; wrong ones do not."""
    rank, form = Rank(), HashOnly()

    rewritten = form.rewrite(events)
    rank.send(*rewritten)

    last = rewritten[-1]
    assert isinstance(last, BlockStored)
    assert last.sequence_hashes is None
    assert form.untold_blocks == 1
    assert rank.index.blocks(5) == len(events) - 1


def test_what_the_publisher_remembers_is_bounded() -> None:
    """The least recently announced blocks are forgotten first; parents count as announced."""
    form = HashOnly(hashes_max=2)
    form.rewrite([stored([1], tokens(1)), stored([2], tokens(1, start=7))])

    form.rewrite([stored([3], tokens(1, start=1), parent=1)])
    (of_remembered,) = form.rewrite([stored([4], tokens(1, start=1), parent=1)])
    (of_forgotten,) = form.rewrite([stored([5], tokens(1, start=8), parent=2)])

    assert len(form) == 2
    assert isinstance(of_remembered, BlockStored)
    assert isinstance(of_forgotten, BlockStored)
    assert (of_remembered.sequence_hashes is None, of_forgotten.sequence_hashes) == (False, None)
    with pytest.raises(ValueError, match="at least 1"):
        HashOnly(hashes_max=0)


def test_a_new_life_may_have_other_blocks() -> None:
    """Nothing of the old one is remembered."""
    form = HashOnly()
    form.rewrite([stored([1], tokens(1))])

    form.restart()
    (event,) = form.rewrite([stored([1], tokens(2, start=3), size=8)])

    assert len(form) == 1
    assert isinstance(event, BlockStored)
    assert event.sequence_hashes is not None


def test_an_adapter_that_has_only_a_number_gets_its_name() -> None:
    """Old engines send no names."""
    rank, form = Rank(), HashOnly()
    form.name_adapter(3, "x")

    send(rank, form, stored([11], tokens(1), lora_id=3))

    assert rank.usable(tokens(1), lora="x") == 4


def test_hashes_of_another_size_of_blocks_are_refused() -> None:
    """They would name other prefixes than the index means."""
    rank = Rank()
    rank.send(stored([11], tokens(1)))

    rank.send(BlockStored(block_hashes=(12,), block_size=8, sequence_hashes=(77,)))

    assert rank.status.ignored == {"odd_block_size": 1}
    assert rank.index.blocks(5) == 1


def test_stated_hashes_explain_what_waited() -> None:
    """Stores with tokens whose parent was unknown, and copies whose meaning was."""
    rank, form = Rank(), HashOnly()
    (stated,) = form.rewrite([stored([11], tokens(1))])
    rank.send(stored([12], tokens(1, start=1), parent=11), stored([11], (), size=0))
    waiting = (rank.status.orphans, rank.status.unresolved)

    rank.send(stated)

    assert waiting == (1, 2)
    assert (rank.status.orphans, rank.status.unresolved) == (0, 0)
    assert rank.usable(tokens(2)) == 8


def test_sequence_hashes_are_checked_on_the_wire() -> None:
    """One for each block, 64 bits or nothing."""
    good = BlockStored(block_hashes=(1, 2), block_size=4, sequence_hashes=(2**64 - 1, None))
    wrong: list[Any] = [(1,), (1, -1), (1, 2**64 - 1, 3), (1, "x"), (True, 1), 7]

    (again,) = decode_batch(payload(good)).events
    skipped = [decode_batch(payload(replace(good, sequence_hashes=value))).skipped for value in wrong]

    assert again == good
    assert skipped == [{"bad_sequence_hashes": 1}] * len(wrong)
