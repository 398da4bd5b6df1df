"""`kvrouter replay`: the command line. What it does is in `answer.py`; here is only how to ask."""

from __future__ import annotations

import argparse
from typing import Any, Final

__all__ = ["add_parser", "run"]

_DESCRIPTION: Final = """\
Plays recorded or made-up traffic against a simulated fleet, once for each routing policy, and compares. The router is
the real one: its routing, event ingest and index decide; only the engines and the time are simulated. An hour of
traffic takes seconds.
"""

_EPILOG: Final = """\
try it:
  kvrouter replay --synthetic multi-turn                       chats, under three policies
  kvrouter replay conversation_trace.jsonl --workers 8         an hour of Mooncake's traffic
  kvrouter replay trace.jsonl --policies kv,least-loaded,sticky --seeds 5
  kvrouter replay trace.jsonl --json > replay.json             for programs

Exit codes: 0 done, 1 a trace is malformed, 2 wrong call, 130 interrupted.
"""


def add_parser(subparsers: Any) -> None:
    """Add the subcommand to the `kvrouter` command."""
    parser = subparsers.add_parser(
        "replay",
        help="play traffic against a simulated fleet and compare routing policies",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("traces", nargs="*", metavar="TRACE", help="files of JSON lines; see docs/replay.md")
    parser.add_argument(
        "--synthetic",
        action="append",
        default=[],
        metavar="KIND[:NAME=VALUE,...]",
        help="made-up traffic: shared-prompt, multi-turn, agents, rag or uniform",
    )
    parser.add_argument(
        "--policies",
        default="kv,least-loaded,sticky",
        metavar="NAME,...",
        help="what to compare (default: %(default)s)",
    )
    parser.add_argument("--workers", type=int, default=8, metavar="N", help="workers (default: %(default)s)")
    parser.add_argument(
        "--cache-tokens",
        type=int,
        default=1_000_000,
        metavar="N",
        help="KV cache of each worker in tokens (default: %(default)s)",
    )
    parser.add_argument(
        "--rate-scale", type=float, default=1.0, metavar="X", help="arrivals so much denser (default: 1)"
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of each policy (default: %(default)s)")
    parser.add_argument("--requests", type=int, metavar="N", help="only the first N requests")
    parser.add_argument(
        "--slo-ttft",
        type=float,
        default=2.0,
        metavar="S",
        help="a request is good if its first token comes in so many seconds (default: %(default)s)",
    )
    parser.add_argument("--processes", type=int, metavar="N", help="processes to use (default: one for each core)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Replay and return the exit code."""
    from kvrouter.replay.answer import answer  # noqa: PLC0415 - `kvrouter --help` must not load it

    return answer(arguments)
