"""A NATS client that is there again after everything that a server may say. What is sent and heard is not here.

The client library connects again after a connection that broke. It closes for ever, though, when a server says why it
ends one: credentials that have run out, a bound on connections or subscriptions, a line that is too long. Those pass
too, and who is to run for months must outlive them.
"""

from typing import Final

from kvrouter.errors import MissingExtraError

try:
    from nats.aio.client import Client
    from nats.errors import AuthorizationError
    from nats.errors import Error as NatsError
except ImportError as error:
    raise MissingExtraError("NATS", "nats") from error

__all__ = ["LastingClient"]

_OF_ONE_SUBJECT: Final = "permissions violation"
_CONNECTION_IS_OLD: Final = "stale connection"
_UNKNOWN: Final = "authorization violation"


class LastingClient(Client):
    """A client whose connection is made again whatever ended it, with all its subscriptions.

    What the server said is told to `error_cb`. The first connection is as the library's: it may fail for good.
    """

    async def _process_err(self, err_msg: str) -> None:
        """Take a refusal of the server: one of a single subject changes nothing, any other costs the connection."""
        said = err_msg.strip("'")
        known = any(text in said.lower() for text in (_OF_ONE_SUBJECT, _CONNECTION_IS_OLD))
        if known or not self.is_connected:
            await super()._process_err(err_msg)
            return
        error = AuthorizationError() if _UNKNOWN in said.lower() else NatsError(f"nats: {said}")
        await self._error_cb(error)
        await self._process_op_err(error)

    async def _select_next_server(self) -> None:
        """Begin the next attempt; what a refused one had opened would stay open until it is collected."""
        if self._transport is not None:
            self._transport.close()  # type: ignore[no-untyped-call]
        await super()._select_next_server()
