"""A slice of a trace keeps its proportions, and real processes hit what the simulation says that they will."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.routing_live import real_run, simulated_run
from benchmarks.routing_real import at_load, sliced
from kvrouter.demo.fleet import BLOCK_SIZE
from kvrouter.replay.loading import load_trace
from kvrouter.replay.trace import Trace, Turn

# A machine that stalls teaches a router that a worker is slow; then it does what the simulation cannot know.
ATTEMPTS = 3


def recorded(folder: Path, requests: int = 24) -> Trace:
    """Three conversations that grow by turns, as Mooncake records them."""
    lines = []
    for number in range(requests):
        session, turn = number % 3, number // 3
        ids = [session, *(100 * (session + 1) + each for each in range(2 + turn))]
        fields = {"timestamp": 700 * number, "input_length": 512 * len(ids) + 100, "output_length": 16, "hash_ids": ids}
        lines.append(json.dumps({**fields, "hash_ids": [*ids, 9000 + number]}))
    path = folder / "recorded.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return load_trace(path)


def one_by_one(trace: Trace) -> Trace:
    """The same requests, each when the one before has its answer: no machine is too slow for that."""
    turns = [
        Turn(
            arrival=0.05 if number else 0.0,
            input_tokens=turn.input_tokens,
            output_tokens=turn.output_tokens,
            keys=turn.keys,
            follows=number - 1 if number else None,
        )
        for number, turn in enumerate(trace.turns)
    ]
    return Trace(name="one by one", turns=turns, block_tokens=trace.block_tokens)


def test_a_slice_is_a_model_of_its_trace(tmp_path: Path) -> None:
    """An eighth of each length, blocks of the engines' size, and what began alike begins alike."""
    trace = recorded(tmp_path)

    small = sliced(trace, 6, 12, 8)

    for turn, whole in zip(small.turns, trace.turns[6:18], strict=True):
        assert turn.input_tokens == whole.input_tokens // 8
        assert len(turn.keys) == turn.input_tokens // BLOCK_SIZE - (whole.input_tokens % 512) // 8 // BLOCK_SIZE
    first, later, other = (small.turns[number].keys.tolist() for number in (0, 3, 1))
    assert later[: len(first)] == first
    assert not set(first) & set(other)
    assert small.turns[0].arrival == 0.0
    assert all(one.arrival <= other.arrival for one, other in pairwise(small.turns))


def test_arrivals_are_as_dense_as_the_load_asks(tmp_path: Path) -> None:
    """Twice the load is half the time."""
    small = sliced(recorded(tmp_path), 0, 24, 8)

    light, heavy = at_load(small, 0.25), at_load(small, 0.5)

    assert light.span_seconds == pytest.approx(2 * heavy.span_seconds)


@pytest.mark.parametrize("policy", ["kv", "least-loaded", "sticky"])
def test_real_processes_hit_what_the_simulation_says(tmp_path: Path, policy: str) -> None:
    """Within three points of the prompts' tokens."""
    trace = one_by_one(sliced(recorded(tmp_path), 0, 24, 8))
    simulated = simulated_run(trace, policy, 0, engines=2, blocks=4000)

    points: list[float] = []
    for attempt in range(ATTEMPTS):
        real = asyncio.run(real_run(trace, policy, attempt, engines=2, blocks=4000))
        points.append(100 * abs(real.hit_share - simulated.hit_share))
        if points[-1] <= 3:
            break

    assert min(points) <= 3, (points, simulated.hit_share)
