"""Continuous batching over the prefix cache: what is found, what it costs, what the events claim."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvrouter.events import AllBlocksCleared, BlockRemoved, BlockStored
from kvrouter.replay.engine.cache import Namespace
from kvrouter.replay.engine.timing import Timing
from tests.replay.driving import Recorded, claimed, finish, scheduler, step


def test_the_second_turn_finds_the_first_one_cached() -> None:
    """A conversation pays for each token once, generated ones included."""
    engine = scheduler(block_size=4)
    first = Recorded(range(10), output=3)
    finish(engine, [first])

    second = Recorded([*range(10), 1000, 1001, 1002, 50, 51], output=1)
    finish(engine, [second])

    assert first.cached_tokens == 0
    assert second.cached_tokens == 12  # 10 + 2 computed outputs; the third one was never an input.


def test_a_prompt_that_is_cached_to_its_end_computes_its_last_block_again() -> None:
    """At least one token must be computed, and blocks are whole."""
    engine = scheduler(block_size=4)
    finish(engine, [Recorded(range(8))])

    again, longer = Recorded(range(8)), Recorded(range(9))
    finish(engine, [again])
    finish(engine, [longer])

    assert (again.cached_tokens, longer.cached_tokens) == (4, 8)


def test_recomputing_a_cached_block_makes_a_second_copy() -> None:
    """Copies are not merged, and the events count them."""
    engine = scheduler(block_size=4)
    finish(engine, [Recorded(range(8))])

    finish(engine, [Recorded(range(8))])

    assert sorted(engine.cache.pool.contents().values()) == [1, 2]
    assert claimed(engine.cache.take_events()) == engine.cache.pool.contents()


def test_salts_and_adapters_keep_equal_tokens_apart() -> None:
    """Only the same namespace shares blocks."""
    engine = scheduler(block_size=4)
    namespaces = [Namespace(), Namespace(salt="a"), Namespace(salt="b"), Namespace(lora_id=1, lora_name="a")]
    for namespace in namespaces:
        finish(engine, [Recorded(range(9), namespace=namespace)])

    again = [Recorded(range(9), namespace=namespace) for namespace in namespaces]
    finish(engine, again)

    assert len(engine.cache.pool.contents()) == 8
    assert [job.cached_tokens for job in again] == [8, 8, 8, 8]


def test_events_carry_what_a_listener_needs() -> None:
    """Tokens, parent, block size, adapter and salt, in vLLM's fields."""
    engine = scheduler(block_size=2, step_tokens_max=4)
    namespace = Namespace(lora_id=3, lora_name="sql", salt="tenant")

    finish(engine, [Recorded(range(7), namespace=namespace)])
    first, second = engine.cache.take_events()

    assert isinstance(first, BlockStored)
    assert isinstance(second, BlockStored)
    assert first.parent_block_hash is None
    assert (first.token_ids, first.block_size) == ((0, 1, 2, 3), 2)
    assert (first.lora_id, first.lora_name, first.medium) == (3, "sql", "GPU")
    assert first.extra_keys == (("sql", "tenant"), ("sql",))
    assert second.parent_block_hash == first.block_hashes[-1]
    assert (second.token_ids, second.extra_keys) == ((4, 5), (("sql",),))


def test_two_engines_name_the_same_blocks_differently() -> None:
    """Nobody can guess an engine's hashes; one must listen."""
    one, other = scheduler(seed=b"one"), scheduler(seed=b"other")
    for engine in (one, other):
        finish(engine, [Recorded(range(32))])

    assert not one.cache.pool.contents().keys() & other.cache.pool.contents().keys()


def test_long_prompts_are_cut_into_chunks_that_share_steps() -> None:
    """One long prompt does not hold up everybody: each step has a budget."""
    engine = scheduler(blocks=64, block_size=4, step_tokens_max=16)
    long, short = Recorded(range(40)), Recorded(range(500, 505))
    engine.submit(long)
    engine.submit(short)

    chunks = []
    while (planned := engine.begin()) is not None:
        chunks.append((planned.prefill_tokens, planned.decoding))
        engine.finish(planned)

    assert chunks == [(16, 0), (16, 0), (13, 0)]
    assert long.done
    assert short.done


def test_prefill_costs_by_uncached_token_and_decode_by_batch() -> None:
    """The model of speed, in numbers."""
    timing = Timing(
        prefill_tokens_per_second=1000, step_seconds=0.5, decode_seconds=0.2, decode_seconds_per_request=0.01
    )

    assert timing.seconds(prefill_tokens=2000, decoding=0) == pytest.approx(2.5)
    assert timing.seconds(prefill_tokens=0, decoding=1) == pytest.approx(0.71)
    assert timing.seconds(prefill_tokens=0, decoding=11) == pytest.approx(0.81)
    assert timing.seconds(prefill_tokens=2000, decoding=10) == pytest.approx(2.6)


def test_no_more_requests_run_than_allowed() -> None:
    """The others wait in order of arrival."""
    engine = scheduler(running_max=2)
    jobs = [Recorded([number] * 5, output=3) for number in range(4)]
    for job in jobs:
        engine.submit(job)

    step(engine)

    assert [job.cached_tokens for job in jobs] == [0, 0, None, None]
    finish(engine)
    assert all(job.done for job in jobs)


def test_a_request_that_finds_no_room_takes_it_from_the_youngest() -> None:
    """Preempted requests are computed again and still give every token once."""
    engine = scheduler(blocks=6, block_size=4)
    jobs = [Recorded([number] * 7, output=12) for number in (1, 2)]

    finish(engine, jobs)

    assert engine.preemptions > 0
    assert jobs[0].preemptions == 0
    assert [job.emitted for job in jobs] == [[*range(1000, 1012), None]] * 2


def test_an_aborted_request_gives_its_blocks_back() -> None:
    """Whether it waits, runs, or is in the middle of a step."""
    engine = scheduler(running_max=1)
    running, waiting = Recorded(range(9), output=50), Recorded(range(100, 109), output=50)
    engine.submit(running)
    engine.submit(waiting)
    planned = engine.begin()
    assert planned is not None

    engine.abort(waiting)
    engine.abort(running)
    engine.finish(planned)

    assert (engine.running, list(engine.waiting), engine.cache.pool.used) == ([], [], 0)
    assert (running.emitted, waiting.emitted) == ([], [])


def test_a_job_without_output_ends_after_its_prefill() -> None:
    """An embedding needs no token."""
    engine = scheduler()
    job = Recorded(range(9), output=0)

    finish(engine, [job])

    assert job.emitted == [None]


def test_clearing_says_so_and_waits_for_running_requests() -> None:
    """As vLLM's reset_prefix_cache does."""
    engine = scheduler()
    job = Recorded(range(9), output=2)
    engine.submit(job)
    step(engine)

    refused = engine.cache.clear()
    finish(engine)
    engine.cache.take_events()

    assert (refused, engine.cache.clear()) == (False, True)
    assert engine.cache.take_events() == [AllBlocksCleared()]


@st.composite
def _workloads(draw: Any) -> list[tuple[list[int], int, str | None]]:
    """Draw prompts that share prefixes: each extends a piece of an earlier one, in one of two namespaces."""
    prompts: list[tuple[list[int], int, str | None]] = []
    for _ in range(draw(st.integers(1, 12))):
        kept: list[int] = []
        if prompts and draw(st.booleans()):
            earlier = draw(st.sampled_from(prompts))[0]
            kept = earlier[: draw(st.integers(0, len(earlier)))]
        new = draw(st.lists(st.integers(0, 3), min_size=1, max_size=12))
        prompts.append((kept + new, draw(st.integers(0, 6)), draw(st.sampled_from([None, "salt"]))))
    return [prompt for prompt in prompts if len(prompt[0]) + prompt[1] <= 40]


@given(
    workload=_workloads(),
    blocks=st.integers(20, 40),
    running_max=st.integers(1, 4),
    step_tokens_max=st.integers(1, 64),
    data=st.data(),
)
@settings(max_examples=120, deadline=None)
def test_events_always_claim_exactly_what_the_pool_holds(
    workload: list[tuple[list[int], int, str | None]],
    blocks: int,
    running_max: int,
    step_tokens_max: int,
    data: st.DataObject,
) -> None:
    """Whatever comes, is evicted, preempted or aborted: after each step the listener and the pool agree."""
    engine = scheduler(blocks=blocks, block_size=2, running_max=running_max, step_tokens_max=step_tokens_max)
    jobs = [Recorded(tokens, output=output, namespace=Namespace(salt=salt)) for tokens, output, salt in workload]
    held: Counter[int] = Counter()
    for job in jobs:
        engine.submit(job)

    working = True
    while working:
        if data.draw(st.integers(0, 9)) == 0 and jobs:
            engine.abort(data.draw(st.sampled_from(jobs)))
        working = step(engine)
        events = engine.cache.take_events()
        held = claimed(events, held)
        engine.cache.pool.check()
        assert held == engine.cache.pool.contents()
        assert all(len(event.block_hashes) == 1 for event in events if isinstance(event, BlockRemoved))

    assert engine.cache.pool.used == 0
    assert all(job.done or job.aborted for job in jobs)
