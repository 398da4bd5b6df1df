"""How often a worker's handlers were asked and failed, and how long they took; by decoration."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from time import perf_counter_ns

from kvrouter.transport.context import Context
from kvrouter.transport.messages import Request
from kvrouter.transport.server_stream import Handler, answering

__all__ = ["HandlerCounts", "counted"]


@dataclass(slots=True)
class HandlerCounts:
    """What a handler has done since the start. Of an error only its type is kept: texts may tell of prompts."""

    requests: int = 0
    errors: int = 0
    last_error: str = ""
    processing_ns: int = 0


def counted(handlers: Mapping[str, Handler], counts: Mapping[str, HandlerCounts]) -> dict[str, Handler]:
    """Wrap every handler, by the name of its endpoint."""
    return {name: _counted(handler, counts[name]) for name, handler in handlers.items()}


def _counted(handler: Handler, counts: HandlerCounts) -> Handler:
    async def asked(request: Request, context: Context) -> AsyncIterator[bytes]:
        counts.requests += 1
        began = perf_counter_ns()
        try:
            async with answering(handler, request, context) as items:
                async for item in items:
                    yield item
        except Exception as error:
            counts.errors += 1
            counts.last_error = type(error).__name__
            raise
        finally:
            counts.processing_ns += perf_counter_ns() - began

    return asked
