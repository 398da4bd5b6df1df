"""`kvrouter worker`: puts an engine that speaks HTTP behind a request plane, and tells discovery that it is there.

`engine` is the handler that asks the engine, for programs of one's own too; `command` is the command.
"""

from kvrouter.worker.command import add_parser, run

__all__ = ["add_parser", "run"]
