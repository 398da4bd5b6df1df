"""Answers as server-sent events, lines of JSON and two-part messages: what is written is read, whatever is in it."""

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvrouter.errors import ProtocolError, WireError
from kvrouter.transport.http_errors import refusal_of, status_of
from kvrouter.transport.http_formats import (
    FORMATS,
    Format,
    Said,
    accepted_format,
    answer_reader,
    answer_writer,
    format_of,
)
from kvrouter.transport.messages import Codec, Kind

ERROR = b'{"code":"NOT_FOUND","message":"no such model","retryable":false}'
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def read(kind: Format, codec: Codec, data: bytes, cuts: list[int]) -> list[Said]:
    """Everything that an answer says, fed in pieces; pings left out."""
    reader = answer_reader(kind, codec)
    said = [each for piece in pieces(data, cuts) for each in reader.feed(piece)]
    return [each for each in said if each.kind is not Kind.PING]


def pieces(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    """Cut bytes wherever."""
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    for first, last in zip([0, *places], [*places, len(data)], strict=True):
        yield data[first:last]


@pytest.mark.parametrize("kind", FORMATS)
@given(items=st.lists(st.binary(max_size=300), max_size=6), cuts=st.lists(st.integers(0, 1 << 20), max_size=10))
def test_items_of_any_bytes_come_back(kind: Format, items: list[bytes], cuts: list[int]) -> None:
    """A-208, D-15: as base64 in the forms of text, as they are in two-part messages; cut anywhere."""
    writer = answer_writer(kind, "raw")
    written = [writer.prologue(), *(writer.item(number, item) + writer.beat() for number, item in enumerate(items))]

    said = read(kind, "raw", b"".join([*written, writer.end()]), cuts)

    assert said == [Said(Kind.PROLOGUE), *(Said(Kind.DATA, item) for item in items), Said(Kind.END)]


@pytest.mark.parametrize("kind", FORMATS)
@given(
    items=st.lists(JSON, max_size=6),
    cuts=st.lists(st.integers(0, 1 << 20), max_size=10),
    indent=st.sampled_from([None, 2]),
)
def test_items_of_json_are_the_same_json(
    kind: Format, items: list[object], cuts: list[int], indent: int | None
) -> None:
    """A-209: with line breaks between tokens or without."""
    if kind == "binary":
        items = [item for item in items if item is not None]  # a null is its end
    writer = answer_writer(kind, "json")
    written = [writer.item(number, json.dumps(item, indent=indent).encode()) for number, item in enumerate(items)]

    *said, last = read(kind, "json", b"".join([*written, writer.end()]), cuts)

    assert [json.loads(each.payload) for each in said] == items
    assert last == Said(Kind.END)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("codec", ["raw", "json", "msgpack"])
def test_errors_come_after_items(kind: Format, codec: Codec) -> None:
    """A-210: with code and text."""
    writer = answer_writer(kind, codec)

    said = read(kind, codec, writer.item(0, b"7") + writer.error(ERROR), [])

    assert said == [Said(Kind.DATA, b"7"), Said(Kind.RESET, ERROR)]


def test_events_are_those_of_the_specification() -> None:
    """A-150, A-208, A-276, A-278: `data:` with JSON, `event: done` at the end."""
    writer = answer_writer("sse", "json")

    written = writer.item(0, b'{"token":"a"}') + writer.beat() + writer.error(ERROR) + writer.end()

    assert written == (
        b'id: 0\ndata: {"token":"a"}\n\n:\n\nevent: error\ndata: ' + ERROR + b"\n\nevent: done\ndata: {}\n\n"
    )
    assert answer_writer("sse", "msgpack").item(3, b"\x01") == b"event: bin\nid: 3\ndata: AQ==\n\n"


def test_lines_are_those_of_the_specification() -> None:
    """A-209, A-277."""
    writer = answer_writer("ndjson", "json")

    written = writer.item(0, b"[1,\n2]") + writer.beat() + writer.error(ERROR) + writer.end()

    assert written == (
        b'{"data":[1, 2],"complete_final":false}\n\n{"error":' + ERROR + b'}\n{"data":null,"complete_final":true}\n'
    )


def test_two_part_messages_are_those_of_the_specification() -> None:
    """A-209: items with a body alone, everything else with a header alone."""
    writer = answer_writer("binary", "json")

    written = writer.item(0, b"1") + writer.end() + writer.beat()

    bodies = [written[at + 24 :] for at in range(len(written)) if written[at : at + 7] == bytes(7)]
    assert any(each.startswith(b'{"data":1,"complete_final":false}') for each in bodies)
    assert any(each.startswith(b'{"data":null,"complete_final":true}') for each in bodies)
    assert any(each.startswith(b'"sentinel"') for each in bodies)
    assert any(each.startswith(b'"ping"') for each in bodies)


def test_events_of_others_are_understood() -> None:
    """Line ends of Windows, several lines of data, fields without a space, events of later versions."""
    said = read("sse", "json", b'data:{"a":\r\ndata: 1}\r\n\r\nevent: later\ndata: x\n\nretry: 5\n\nevent:done\n\n', [])

    assert said == [Said(Kind.DATA, b'{"a":\n1}'), Said(Kind.END)]


@pytest.mark.parametrize("kind", FORMATS)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_an_answer_or_an_error(kind: Format, data: bytes) -> None:
    """Never another exception."""
    try:
        for each in answer_reader(kind, "json").feed(data):
            assert isinstance(each, Said)
    except (WireError, ProtocolError):
        pass


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("sse", b"event: bin\ndata: ***\n\n"),
        ("sse", b"data: " + bytes(9000)),
        ("ndjson", b'{"complete_final":false}\n'),
        ("ndjson", b"nothing\n"),
        ("ndjson", b'{"data":"***","encoding":"base64"}\n'),
        ("binary", bytes(7) + b"\x02" + bytes(16) + b"{}"[:1] + b"]"),
        ("binary", b"\xff" * 24),
        ("binary", bytes(7) + b"\x0a" + bytes(16) + b'"sentinel"'),
    ],
)
def test_what_is_no_answer_is_refused(kind: Format, data: bytes) -> None:
    """No base64, lines without an end, neither data nor error, a sentinel before the final item."""
    with pytest.raises((WireError, ProtocolError)):
        list(answer_reader(kind, "json", item_bytes_max=1000).feed(data))


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", None),
        ("*/*", None),
        ("text/event-stream", "sse"),
        ("Application/X-NDJSON; charset=utf-8", "ndjson"),
        ("text/html, application/octet-stream;q=0.5, text/event-stream;q=0.9", "sse"),
        ("text/event-stream;q=0", None),
        ("text/event-stream;q=nonsense, application/x-ndjson;q=0.1", "ndjson"),
    ],
)
def test_the_accept_header_chooses(accept: str, kind: Format | None) -> None:
    """B.9: by weight; wildcards choose nothing."""
    assert accepted_format(accept) == kind


def test_types_are_recognised() -> None:
    """With parameters, in any case."""
    assert format_of("text/event-stream; charset=utf-8") == "sse"
    assert format_of("text/plain") is None


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("INVALID_ARGUMENT", 400), ("UNAUTHENTICATED", 401), ("PERMISSION_DENIED", 403), ("NOT_FOUND", 404),
        ("ALREADY_EXISTS", 409), ("FAILED_PRECONDITION", 412), ("RESOURCE_EXHAUSTED", 429), ("CANCELLED", 499),
        ("INTERNAL", 500), ("UNIMPLEMENTED", 501), ("UNAVAILABLE", 503), ("DEADLINE_EXCEEDED", 504), ("ELSE", 500),
    ],
)  # fmt: skip
def test_codes_are_statuses(code: str, status: int) -> None:
    """A-210: the error model of HTTP."""
    assert status_of(json.dumps({"code": code, "message": ""}).encode()) == status


def test_refusals_of_proxies_are_understood() -> None:
    """Whatever stands between: their statuses have codes too, and their text is told."""
    told = json.loads(refusal_of(503, b"<html>no healthy upstream</html>"))

    assert told["code"] == "UNAVAILABLE"
    assert told["retryable"]
    assert "no healthy upstream" in told["message"]
    assert refusal_of(404, b'{"error":' + ERROR + b"}") == ERROR
