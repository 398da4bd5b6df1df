"""One log line per event: a snake_case name and its fields, as JSON on standard output.

Never prompts, tokens or keys; never a line per request. `configure_logging` is called once, by the composition root.
"""

import json
import logging
import sys
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, TextIO

__all__ = ["NO_LEVELS", "configure_logging", "log_event"]

NO_LEVELS: Final[Mapping[str, str]] = MappingProxyType({})


def log_event(logger: logging.Logger, level: int, event: str, **fields: object) -> None:
    """Log `event` with its fields, if the level is wanted."""
    if logger.isEnabledFor(level):
        logger.log(level, event, extra={"fields": fields})


class JsonFormatter(logging.Formatter):
    """Writes one JSON object per line: time, level, logger, event, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, object] = {
            "time": _timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """The same for people: `time level event name=value …`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields = " ".join(f"{name}={value}" for name, value in getattr(record, "fields", {}).items())
        line = f"{_timestamp(record.created)} {record.levelname:<7} {record.getMessage()} {fields}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def configure_logging(
    *, level: str, style: str, levels: Mapping[str, str] = NO_LEVELS, stream: TextIO | None = None
) -> None:
    """Send every logger of the process to one stream, in one style (`json` or `text`).

    `levels` are those of some loggers by name, the empty name for all that have none of their own.
    """
    handler = logging.StreamHandler(stream or sys.stdout)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name, own in levels.items():
        logging.getLogger(name or None).setLevel(own.upper())
    # The admin server would add a line per request, and lines about itself.
    logging.getLogger("uvicorn.access").disabled = True
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


def _timestamp(seconds: float) -> str:
    milliseconds = int(seconds * 1000) % 1000
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{milliseconds:03d}Z"
