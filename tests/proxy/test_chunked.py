"""The chunked coding: the end is found exactly, bad framing is an error, and text can be added to a cut body."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvrouter.errors import WireError
from kvrouter.service.proxy.chunked import ChunkedBody

pytestmark = pytest.mark.usefixtures("http_core")

_payloads = st.lists(st.binary(min_size=1, max_size=40), max_size=6)


def _encode(payloads: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in payloads) + b"0\r\n\r\n"


def _feed(body: ChunkedBody, data: bytes, cuts: list[int]) -> int:
    """Feed in pieces; return how many bytes belonged to the body."""
    used = 0
    edges = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    for start, end in pairwise(edges):
        if not body.done:
            used += body.feed(data[start:end])
    return used


def _payload(framed: bytes) -> bytes:
    """Read as much payload as an ordinary client would from a body that is cut."""
    payload, position = b"", 0
    while True:
        end = framed.find(b"\r\n", position)
        if end < 0:
            return payload
        size = int(framed[position:end], 16)
        payload += framed[end + 2 : end + 2 + size]
        if len(framed) < end + 4 + size:
            return payload
        assert framed[end + 2 + size : end + 4 + size] == b"\r\n"
        position = end + 4 + size


@given(_payloads, st.lists(st.integers(0, 400), max_size=10), st.binary(max_size=10))
def test_any_split_finds_the_same_end(payloads: list[bytes], cuts: list[int], surplus: bytes) -> None:
    """What follows the body is not part of it."""
    framed, sink = _encode(payloads), list[bytes]()
    body = ChunkedBody(sink)

    used = _feed(body, framed + surplus, cuts)

    assert body.done
    assert used == len(framed)
    assert b"".join(sink) == b"".join(payloads)


@given(st.lists(st.binary(max_size=6) | st.sampled_from([b"1\r\n", b"\r\n", b"a", b"0\r\n", b";x"]), max_size=12),
       st.lists(st.integers(0, 60), max_size=6))  # fmt: skip
def test_garbage_gives_the_same_refusal_for_every_split(pieces: list[bytes], cuts: list[int]) -> None:
    """WireError or nothing, and never an opinion that depends on packets."""
    data = b"".join(pieces)
    results = []
    for split in ([], cuts, list(range(len(data)))):
        body = ChunkedBody()
        try:
            results.append((_feed(body, data, split), body.done))
        except WireError:
            results.append((-1, False))

    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize(
    "data",
    [
        b"-1\r\n", b"+1\r\n", b"0x1\r\n", b"1_0\r\n", b" 1\r\n", b"1 \r\n", b"g\r\n", b"\r\n", b"1\n", b"\xb2\r\n",
        b"1" * 16 + b"\r\n", b"1\r\nab\r\n", b"1\r\na\n", b"1\r\na\rb", b"1;\x00\r\n", b"1;a\rb\r\n",
        b"1;" + b"x" * 1100,
        b"0\r\nbad trailer\r\n\r\n", b"0\r\n: x\r\n\r\n", b"0\r\nX: 1\n\r\n",
        b"1;" + b"x" * 1000 + b"\r\na\r\n" + (b"1;" + b"x" * 1000 + b"\r\na\r\n") * 20,
        b"0\r\n" + b"X: " + b"y" * 1000 + b"\r\n" + (b"X: " + b"y" * 1000 + b"\r\n") * 20,
    ],
)  # fmt: skip
def test_bad_framing_is_refused(data: bytes) -> None:
    """Sizes that parsers read differently, wrong line ends, endless extensions and trailers."""
    with pytest.raises(WireError):
        ChunkedBody().feed(data)


@given(_payloads.filter(bool), st.integers(0, 300), st.binary(min_size=1, max_size=50))
def test_text_is_added_to_a_body_that_is_cut_anywhere(payloads: list[bytes], cut: int, text: bytes) -> None:
    """After any prefix, the addition reads as payload; where it cannot, None is returned."""
    framed = _encode(payloads)
    prefix = framed[: cut % len(framed)]
    sink: list[bytes] = []
    body = ChunkedBody(sink)
    body.feed(prefix)

    added = body.interruption(text)

    if added is not None:
        assert _payload(prefix + added) == b"".join(sink) + text
