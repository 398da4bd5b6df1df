"""Answers as bodies of HTTP responses: server-sent events, lines of JSON, and two-part messages. Pure.

Items of the codec `json` are JSON in all three, so that `curl -N` shows them; of the others, which may be any bytes,
the two forms of text carry base64. The prologue is written only where the requester has asked for it: it says that the
handler has begun, after headers that say only that the request was taken.

                 sse                              ndjson                                  binary (two-part)
    prologue     event: prologue, data: {}        {"prologue":{}}                         header {"error":null}
    item         id: 0, data: <JSON>              {"data":<JSON>,"complete_final":false}  body as the codec wraps it
    other item   event: bin, id: 0, data: base64  {"data":"…","encoding":"base64",…}      body as the codec wraps it
    error        event: error, data: <error>      {"error":<error>}                       header {"error":"…", …}
    end          event: done, data: {}            {"data":null,"complete_final":true}     final item, header "sentinel"
    keep-alive   a comment                        an empty line                           header "ping"
"""

from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from collections.abc import Iterator
from typing import Literal, NamedTuple, Protocol, TypeAlias

import msgspec

from kvrouter.errors import HandlerError, ProtocolError, TransportError, WireError
from kvrouter.transport.callhome_wire import ItemReader, final_message, item_message
from kvrouter.transport.messages import Codec, Kind, encode_error
from kvrouter.transport.two_part import MESSAGE_BYTES_MAX, TwoPart, TwoPartReader, encode_two_part

__all__ = [
    "CONTENT_TYPES",
    "FORMATS",
    "AnswerReader",
    "AnswerWriter",
    "Format",
    "Said",
    "accepted_format",
    "answer_reader",
    "answer_writer",
    "format_of",
]

Format: TypeAlias = Literal["sse", "ndjson", "binary"]
FORMATS: tuple[Format, ...] = ("sse", "ndjson", "binary")
CONTENT_TYPES: dict[Format, str] = {
    "sse": "text/event-stream",
    "ndjson": "application/x-ndjson",
    "binary": "application/octet-stream",
}
_BY_TYPE: dict[str, Format] = {content_type: name for name, content_type in CONTENT_TYPES.items()}
_TEXT_OVERHEAD = 4096  # of a line, beside its item


class Said(NamedTuple):
    """One thing that an answer says: a prologue, an item, an error (as `encode_error` writes it), its end, a ping."""

    kind: Kind
    payload: bytes = b""


class AnswerWriter(Protocol):
    """Writes one answer."""

    def prologue(self) -> bytes:
        """The handler has begun."""
        ...

    def item(self, number: int, item: bytes) -> bytes:
        """One item; they are numbered from 0."""
        ...

    def error(self, told: bytes) -> bytes:
        """The stream has failed; nothing follows."""
        ...

    def end(self) -> bytes:
        """The answer is whole; nothing follows."""
        ...

    def beat(self) -> bytes:
        """Nothing to say, but still there."""
        ...


class AnswerReader(Protocol):
    """Reads one answer."""

    def feed(self, data: bytes) -> Iterator[Said]:
        """Yield what is whole now; raises WireError or ProtocolError, and then the answer is lost."""
        ...


def answer_writer(kind: Format, codec: Codec, *, item_bytes_max: int = MESSAGE_BYTES_MAX) -> AnswerWriter:
    """A writer for one answer whose items are in `codec`."""
    match kind:
        case "sse":
            return _SseWriter(codec)
        case "ndjson":
            return _NdjsonWriter(codec)
        case "binary":
            return _BinaryWriter(codec, item_bytes_max)


def answer_reader(kind: Format, codec: Codec, *, item_bytes_max: int = MESSAGE_BYTES_MAX) -> AnswerReader:
    """A reader for one answer whose items are in `codec`."""
    match kind:
        case "sse":
            return _SseReader(item_bytes_max)
        case "ndjson":
            return _NdjsonReader(item_bytes_max)
        case "binary":
            return _BinaryReader(codec, item_bytes_max)


def format_of(content_type: str) -> Format | None:
    """The format of a body of that type."""
    return _BY_TYPE.get(content_type.partition(";")[0].strip().lower())


def accepted_format(accept: str) -> Format | None:
    """The format that an `Accept` header names with the highest weight; wildcards name none."""
    best: Format | None = None
    best_weight = 0.0
    for each in accept.split(","):
        named = format_of(each)
        weight = _weight(each)
        if named is not None and weight > best_weight:
            best, best_weight = named, weight
    return best


def _weight(media_range: str) -> float:
    for parameter in media_range.split(";")[1:]:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


# -- server-sent events ----------------------------------------------------------------------------------------------


class _SseWriter:
    def __init__(self, codec: Codec) -> None:
        self._is_json = codec == "json"

    def prologue(self) -> bytes:
        return b"event: prologue\ndata: {}\n\n"

    def item(self, number: int, item: bytes) -> bytes:
        if self._is_json:
            return b"id: %d\ndata: %b\n\n" % (number, _one_line(item))
        return b"event: bin\nid: %d\ndata: %b\n\n" % (number, b2a_base64(item, newline=False))

    def error(self, told: bytes) -> bytes:
        return b"event: error\ndata: " + told + b"\n\n"

    def end(self) -> bytes:
        return b"event: done\ndata: {}\n\n"

    def beat(self) -> bytes:
        return b":\n\n"


class _SseReader:
    def __init__(self, item_bytes_max: int) -> None:
        self._lines = _Lines(item_bytes_max)
        self._event, self._data = b"", list[bytes]()

    def feed(self, data: bytes) -> Iterator[Said]:
        for line in self._lines.feed(data):
            if not line:
                if self._data or self._event:
                    yield self._said()
                continue
            if line.startswith(b":"):
                yield Said(Kind.PING)
                continue
            name, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if name == b"data":
                self._data.append(value)
            elif name == b"event":
                self._event = value

    def _said(self) -> Said:
        event, data = self._event, b"\n".join(self._data)
        self._event, self._data = b"", []
        match event:
            case b"" | b"message":
                return Said(Kind.DATA, data)
            case b"bin":
                return Said(Kind.DATA, _from_base64(data))
            case b"prologue":
                return Said(Kind.PROLOGUE)
            case b"error":
                return Said(Kind.RESET, data)
            case b"done":
                return Said(Kind.END)
        return Said(Kind.PING)  # events that a later version may add


# -- lines of JSON ---------------------------------------------------------------------------------------------------


class _NdjsonWriter:
    def __init__(self, codec: Codec) -> None:
        self._is_json = codec == "json"

    def prologue(self) -> bytes:
        return b'{"prologue":{}}\n'

    def item(self, number: int, item: bytes) -> bytes:  # noqa: ARG002 - lines are counted by their reader
        if self._is_json:
            return b'{"data":' + _one_line(item) + b',"complete_final":false}\n'
        return b'{"data":"' + b2a_base64(item, newline=False) + b'","encoding":"base64","complete_final":false}\n'

    def error(self, told: bytes) -> bytes:
        return b'{"error":' + told + b"}\n"

    def end(self) -> bytes:
        return b'{"data":null,"complete_final":true}\n'

    def beat(self) -> bytes:
        return b"\n"


class _Line(msgspec.Struct):
    data: msgspec.Raw = msgspec.Raw(b"")
    complete_final: bool = False
    encoding: str = ""
    error: msgspec.Raw = msgspec.Raw(b"")
    prologue: dict[str, object] | None = None


_decode_line = msgspec.json.Decoder(_Line).decode


class _NdjsonReader:
    def __init__(self, item_bytes_max: int) -> None:
        self._lines = _Lines(item_bytes_max)

    def feed(self, data: bytes) -> Iterator[Said]:
        for text in self._lines.feed(data):
            yield self._said(text) if text else Said(Kind.PING)

    def _said(self, text: bytes) -> Said:
        try:
            line = _decode_line(text)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise WireError(f"a line of the answer cannot be read: {error}") from None
        item = bytes(line.data)
        if line.complete_final:
            return Said(Kind.END)
        if bytes(line.error):
            return Said(Kind.RESET, bytes(line.error))
        if line.prologue is not None:
            return Said(Kind.PROLOGUE)
        if not item:
            raise WireError("a line of the answer has neither data nor an error")
        return Said(Kind.DATA, _from_base64(item.strip(b'"')) if line.encoding == "base64" else item)


# -- two-part messages -----------------------------------------------------------------------------------------------

_BEGUN = encode_two_part(b'{"error":null}', b"")
_SENTINEL = encode_two_part(b'"sentinel"', b"")
_PING = encode_two_part(b'"ping"', b"")


class _BinaryWriter:
    def __init__(self, codec: Codec, item_bytes_max: int) -> None:
        self._codec, self._bytes_max = codec, item_bytes_max + _TEXT_OVERHEAD

    def prologue(self) -> bytes:
        return _BEGUN

    def item(self, number: int, item: bytes) -> bytes:  # noqa: ARG002 - messages are counted by their reader
        return item_message(item, self._codec, bytes_max=self._bytes_max)

    def error(self, told: bytes) -> bytes:
        text = msgspec.json.encode(msgspec.json.decode(told, type=_Text).message)
        return encode_two_part(b'{"error":' + text + b',"typed_error":' + told + b"}", b"")

    def end(self) -> bytes:
        return final_message(self._codec) + _SENTINEL

    def beat(self) -> bytes:
        return _PING


class _Text(msgspec.Struct):
    message: str = ""


class _Header(msgspec.Struct):
    error: str | None = None
    typed_error: msgspec.Raw = msgspec.Raw(b"")


_decode_header = msgspec.json.Decoder(_Header | Literal["sentinel", "ping"]).decode


class _BinaryReader:
    def __init__(self, codec: Codec, item_bytes_max: int) -> None:
        self._messages = TwoPartReader(bytes_max=item_bytes_max + _TEXT_OVERHEAD)
        self._items = ItemReader(codec)

    def feed(self, data: bytes) -> Iterator[Said]:
        for message in self._messages.feed(data):
            said = self._control(message) if message.is_control else self._item(message)
            if said is not None:
                yield said

    def _item(self, message: TwoPart) -> Said | None:
        try:
            item = self._items.read(memoryview(message.body))
        except ProtocolError:
            raise
        except TransportError as error:  # an overload, told as the first item
            return Said(Kind.RESET, encode_error(error))
        return None if item is None else Said(Kind.DATA, item)

    def _control(self, message: TwoPart) -> Said:
        try:
            header = _decode_header(message.header)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise WireError(f"a control message of the answer cannot be read: {error}") from None
        if header == "ping":
            return Said(Kind.PING)
        if isinstance(header, str):
            if not self._items.is_final:
                raise ProtocolError("the answer ended before its final item")
            return Said(Kind.END)
        if header.error is None:
            return Said(Kind.PROLOGUE)
        return Said(Kind.RESET, bytes(header.typed_error) or encode_error(HandlerError(header.error)))


# -- shared ----------------------------------------------------------------------------------------------------------


class _Lines:
    """Cuts bytes into lines, which end with a line feed, or a carriage return before it."""

    def __init__(self, item_bytes_max: int) -> None:
        self._bytes_max = item_bytes_max * 4 // 3 + _TEXT_OVERHEAD
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        at = 0
        while (end := data.find(b"\n", at)) >= 0:
            line = data[at:end]
            if self._rest:
                line = bytes(self._rest + line)
                self._rest.clear()
            yield line.removesuffix(b"\r")
            at = end + 1
        self._rest += data[at:]
        if len(self._rest) > self._bytes_max:
            raise WireError(f"a line of the answer exceeds {self._bytes_max} bytes", reason="too_large")


def _one_line(text: bytes) -> bytes:
    """JSON without line breaks: outside of strings they mean nothing, inside they are written otherwise."""
    if b"\n" in text or b"\r" in text:
        return text.replace(b"\r", b" ").replace(b"\n", b" ")
    return text


def _from_base64(text: bytes) -> bytes:
    try:
        return a2b_base64(text, strict_mode=True)
    except Base64Error as error:
        raise WireError(f"an item is no base64: {error}") from None
