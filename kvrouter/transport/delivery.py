"""Hands what arrives for a stream to the stream: the one table of which message means what, for every transport."""

from typing import TypeAlias

from kvrouter.errors import ProtocolError
from kvrouter.transport.client_stream import ClientStream
from kvrouter.transport.messages import Kind, decode_error
from kvrouter.transport.server_stream import ServerStream

__all__ = ["AnyStream", "deliver"]

AnyStream: TypeAlias = ClientStream | ServerStream


def deliver(stream: AnyStream, kind: int, payload: bytes | memoryview, *, more: bool) -> bool:
    """Tell a stream what its peer said; False if that means nothing to it.

    Raises:
        ProtocolError: the payload is not what its kind asks for.
    """
    if kind == Kind.DATA:
        stream.on_data(bytes(payload), more=more)
    elif kind == Kind.END:
        stream.on_end()
    elif kind == Kind.WINDOW:
        stream.on_window(_credit(payload))
    elif kind == Kind.RESET:
        stream.on_error(decode_error(payload))
    elif isinstance(stream, ClientStream):
        return _deliver_answer(stream, kind, payload)
    elif kind == Kind.STOP:
        stream.on_stop()
    elif kind == Kind.KILL:
        stream.on_kill()
    else:
        return False
    return True


def _deliver_answer(stream: ClientStream, kind: int, payload: bytes | memoryview) -> bool:
    if kind == Kind.ACK:
        stream.on_ack(payload)
    elif kind == Kind.PROLOGUE:
        stream.on_prologue(payload)
    else:
        return False
    return True


def _credit(payload: bytes | memoryview) -> int:
    if len(payload) != 4:
        raise ProtocolError(f"a WINDOW of {len(payload)} bytes; it is 4")
    return int.from_bytes(payload, "big")
