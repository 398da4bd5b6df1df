"""`kvrouter events`: look at engines' KV-cache events, and pass them on. One module per subcommand."""

from typing import Any

from kvrouter.events_cli import relay, stats, tail

__all__ = ["add_parser"]


def add_parser(subparsers: Any) -> None:
    """Add `events` and its subcommands."""
    events = subparsers.add_parser(
        "events",
        help="look at engines' KV-cache events",
        description="Looks at engines' KV-cache events, and at what a router made of them; passes them on.",
    )
    commands = events.add_subparsers(title="commands", metavar="COMMAND", required=True)
    tail.add_parser(commands)
    stats.add_parser(commands)
    relay.add_parser(commands)
