"""`kvrouter demo`: a router and simulated engines on this machine, the same requests under two policies, one table.

Here is only the command line. `story.py` tells what happens in which order, `workload.py` says what is asked and
why that is a fair question, `fleet.py` owns the processes, `load.py` and `client.py` send, `measures.py` counts.
"""

import argparse
from typing import Any

__all__ = ["add_parser", "run"]

_DESCRIPTION = """\
Starts simulated engines and a router as real processes on loopback ports, sends the same multi-turn conversations
through them twice, first under round robin, then under the policy kv, and compares. Takes less than a minute.

The engines have a real paged prefix cache and publish real KV-cache events; only the GPU is simulated, at the
speed of an 8 B model on one data-centre GPU. Cached tokens are what the engines themselves report in `usage`.
"""

_EPILOG = """\
examples:
  kvrouter demo                                  the comparison
  kvrouter demo --keep                           the same, then leave the fleet running to try things on it
  kvrouter demo --json > demo.json               for programs: one JSON object on standard output
  kvrouter demo --policy least-loaded            another policy against round robin
  kvrouter demo --engines 8 --seconds 15         a larger fleet; the load grows with it

Exit codes: 0 done, 1 a request or a process failed, 2 wrong call, 130 interrupted.
"""


def add_parser(subparsers: Any) -> None:
    """Add the subcommand to the `kvrouter` command."""
    parser = subparsers.add_parser(
        "demo",
        help="see KV-aware routing beat round robin on this machine, in a minute",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--engines", type=_count(1, 32), default=4, metavar="N", help="engines (default: %(default)s)")
    parser.add_argument(
        "--seconds",
        type=_count(1, 600),
        default=18,
        metavar="S",
        help="how long requests are sent under each policy (default: %(default)s)",
    )
    parser.add_argument(
        "--sessions",
        type=_count(1, 10_000),
        metavar="N",
        help="conversations in that time (default: as many as keep round robin busy but not overloaded)",
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="another workload (default: %(default)s)")
    parser.add_argument(
        "--policy",
        default="kv",
        choices=("kv", "least-loaded", "sticky", "random"),
        help="what to compare with round robin (default: %(default)s)",
    )
    parser.add_argument("--keep", action="store_true", help="leave the second fleet running until Ctrl-C")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the demo and return its exit code."""
    from kvrouter.demo.story import tell  # noqa: PLC0415 - `kvrouter --help` must not load it

    return tell(arguments)


def _count(at_least: int, at_most: int) -> Any:
    def parse(text: str) -> int:
        value = int(text)
        if not at_least <= value <= at_most:
            raise argparse.ArgumentTypeError(f"must be between {at_least} and {at_most}, got {value}")
        return value

    parse.__name__ = "number"
    return parse
