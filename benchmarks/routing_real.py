"""A slice of a recorded trace, replayed by the simulation and through a real router and engines as processes.

The slice is a model of its trace: lengths are divided by `--scale` and arrivals made as dense, so that a slice of ten
minutes takes one, and work, load and what is shared stay in proportion. Both get the same requests at the same times
under each policy. Shares of hits should agree within three points, and policies should come in the same order.
`routing_live` does the same with chats, where each turn waits for the one before.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.report import Report, argument_parser
from benchmarks.routing_live import Seen, add_rows, real_run, simulated_run
from kvrouter.blocks import sequence_hashes
from kvrouter.demo.fleet import BLOCK_SIZE
from kvrouter.replay.bounds import least_prefill_seconds
from kvrouter.replay.loading import load_trace
from kvrouter.replay.rates import EngineRates
from kvrouter.replay.trace import Trace, Turn, TurnKeys, resampled

ENGINES: Final = 4
BLOCKS: Final = 8000
POLICIES: Final = ("kv", "least-loaded", "sticky")
SCALE: Final = 8
LOAD: Final = 0.5
_TRACE: Final = "../shared/traces/conversation_trace.jsonl"
_SEEDS: Final = 8


def main() -> int:
    """Measure and print; returns the exit code."""
    parser = argument_parser("routing_real", "One slice of a trace, simulated and through real processes.")
    parser.add_argument("--policies", default=",".join(POLICIES), metavar="NAME,...", help="(default: %(default)s)")
    parser.add_argument("--trace", type=Path, default=Path(_TRACE), metavar="FILE", help="(default: %(default)s)")
    parser.add_argument("--skip", type=int, default=2000, metavar="N", help="requests before the slice")
    parser.add_argument("--requests", type=int, metavar="N", help="requests of the slice")
    parser.add_argument("--scale", type=int, default=SCALE, metavar="N", help="lengths are divided by it")
    parser.add_argument(
        "--load", type=float, default=LOAD, metavar="SHARE", help="prefill work, of what engines can do"
    )
    parser.add_argument("--seed", type=int, default=1, help="other times inside the trace's bins of arrival")
    arguments = parser.parse_args()
    requests = arguments.requests or (100 if arguments.quick else 600)
    report = Report("routing_real", packages=["numpy", "uvloop"])
    if not arguments.trace.is_file():
        report.row("hit-share-largest-difference", "points", None, reason=f"no trace {arguments.trace}; see --trace")
        report.emit(arguments.json)
        return 0
    whole = resampled(load_trace(arguments.trace), arguments.seed)
    trace = at_load(sliced(whole, arguments.skip, requests, arguments.scale), arguments.load)
    report.conditions |= {
        "trace": arguments.trace.name, "requests": requests, "scale": arguments.scale, "load": arguments.load,
        "engines": ENGINES, "blocks": BLOCKS, "seconds": round(trace.span_seconds), "seed": arguments.seed,
    }  # fmt: skip
    simulated: dict[str, list[Seen]] = {}
    real: dict[str, Seen] = {}
    for policy in arguments.policies.split(","):
        simulated[policy] = [
            simulated_run(trace, policy, seed, engines=ENGINES, blocks=BLOCKS) for seed in range(_SEEDS)
        ]
        sys.stderr.write(f"{policy}: {requests} requests through real processes\n")
        real[policy] = asyncio.run(real_run(trace, policy, arguments.seed, engines=ENGINES, blocks=BLOCKS))
    add_rows(report, simulated, real)
    report.emit(arguments.json)
    return 0


def sliced(trace: Trace, skip: int, requests: int, scale: int) -> Trace:
    """Return some requests of a trace in small: as many engine blocks as there were blocks of the trace, or a part."""
    if trace.block_tokens % (scale * BLOCK_SIZE):
        raise SystemExit(f"blocks of {trace.block_tokens} tokens cannot be divided by {scale} into whole engine blocks")
    turns = trace.turns[skip : skip + requests]
    begin = turns[0].arrival
    parts = trace.block_tokens // scale // BLOCK_SIZE
    small = [
        Turn(
            arrival=(turn.arrival - begin) / scale,
            input_tokens=max(turn.input_tokens // scale, 2),
            output_tokens=max(turn.output_tokens // scale, 1),
            keys=_parted(turn.keys[: turn.input_tokens // trace.block_tokens], parts)[
                : turn.input_tokens // scale // BLOCK_SIZE
            ],
        )
        for turn in turns
    ]
    return Trace(name="slice", turns=small, block_tokens=BLOCK_SIZE)


def at_load(trace: Trace, load: float) -> Trace:
    """Return the slice with arrivals so dense that one cache of the whole fleet would leave so much work."""
    rates = EngineRates(attention_tokens=0.0)
    work = least_prefill_seconds(trace, rates, cache_tokens=ENGINES * BLOCKS * BLOCK_SIZE)
    return trace.at_rate(load * ENGINES * trace.span_seconds / work)


def _parted(keys: TurnKeys, parts: int) -> TurnKeys:
    """Return the keys of blocks that are each cut into so many."""
    words = np.repeat(keys, parts).view(np.uint32).reshape(-1, 2)[:, 0] + np.tile(
        np.arange(parts, dtype=np.uint32), len(keys)
    )
    return sequence_hashes(words.astype(np.uint32), 1)


if __name__ == "__main__":
    sys.exit(main())
