"""`kvrouter events stats`: how far a running router can be trusted about each source of events.

It asks the router's `GET /sources` twice and shows states, losses and rates. Nothing is counted here.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kvrouter.asking import add_router_arguments, ask_router, router_address, write_lines
from kvrouter.errors import KvrouterError, SettingsError

__all__ = ["Rates", "add_parser", "run"]

_LOSSES = ("gaps", "gaps_lost", "duplicates", "restarts", "quarantined", "orphans", "unresolved")
_COLUMNS = (
    ("worker", "worker_id"),
    ("rank", "rank"),
    ("transport", "transport"),
    ("state", "state"),
    ("blocks", "blocks"),
    ("lag", "lag"),
    ("batches/s", "batches_per_second"),
    *((name.replace("_", " "), name) for name in _LOSSES),
    ("last event", "last_event_age"),
    ("last error", "last_error"),
)


def add_parser(commands: Any) -> None:
    """Add `stats` to the commands of `events`."""
    stats = commands.add_parser(
        "stats",
        help="show the event sources of a running router: state, lag, losses, rate",
        description="Ask a running router about its event sources and show one line for each.",
    )
    add_router_arguments(stats)
    stats.add_argument(
        "--seconds", type=float, default=1.0, metavar="S", help="time over which rates are taken (default: %(default)s)"
    )
    stats.add_argument("--watch", action="store_true", help="go on until interrupted")
    stats.add_argument("--json", action="store_true", help="print one JSON array per look")
    stats.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the sources; returns 1 if one of them is not live, so that a script can ask.

    Raises:
        SettingsError: the URL is not one of HTTP, or the seconds are not positive.
        KvrouterError: the router did not answer, or refused.
    """
    address = router_address(arguments.url) + "/sources"
    if not 0 < arguments.seconds <= 3600:
        raise SettingsError(f"--seconds {arguments.seconds:g} must be above 0 and at most 3600")
    rates = Rates()
    rates.rows(_ask(address, arguments.api_key), now=time.monotonic())
    while True:
        time.sleep(arguments.seconds)
        rows = rates.rows(_ask(address, arguments.api_key), now=time.monotonic())
        heard = write_lines(json.dumps(rows) if arguments.json else _table(rows))
        if not (arguments.watch and heard):
            return 0 if all(row["state"] == "live" for row in rows) else 1


class _Seen(NamedTuple):
    batches: int
    at: float


class Rates:
    """Adds to each source how many batches a second were applied since the last look."""

    def __init__(self) -> None:
        self._seen: dict[tuple[Any, Any], _Seen] = {}

    def rows(self, sources: Sequence[Mapping[str, Any]], *, now: float) -> list[dict[str, Any]]:
        """Return `sources`, each with `batches_per_second`; None where there is nothing to compare with."""
        seen, self._seen = self._seen, {}
        rows = []
        for source in sources:
            name = source.get("worker_id"), source.get("rank")
            batches = int(source.get("applied_batches") or 0)
            before = seen.get(name)
            rate = None
            if before is not None and now > before.at and batches >= before.batches:
                rate = round((batches - before.batches) / (now - before.at), 1)
            self._seen[name] = _Seen(batches, now)
            rows.append({**source, "batches_per_second": rate})
        return rows


def _ask(address: str, api_key: str | None) -> list[dict[str, Any]]:
    rows = ask_router(address, api_key)
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "state" in row for row in rows):
        raise KvrouterError(f"{address} does not answer with sources; is it a kvrouter?")
    return rows


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "no sources: the router knows no workers"
    # A column of losses that nobody has says nothing.
    columns = [(title, key) for title, key in _COLUMNS if key not in _LOSSES or any(row.get(key) for row in rows)]
    lines = [[title for title, _ in columns], *([_cell(key, row.get(key)) for _, key in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _cell(key: str, value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.1f} s" if key == "last_event_age" and isinstance(value, float) else str(value)
