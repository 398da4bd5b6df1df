"""`kvrouter replay`: the command line. What is done about it is in `answer.py`; here is only how to ask."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, Final

__all__ = ["add_parser", "run"]

_DESCRIPTION: Final = """\
Plays recorded or made-up traffic against a simulated fleet, once for each routing policy, and compares. The router is
the real one: its routing, its event ingest and its index decide; only the engines and the time are simulated, so that
an hour of traffic takes seconds. Use it to choose a policy, to size a fleet, and to see what lost events would cost.
"""

_EPILOG: Final = """\
try it:
  kvrouter replay --synthetic multi-turn                                chats, three policies, a table
  kvrouter replay --synthetic agents:rate=1,turns=20 --html agents.html a report to mail to a colleague
  kvrouter replay trace.jsonl --policies kv,least-loaded --workers 8    your own traffic; three file forms are known
  kvrouter replay trace.jsonl --plan --slo-ttft 2                       how many workers does it need?
  kvrouter replay trace.jsonl --capacity-curve                          and how much more would they bear?
  kvrouter replay trace.jsonl --calibrate http://10.0.0.5:8000          at the speed of your own worker
  kvrouter replay trace.jsonl --event-delay 5 --event-loss 0.01         when the event plane is ill
  kvrouter replay trace.jsonl --json > replay.json                      for programs

reading the table: `hits` is the share of prompt tokens that were cached where they came to, `of bound` that against one
cache as large as all workers' together; TTFT is the time to the first token; `goodput` is the share of requests that
met the goal of --slo-ttft; `promise error` is how far the router was off about cached tokens, and `TTFT error` about
the time. `*` marks the policy of least mean TTFT, `=` those that chance alone may separate from it (95 %).

Exit codes: 0 done, 1 a trace or a worker is not as it should be, 2 wrong call, 130 interrupted.
"""


def add_parser(subparsers: Any) -> None:
    """Add the subcommand to the `kvrouter` command."""
    parser = subparsers.add_parser(
        "replay",
        help="play traffic against a simulated fleet: compare policies, plan capacity",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_traffic(parser.add_argument_group("traffic"))
    _add_fleet(parser.add_argument_group("fleet"))
    _add_rates(parser.add_argument_group("speed of a worker (defaults: an 8 B model on one data-centre GPU)"))
    _add_events(parser.add_argument_group("what may go wrong"))
    _add_questions(parser.add_argument_group("questions"))
    _add_output(parser.add_argument_group("output"))
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Replay and return the exit code."""
    from kvrouter.replay.answer import answer  # noqa: PLC0415 - `kvrouter --help` must not load it

    return answer(arguments)


def _add_traffic(group: Any) -> None:
    group.add_argument(
        "traces",
        nargs="*",
        metavar="TRACE",
        help="files of JSON lines, packed by gzip or not: Mooncake's, sessions, or OpenAI requests; -: standard input",
    )
    group.add_argument(
        "--synthetic",
        action="append",
        default=[],
        metavar="KIND[:NAME=VALUE,...]",
        help="made-up traffic: shared-prompt, multi-turn, agents, rag or uniform; a wrong name lists the parameters",
    )
    group.add_argument(
        "--format", choices=("mooncake", "sessions", "openai"), help="of the files (default: as it looks)"
    )
    group.add_argument("--block-tokens", type=whole(1), metavar="N", help="tokens per block (default: the form's own)")
    group.add_argument("--tokenizer", metavar="PATH", help="tokenizer.json, for logs of requests (default: bytes / 4)")
    group.add_argument(
        "--rate", type=number(above=0), metavar="R", help="requests per second, for logs without timestamps"
    )
    group.add_argument(
        "--rate-scale", type=number(above=0), default=1.0, metavar="X", help="arrivals X times as dense (default: 1)"
    )
    group.add_argument("--requests", type=whole(1), metavar="N", help="only the first N requests")
    group.add_argument("--seconds", type=number(above=0), metavar="S", help="only the first S seconds of arrivals")


def _add_fleet(group: Any) -> None:
    group.add_argument("--workers", type=whole(1, 1024), default=8, metavar="N", help="workers (default: %(default)s)")
    group.add_argument(
        "--routers", type=whole(1, 64), default=1, metavar="N",
        help="replicas of the router, each with its own index and load book (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--no-replica-state", action="store_true", help="they do not tell each other what they have booked"
    )
    group.add_argument(
        "--replica-interval", type=number(least=0.001, most=5), default=0.1, metavar="S",
        help="each tells the others at most so often (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--replica-delay", type=number(least=0, most=60), default=0.01, metavar="S",
        help="and they know so much later (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--policies",
        default="kv,least-loaded,sticky",
        metavar="NAME,...",
        help="what to compare, or all (default: %(default)s)",
    )


def _add_rates(group: Any) -> None:
    group.add_argument("--calibrate", metavar="URL", help="measure a real worker (OpenAI's API) and use what it can do")
    group.add_argument("--api-key", metavar="KEY", help="for --calibrate, if the worker wants one")
    group.add_argument("--model", metavar="NAME", help="for --calibrate (default: the worker's first)")
    add = group.add_argument
    add("--cache-tokens", type=whole(1), metavar="N", help="KV cache of a worker (default: 1000000)")
    add("--prefill-rate", type=number(above=0), metavar="N", help="prompt tokens per second (default: 8000)")
    add(
        "--attention-tokens", type=number(least=0), metavar="N",
        help="so far into a prompt a token costs twice as much; 0: never (default: 65536)",
    )  # fmt: skip
    add("--step-seconds", type=number(least=0), metavar="S", help="cost of each step beside its work (default: 0.002)")
    add("--decode-seconds", type=number(least=0), metavar="S", help="a decode step (default: 0.012)")
    add(
        "--decode-seconds-per-request",
        type=number(least=0),
        metavar="S",
        help="and each request in it (default: 0.0003)",
    )
    add("--decode-seconds-per-token", type=number(least=0), metavar="S", help="and each token of context (default: 0)")
    add("--running-max", type=whole(1), metavar="N", help="requests that run at a time (default: 256)")
    add("--step-tokens-max", type=whole(2), metavar="N", help="prompt tokens of a step (default: 8192)")


def _add_events(group: Any) -> None:
    add = group.add_argument
    add(
        "--event-delay", type=number(least=0), default=0.0, metavar="S",
        help="seconds until routers hear of a change of a cache (default: 0)",
    )  # fmt: skip
    add(
        "--event-loss", type=number(least=0, most=1), default=0.0, metavar="SHARE",
        help="batches of events that get lost on their way, 0..1 (default: 0)",
    )  # fmt: skip
    add("--no-event-replay", action="store_true", help="engines cannot repeat what got lost")
    add(
        "--restart-every", type=number(least=0), default=0.0, metavar="S",
        help="each worker restarts about so often and loses its cache (default: never)",
    )  # fmt: skip
    add("--restart-seconds", type=number(least=0), default=30.0, metavar="S", help="and is away so long (default: 30)")


def _add_questions(group: Any) -> None:
    add = group.add_argument
    add(
        "--slo-ttft", type=number(above=0), default=2.0, metavar="S",
        help="a request is good if its first token comes in so many seconds (default: %(default)s)",
    )  # fmt: skip
    add("--slo-tpot", type=number(above=0), metavar="S", help="and if each further token takes at most so many")
    add("--plan", action="store_true", help="say how many workers each policy needs for the goal")
    add(
        "--goodput", type=number(above=0, most=1), default=0.99, metavar="SHARE",
        help="share of requests that must be good, for --plan and --capacity-curve (default: %(default)s)",
    )  # fmt: skip
    add("--workers-max", type=whole(1, 1024), default=256, metavar="N", help="for --plan (default: %(default)s)")
    add(
        "--capacity-curve", nargs="?", const="", metavar="X,...",
        help="replay at several rates, as multiples of the trace's (default: 0.25 to 3)",
    )  # fmt: skip
    add("--seeds", type=whole(1, 1000), default=3, metavar="N", help="runs of each policy (default: %(default)s)")


def _add_output(group: Any) -> None:
    group.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    group.add_argument("--html", metavar="FILE", help="write a report with plots: one file that needs nothing else")
    group.add_argument("--processes", type=whole(1), metavar="N", help="processes to use (default: one for each core)")


def whole(least: int, most: int = 1 << 40) -> Callable[[str], int]:
    """Return a reader of whole numbers within bounds."""

    def read(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"must be between {least} and {most}, got {value}")
        return value

    read.__name__ = "whole number"
    return read


def number(*, least: float | None = None, above: float | None = None, most: float = 1e12) -> Callable[[str], float]:
    """Return a reader of numbers within bounds."""

    def read(text: str) -> float:
        value = float(text)
        low = value >= least if least is not None else above is None or value > above
        if not (low and value <= most):
            bound = f"at least {least:g}" if least is not None else f"above {above:g}"
            raise argparse.ArgumentTypeError(f"must be {bound} and at most {most:g}, got {text}")
        return value

    read.__name__ = "number"
    return read
