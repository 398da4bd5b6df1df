"""What the clients of all transports do alike before a request leaves: they look at what is left of its deadline."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from kvrouter.errors import DeadlineError
from kvrouter.transport.access import Token, with_token
from kvrouter.transport.context import Context
from kvrouter.transport.messages import Request, encode_request
from kvrouter.transport.two_part import MESSAGE_BYTES_MAX

__all__ = ["connected", "encode_now"]

Connection = TypeVar("Connection")


async def connected(connect: Callable[[str], Awaitable[Connection]], address: str, context: Context) -> Connection:
    """What `connect` makes of an address, within the request's deadline.

    Raises:
        DeadlineError: there is no connection by then.
    """
    _seconds_left(context)
    try:
        async with asyncio.timeout_at(context.deadline):
            return await connect(address)
    except TimeoutError:
        raise DeadlineError(f"request {context.id} got no connection to {address} within its deadline") from None


def encode_now(
    request: Request, context: Context, *, token: Token | None = None, bytes_max: int = MESSAGE_BYTES_MAX
) -> bytes:
    """A request as a message that says what is left of its deadline now, and shows the client's `token`.

    Raises:
        DeadlineError: nothing is left.
        WireError: as `encode_request`.
    """
    return encode_request(
        request,
        id=context.id,
        headers=with_token(context.headers, token),
        remaining_seconds=_seconds_left(context),
        bytes_max=bytes_max,
    )


def _seconds_left(context: Context) -> float | None:
    remaining = context.remaining_seconds(asyncio.get_running_loop().time())
    if remaining == 0:
        raise DeadlineError(f"the deadline of request {context.id} is over")
    return remaining
