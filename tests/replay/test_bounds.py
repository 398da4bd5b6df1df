"""What caches could save at best, and the cache of a worker, against models that are easy to believe."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvrouter.events import AllBlocksCleared, BlockRemoved, BlockStored
from kvrouter.replay.bounds import bounds_of, in_nominal_order, least_prefill_seconds
from kvrouter.replay.rates import EngineRates
from kvrouter.replay.trace import Trace, Turn, keys_of_ids
from kvrouter.replay.worker_cache import WorkerCache

SIZE = 10


def trace_of(*prompts: tuple[int, ...], follows: dict[int, int] | None = None) -> Trace:
    """One turn a second; a prompt is its blocks and one token more."""
    turns = [
        Turn(
            arrival=float(number),
            input_tokens=len(ids) * SIZE + 1,
            output_tokens=1,
            keys=keys_of_ids(ids),
            follows=(follows or {}).get(number),
        )
        for number, ids in enumerate(prompts)
    ]
    return Trace(name="t", turns=turns, block_tokens=SIZE)


def test_only_a_prefix_counts() -> None:
    """What comes after another block is another block."""
    trace = trace_of((1, 2, 3), (1, 2, 4), (9, 2, 3))

    assert bounds_of(trace, cache_tokens=1000).ideal_share == 2 * SIZE / trace.input_tokens


def test_a_small_cache_forgets_the_ends_first() -> None:
    """Four blocks hold the beginning of both prompts, when neither fits whole."""
    trace = trace_of((1, 2, 3), (5, 6, 7), (1, 2, 3))
    bounds = bounds_of(trace, cache_tokens=4 * SIZE)

    assert bounds.pooled_share == 1 * SIZE / trace.input_tokens
    assert bounds.ideal_share == 3 * SIZE / trace.input_tokens


def test_turns_come_when_answers_would_be_there() -> None:
    """A turn that thinks for a second comes between others."""
    trace = trace_of((1,), (2,), (3,), follows={1: 0})
    turns = [*trace.turns]
    turns[1] = turns[1].moved(3.0)

    order = in_nominal_order(Trace(name="t", turns=turns, block_tokens=SIZE))

    assert [turn.keys.tolist() for turn in order] == [keys_of_ids([each]).tolist() for each in (1, 3, 2)]


def test_what_is_left_to_compute_is_what_is_not_hit() -> None:
    """Prefill work without attention is tokens over speed."""
    trace = trace_of((1, 2, 3), (1, 2, 3))
    rates = EngineRates(prefill_tokens_per_second=100.0, attention_tokens=0.0)

    assert least_prefill_seconds(trace, rates, cache_tokens=1000) == (31 + 1) / 100


@given(
    prompts=st.lists(st.lists(st.integers(0, 5), max_size=5).map(tuple), min_size=1, max_size=30),
    blocks=st.integers(1, 12),
)
def test_no_cache_beats_a_larger_one(prompts: list[tuple[int, ...]], blocks: int) -> None:
    """Pooled is at most ideal, and grows with the cache."""
    trace = trace_of(*prompts)
    small, large = (bounds_of(trace, cache_tokens=count * SIZE) for count in (blocks, blocks + 1))

    assert small.pooled_share <= large.pooled_share <= large.ideal_share == small.ideal_share


@given(
    steps=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6), st.integers(1, 9)), max_size=60),
    blocks=st.integers(6, 14),
)
def test_events_tell_exactly_what_is_cached(steps: list[tuple[int, int, int]], blocks: int) -> None:
    """Who only listens knows each copy of each key; what is used is never evicted."""
    cache = WorkerCache(blocks=blocks, block_tokens=SIZE)
    heard: dict[int, int] = {}
    running: list[list[int]] = []
    for family, shared, length in steps:
        keys = [100 * family + number for number in range(length)]
        tokens = length * SIZE + 1
        hit = cache.hit(keys, min(tokens, shared * SIZE + 1))
        while not cache.fits(hit, tokens) and running:
            cache.pool.release(running.pop(0))
        if not cache.fits(hit, tokens):
            continue
        cache.pool.share(hit)
        taken = cache.take(cache.blocks_for(tokens) - len(hit))
        cache.label(taken[: length - len(hit)], keys[len(hit) :])
        running.append([*hit, *taken])
        for event in cache.take_events():
            if isinstance(event, BlockStored):
                for key in event.block_hashes:
                    heard[key] = heard.get(key, 0) + 1
            elif isinstance(event, BlockRemoved):
                for key in event.block_hashes:
                    heard[key] -= 1
        assert {key: count for key, count in heard.items() if count} == dict(cache.pool.contents())
        cache.pool.check()


def test_the_last_token_is_never_a_hit() -> None:
    """A prompt that is cached to its end is computed again from its last block on."""
    cache = WorkerCache(blocks=4, block_tokens=SIZE)
    cache.label(cache.take(2), [1, 2])

    assert len(cache.hit([1, 2], 2 * SIZE)) == 1
    assert len(cache.hit([1, 2], 2 * SIZE + 1)) == 2


def test_a_reset_is_told_and_a_restart_is_not() -> None:
    """A dead engine says nothing."""
    cache = WorkerCache(blocks=4, block_tokens=SIZE)
    cache.pool.release(cache.take(1))

    cache.reset()
    assert cache.take_events() == [AllBlocksCleared()]
    cache.label(cache.take(1), [1])
    cache.clear()
    assert (cache.take_events(), cache.pool.used, cache.pool.contents()) == ([], 0, {})
