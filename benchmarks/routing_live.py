"""Does the simulation say what real processes do? The same requests, simulated and sent.

Chats are played under several policies twice: by `kvrouter.replay`, and through a router process in front of simulated
engines as processes, with real events over ZeroMQ, in real time. Compared are the share of hits, which should agree
within three points, the times to first token, and which policy is better than which.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np

from benchmarks.report import Report, argument_parser
from kvrouter.demo.client import Answer, StreamingClient
from kvrouter.demo.fleet import BLOCK_SIZE, MODEL, running_fleet
from kvrouter.replay.engine.options import EngineOptions
from kvrouter.replay.fleet_simulation import FleetOptions, simulate
from kvrouter.replay.rates import EngineRates
from kvrouter.replay.synthetic import MultiTurn
from kvrouter.replay.trace import Trace, Turn

ENGINES: Final = 4
BLOCKS: Final = 3000
POLICIES: Final = ("kv", "least-loaded", "round-robin", "sticky")
QUICK_POLICIES: Final = ("kv", "least-loaded")
# People who think less are sooner done.
THINK_SECONDS: Final = 2.5
QUICK_THINK_SECONDS: Final = 0.5
# Token ids that every simulated engine knows; below them are bytes.
_TOKENS: Final = range(1000, 60_000)
_TIMEOUT_SECONDS: Final = 300.0
# Times nearer to each other than this are no ranking.
_APART: Final = 1.15
# Which of two requests comes first decides much under policies that spread: simulated several times, it is a range.
_SEEDS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one policy reached, simulated or for real."""

    hit_share: float
    ttft_mean: float
    ttft_p90: float
    ttft_p99: float


def main() -> int:
    """Measure and print; returns the exit code."""
    parser = argument_parser("routing_live", "Simulated and real runs of the same requests, side by side.")
    parser.add_argument("--policies", metavar="NAME,...", help=f"(default: {','.join(POLICIES)})")
    parser.add_argument("--requests", type=int, metavar="N", help="requests under each policy")
    parser.add_argument("--seed", type=int, default=1, help="other chats")
    arguments = parser.parse_args()
    quick = arguments.quick
    policies = arguments.policies.split(",") if arguments.policies else QUICK_POLICIES if quick else POLICIES
    think = QUICK_THINK_SECONDS if quick else THINK_SECONDS
    trace = chats(arguments.requests or (60 if quick else 600), arguments.seed, think_seconds=think)
    report = Report("routing_live", packages=["numpy", "uvloop"])
    report.conditions |= {"requests": len(trace.turns), "engines": ENGINES, "blocks": BLOCKS, "seed": arguments.seed}
    simulated = {policy: [simulated_run(trace, policy, seed) for seed in range(_SEEDS)] for policy in policies}
    real = {}
    for policy in policies:
        sys.stderr.write(f"{policy}: {len(trace.turns)} requests through real processes\n")
        real[policy] = asyncio.run(real_run(trace, policy, arguments.seed))
    add_rows(report, simulated, real)
    report.emit(arguments.json)
    return 0


def chats(requests: int, seed: int, *, think_seconds: float = THINK_SECONDS) -> Trace:
    """Return chats whose answers nobody knows beforehand: what engines write is not what a trace says."""
    made = MultiTurn(
        requests=requests,
        rate=2.2,
        turns=5.0,
        prompt_tokens=800,
        question_tokens=900,
        output_tokens=24,
        think_seconds=think_seconds,
        block_tokens=BLOCK_SIZE,
    ).trace(seed)
    turns = [_without_answer(turn) for turn in made.turns]
    return Trace(name="chats", turns=turns, block_tokens=BLOCK_SIZE)


def simulated_run(trace: Trace, policy: str, seed: int, *, engines: int = ENGINES, blocks: int = BLOCKS) -> Seen:
    """Play the trace in simulated time, at the speed of the engine processes."""
    engine = EngineOptions()
    rates = EngineRates(
        prefill_tokens_per_second=engine.timing.prefill_tokens_per_second,
        attention_tokens=0.0,
        step_seconds=engine.timing.step_seconds,
        decode_seconds=engine.timing.decode_seconds,
        decode_seconds_per_request=engine.timing.decode_seconds_per_request,
        cache_tokens=blocks * BLOCK_SIZE,
        running_max=engine.running_max,
        step_tokens_max=engine.step_tokens_max,
    )
    outcome = simulate(trace, policy, FleetOptions(workers=engines, rates=rates), seed=seed)
    return _seen(outcome.cached_tokens.sum() / outcome.input_tokens.sum(), outcome.ttft.tolist())


async def real_run(trace: Trace, policy: str, seed: int, *, engines: int = ENGINES, blocks: int = BLOCKS) -> Seen:
    """Send the trace through real processes, in real time."""
    async with running_fleet(engines=engines, blocks=blocks, policy=policy, seed=seed) as fleet:
        client = StreamingClient(fleet.host, fleet.port, timeout_seconds=_TIMEOUT_SECONDS)
        began = time.monotonic()
        ended = [asyncio.Event() for _ in trace.turns]

        async def ask(number: int, turn: Turn) -> Answer:
            if turn.follows is not None:
                await ended[turn.follows].wait()
                await asyncio.sleep(turn.arrival)
            else:
                await asyncio.sleep(max(0.0, began + turn.arrival - time.monotonic()))
            answer = await client.complete(
                prompt_tokens(turn, number), model=MODEL, answer_tokens=turn.output_tokens, session=turn.session or ""
            )
            ended[number].set()
            return answer

        answers = await asyncio.gather(*(ask(number, turn) for number, turn in enumerate(trace.turns)))
        client.close()
    hits = sum(answer.cached_tokens for answer in answers) / sum(answer.prompt_tokens for answer in answers)
    return _seen(hits, [answer.first_token_seconds for answer in answers])


def add_rows(report: Report, simulated: dict[str, list[Seen]], real: dict[str, Seen]) -> None:
    """Add what both found for each policy, and how far they agree."""
    points, beyond = [], []
    for policy, runs in simulated.items():
        shares, share = [run.hit_share for run in runs], real[policy].hit_share
        points.append(100 * abs(_mean(runs, "hit_share") - share))
        beyond.append(100 * max(min(shares) - share, share - max(shares), 0.0))
        for name, unit in (("hit_share", "share"), ("ttft_mean", "s"), ("ttft_p90", "s"), ("ttft_p99", "s")):
            ours, theirs = _mean(runs, name), float(getattr(real[policy], name))
            report.row(
                f"{policy}-{name.replace('_', '-')}",
                unit,
                ours,
                theirs,
                "real processes",
                ratio=ours / theirs if theirs else None,
                simulated_from=min(getattr(run, name) for run in runs),
                simulated_to=max(getattr(run, name) for run in runs),
            )
    apart, agreed = _rankings({policy: _mean(runs, "ttft_mean") for policy, runs in simulated.items()}, real)
    report.row("hit-share-largest-difference", "points", max(points), reason="3 is the bound that is meant")
    report.row(
        "hit-share-beyond-chance", "points", max(beyond), reason="outside of what the simulated orders of arrival give"
    )
    report.row("pairs-ranked-alike", "pairs", agreed, reason=f"of {apart} that really differ in mean TTFT")


def _rankings(simulated: dict[str, float], real: dict[str, Seen]) -> tuple[int, int]:
    """Return how many pairs of policies really differ in mean TTFT, and how many of them the simulation has alike."""
    apart = agreed = 0
    for one, other in combinations(real, 2):
        ratio = real[one].ttft_mean / real[other].ttft_mean
        if max(ratio, 1 / ratio) >= _APART:
            apart += 1
            agreed += (simulated[one] < simulated[other]) == (ratio < 1)
    return apart, agreed


def _mean(runs: Sequence[Seen], name: str) -> float:
    return sum(float(getattr(run, name)) for run in runs) / len(runs)


def _seen(hit_share: float, ttft: Sequence[float]) -> Seen:
    p90, p99 = np.percentile(np.asarray(ttft), [90, 99]).tolist()
    return Seen(hit_share=float(hit_share), ttft_mean=float(np.mean(ttft)), ttft_p90=p90, ttft_p99=p99)


def _without_answer(turn: Turn) -> Turn:
    full = turn.input_tokens // BLOCK_SIZE
    return Turn(
        arrival=turn.arrival,
        input_tokens=turn.input_tokens,
        output_tokens=turn.output_tokens,
        keys=turn.keys[:full],
        session=turn.session,
        follows=turn.follows,
    )


def prompt_tokens(turn: Turn, number: int) -> list[int]:
    """Return tokens for a prompt: the same ones for the same key, and some of its own for the partial block."""
    tokens: list[int] = []
    for key in turn.keys.tolist():
        tokens += (_TOKENS.start + (key + place * 7919) % len(_TOKENS) for place in range(BLOCK_SIZE))
    rest = turn.input_tokens - len(tokens)
    return tokens + [_TOKENS.start + (number * 31 + place) % len(_TOKENS) for place in range(rest)]


if __name__ == "__main__":
    sys.exit(main())
