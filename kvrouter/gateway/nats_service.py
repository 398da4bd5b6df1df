"""The services behind NATS, as one that answers calls: translates, asks, translates back."""

import secrets
import time
from typing import Any

import msgspec

from kvrouter.errors import TransportError
from kvrouter.gateway.answers import Answer
from kvrouter.gateway.calls import Call
from kvrouter.gateway.error_table import gateway_error, service_failure
from kvrouter.gateway.metadata import meta_fields, nats_headers
from kvrouter.gateway.nats_link import NatsLink
from kvrouter.gateway.reply_stream import ReplyStream
from kvrouter.gateway.sides import COPY_HEADER, SideName
from kvrouter.gateway.translation import Translation

__all__ = ["NatsService"]

_encode = msgspec.json.Encoder().encode


class NatsService:
    """Answers the calls of one route."""

    name: SideName = "nats"

    def __init__(
        self, translation: Translation, link: NatsLink, *, timeout_seconds: float, queue_messages_max: int
    ) -> None:
        self.translation, self._link = translation, link
        self.timeout_seconds, self._queue_messages_max = timeout_seconds, queue_messages_max

    async def answer(self, call: Call, *, is_copy: bool = False) -> Answer:
        """Return the service's answer; see `Side`."""
        data, headers = self._message(call)
        if is_copy:
            headers = {**(headers or {}), COPY_HEADER: "1"}
        try:
            reply = await self._link.request(
                call.route.subject, data, headers=headers, timeout_seconds=self.timeout_seconds
            )
        except TransportError as error:
            raise gateway_error(error) from None
        if reply.headers is not None:
            failure = service_failure(reply.headers)
            if failure is not None:
                raise failure
        return Answer(200, _encode(self.translation.answer.read(reply.data)))

    async def open_stream(self, call: Call) -> ReplyStream:
        """Ask for a stream; close it in any case. Raises as `answer`."""
        data, headers = self._message(call)
        try:
            return await self._link.open_stream(
                call.route.subject, data, headers=headers, queue_messages_max=self._queue_messages_max
            )
        except TransportError as error:
            raise gateway_error(error) from None

    def _message(self, call: Call) -> tuple[bytes, dict[str, str] | None]:
        """What is sent: the message and the headers beside it."""
        caller, key = call.caller, call.key
        meta: dict[str, Any] = meta_fields(caller, request_id=call.request_id, idempotency_key=key, seconds=time.time())
        data = self.translation.request(call.values, meta)
        if not key and not caller.trace_id:
            return data, None
        message_id = f"{call.route.name}:{caller.tenant_id}:{caller.user_id}:{key}"
        return data, nats_headers(caller, span_id=secrets.token_hex(8), idempotency_key=key, message_id=message_id)
