"""Who can answer a call: the service on NATS, or the HTTP service from before. One contract for both."""

from typing import Final, Literal, Protocol, TypeAlias

from kvrouter.gateway.answers import Answer
from kvrouter.gateway.calls import Call

__all__ = ["COPY_HEADER", "Side", "SideName"]

COPY_HEADER: Final = "Kvrouter-Shadow"
"""Tells whoever gets a copy of a request, over HTTP or NATS, that it is one."""

SideName: TypeAlias = Literal["nats", "legacy"]


class Side(Protocol):
    """Answers calls, whole answers only."""

    @property
    def name(self) -> SideName:
        """What metrics and headers call it."""
        ...

    async def answer(self, call: Call, *, is_copy: bool = False) -> Answer:
        """Return the answer; `is_copy` tells the other end that nobody waits for it.

        Raises:
            GatewayError: there is none, or it is an error.
        """
        ...
