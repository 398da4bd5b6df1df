"""A worker that takes many steps at once does what the engine that takes every step does."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvrouter.events import BlockRemoved, BlockStored
from kvrouter.replay.engine.cache import Namespace, PrefixCache
from kvrouter.replay.engine.scheduler import Job, Scheduler
from kvrouter.replay.engine.timing import Timing
from kvrouter.replay.rates import EngineRates
from kvrouter.replay.trace import keys_of_ids
from kvrouter.replay.worker import Running, Worker

BLOCK = 4


@dataclass
class Asked:
    """One request of a test: its prompt is blocks of equal tokens, and then some of its own."""

    arrival: float
    ids: tuple[int, ...]
    rest: int
    output: int

    @property
    def prompt_tokens(self) -> int:
        return len(self.ids) * BLOCK + self.rest


@dataclass
class Seen:
    """What became of one request."""

    first: float = -1.0
    end: float = -1.0
    cached: int | None = None
    preemptions: int = 0


@dataclass
class Run:
    """What became of all, and what was said of the cache."""

    seen: list[Seen]
    stored: int = 0
    removed: int = 0
    steps: int = 0
    events: list[object] = field(default_factory=list)


def rates(**changes: float) -> EngineRates:
    """Rates that the engine which takes every step has too."""
    return EngineRates(
        **{  # type: ignore[arg-type]
            "prefill_tokens_per_second": 1000.0,
            "attention_tokens": 0.0,
            "cache_tokens": 40 * BLOCK,
            "running_max": 8,
            "step_tokens_max": 32,
            **changes,
        }
    )


def in_steps(asked: list[Asked], speed: EngineRates) -> Run:
    """Play requests on the engine that takes every step."""
    cache = PrefixCache(blocks=speed.cache_tokens // BLOCK, block_size=BLOCK, seed=b"seed")
    timing = Timing(
        prefill_tokens_per_second=speed.prefill_tokens_per_second,
        step_seconds=speed.step_seconds,
        decode_seconds=speed.decode_seconds,
        decode_seconds_per_request=speed.decode_seconds_per_request,
    )
    engine = Scheduler(cache, timing, running_max=speed.running_max, step_tokens_max=speed.step_tokens_max)
    run = Run([Seen() for _ in asked])
    jobs = [_job(number, each, run) for number, each in enumerate(asked)]
    waiting = sorted(range(len(asked)), key=lambda number: asked[number].arrival)
    now = 0.0
    while True:
        while waiting and asked[waiting[0]].arrival <= now:
            engine.submit(jobs[waiting.pop(0)])
        step = engine.begin()
        if step is None:
            if not waiting:
                break
            now = asked[waiting[0]].arrival
            continue
        now += step.seconds
        run.steps += 1
        _now[0] = now
        engine.finish(step)
        _count(run, cache.take_events())
    for seen, job in zip(run.seen, jobs, strict=True):
        seen.cached, seen.preemptions = job.cached_tokens, job.preemptions
    return run


_now = [0.0]


def _job(number: int, asked: Asked, run: Run) -> Job:
    tokens = array("I", [token for each in asked.ids for token in (each, each + 1, each + 2, each + 3)])
    tokens.extend(range(10_000_000 + 1000 * number, 10_000_000 + 1000 * number + asked.rest))
    outputs = iter(range(20_000_000 + 100_000 * number, 30_000_000 + 100_000 * number))
    seen = run.seen[number]

    def emit(token: int | None) -> None:
        if token is None:
            seen.end = _now[0]
        if seen.first < 0:
            seen.first = _now[0]

    return Job(
        tokens, namespace=Namespace(), output_tokens_max=asked.output, next_token=lambda: next(outputs), emit=emit
    )


def in_spans(asked: list[Asked], speed: EngineRates) -> Run:
    """Play the same requests on the worker that takes many steps at once."""
    worker = Worker(speed, block_tokens=BLOCK)
    run = Run([Seen() for _ in asked])
    requests = [
        Running(number, keys_of_ids(each.ids).tolist(), prompt_tokens=each.prompt_tokens, output_tokens=each.output)
        for number, each in enumerate(asked)
    ]
    waiting = sorted(range(len(asked)), key=lambda number: asked[number].arrival)
    now = 0.0
    while True:
        while waiting and asked[waiting[0]].arrival <= now:
            worker.submit(requests[waiting.pop(0)])
        seconds = worker.begin()
        if seconds is None:
            if not waiting:
                break
            now = asked[waiting[0]].arrival
            continue
        before = worker.steps
        while waiting and asked[waiting[0]].arrival < now + seconds - 1e-9:
            arrival = asked[waiting[0]].arrival
            worker.submit(requests[waiting.pop(0)])
            seconds = worker.interrupt(arrival - now) or seconds
        now += seconds
        ended = worker.finish(seconds)
        run.steps += worker.steps - before
        for request in worker.first_tokens:
            run.seen[request.number].first = now
        for request in ended:
            run.seen[request.number].end = now
        _count(run, worker.take_events())
        worker.cache.pool.check()
    for seen, request in zip(run.seen, requests, strict=True):
        seen.cached, seen.preemptions = request.cached_tokens, request.preemptions
    assert worker.cache.pool.used == 0
    return run


def _count(run: Run, events: Sequence[object]) -> None:
    for event in events:
        if isinstance(event, BlockStored):
            run.stored += len(event.block_hashes)
        if isinstance(event, BlockRemoved):
            run.removed += len(event.block_hashes)


def agree(asked: list[Asked], speed: EngineRates) -> Run:
    """Play both ways and compare everything; returns what they agree on."""
    exact, coalesced = in_steps(asked, speed), in_spans(asked, speed)
    assert coalesced.steps == exact.steps
    assert [each.cached for each in coalesced.seen] == [each.cached for each in exact.seen]
    assert [each.preemptions for each in coalesced.seen] == [each.preemptions for each in exact.seen]
    assert [each.first for each in coalesced.seen] == pytest.approx([each.first for each in exact.seen], abs=1e-6)
    assert [each.end for each in coalesced.seen] == pytest.approx([each.end for each in exact.seen], abs=1e-6)
    assert (coalesced.stored, coalesced.removed) == (exact.stored, exact.removed)
    return coalesced


def workload(random: Random, count: int, *, prompt_blocks: int, output: int, gap: float) -> list[Asked]:
    """Requests in random order, many of which share beginnings; times that coincide with no end of a step."""
    asked, at = [], 0.0
    for number in range(count):
        at += random.expovariate(1 / gap)
        family = random.randrange(3)
        shared = random.randrange(prompt_blocks)
        own = random.randrange(prompt_blocks - shared + 1)
        ids = [1_000_000 * (family + 1) + 10 * block for block in range(shared)]
        ids += [5_000_000 + 1000 * number + 10 * block for block in range(own)]
        asked.append(Asked(at, tuple(ids), random.randrange(1, BLOCK), random.randrange(1, output)))
    return asked


def test_requests_with_time_between_them_agree() -> None:
    """A load with little overlap: spans are long."""
    run = agree(workload(Random(1), 60, prompt_blocks=6, output=40, gap=0.5), rates())

    assert sum(each.cached or 0 for each in run.seen) > 0


def test_a_crowd_that_waits_agrees() -> None:
    """More requests than places."""
    agree(workload(Random(2), 80, prompt_blocks=6, output=30, gap=0.02), rates(running_max=4))


def test_a_cache_that_is_too_small_preempts_the_same_requests() -> None:
    """Blocks run out while all decode; the victims, and what is computed again, are the same."""
    run = agree(workload(Random(3), 60, prompt_blocks=5, output=60, gap=0.05), rates(cache_tokens=24 * BLOCK))

    assert sum(each.preemptions for each in run.seen) > 3
    assert run.removed > 0


def test_long_prompts_in_chunks_agree() -> None:
    """A prompt longer than a step is computed in several, beside those that decode."""
    agree(workload(Random(4), 40, prompt_blocks=30, output=20, gap=0.2), rates(cache_tokens=120 * BLOCK))


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 1 << 32),
    count=st.integers(1, 40),
    prompt_blocks=st.integers(1, 10),
    output=st.integers(2, 50),
    gap=st.sampled_from([0.001, 0.03, 0.3]),
    blocks=st.integers(28, 60),
    running_max=st.integers(1, 8),
)
def test_any_requests_agree(
    seed: int, count: int, prompt_blocks: int, output: int, gap: float, blocks: int, running_max: int
) -> None:
    """Whatever is asked, of whatever size the cache is."""
    asked = workload(Random(seed), count, prompt_blocks=prompt_blocks, output=output, gap=gap)

    agree(asked, rates(cache_tokens=blocks * BLOCK, running_max=running_max))


def test_a_request_without_an_answer_ends_with_its_prompt() -> None:
    """An embedding has a first token nowhere; its time is its end."""
    run = in_spans([Asked(0.0, (1, 2), 1, 0)], rates())

    assert run.seen[0].first == run.seen[0].end > 0
    assert run.stored == 2


def test_equal_prompts_at_once_are_computed_twice() -> None:
    """The second one of a step finds what the first one has just cached, as in vLLM."""
    run = agree([Asked(0.0, (1, 2, 3), 1, 3), Asked(0.0, (1, 2, 3), 1, 3)], rates())

    assert [each.cached for each in run.seen] == [0, 12]


def test_attention_makes_later_tokens_dearer() -> None:
    """At `attention_tokens` into a prompt a token costs twice as much as at its beginning."""
    speed = rates(attention_tokens=100.0)

    assert speed.prefill_seconds(1, 100) == pytest.approx(2 * speed.prefill_seconds(1), rel=0.01)
    assert speed.prefill_seconds(60) + speed.prefill_seconds(40, 60) == pytest.approx(speed.prefill_seconds(100))


@settings(deadline=None)
@given(
    steps=st.integers(1, 5000),
    decoding=st.integers(1, 64),
    context=st.integers(0, 1_000_000),
    per_token=st.sampled_from([0.0, 1e-9, 5e-8, 1e-6]),
    inside=st.floats(0.01, 0.99),
)
def test_the_step_that_runs_at_a_time_is_found(
    steps: int, decoding: int, context: int, per_token: float, inside: float
) -> None:
    """`steps_within` is the inverse of `steps`, also where steps grow."""
    speed = rates(decode_seconds_per_token=per_token)
    before = speed.steps(steps - 1, decoding, context) if steps > 1 else 0.0
    after = speed.steps(steps, decoding, context)

    assert speed.steps_within(before + inside * (after - before), decoding, context) == steps


def test_steps_together_last_as_long_as_one_after_the_other() -> None:
    """The closed form is the sum."""
    speed = rates(decode_seconds_per_token=1e-6)
    one_by_one = sum(speed.step(0.0, 3, 500 + 3 * number) for number in range(200))

    assert speed.steps(200, 3, 500) == pytest.approx(one_by_one)


def test_a_restart_loses_everything() -> None:
    """Requests and cache are gone, and the worker begins again."""
    worker = Worker(rates(), block_tokens=BLOCK)
    for number in range(3):
        worker.submit(Running(number, [], prompt_tokens=20, output_tokens=5))
    worker.begin()

    lost = worker.lose_all()

    assert Counter(request.number for request in lost) == Counter(range(3))
    assert worker.begin() is None
    assert (worker.running, worker.cache.pool.used) == (0, 0)
