"""The native code of the data plane gives what the Python in its place gives, for whatever bytes."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvrouter import native_core
from kvrouter.errors import WireError
from kvrouter.service.proxy import chunked
from kvrouter.service.proxy.chunked import ChunkedBody
from kvrouter.service.proxy.forwarding import join_parts
from kvrouter.service.proxy.head_memory import recall_head, recall_whole, split_length
from kvrouter.service.proxy.usage import search_usage

_LINES = [
    b"POST / HTTP/1.1", b"Host: a", b"X: 1", b"X:\r1", b"Content-Length: 5", b"content-length:\t 7 \t",
    b"Content-length: 0", b"CONTENT-LENGTH: 5", b"Content-Length:", b"Content-Length: 5x", b"content-Length: 1",
    b"Content-Length: " + b"9" * 18, b"Content-Length: " + b"9" * 19, b"Xontent-Length: 5", b"Content-Length: 5 5",
]  # fmt: skip
_heads = st.lists(st.sampled_from(_LINES) | st.binary(max_size=8), max_size=6).map(b"\r\n".join)

_WORDS = [
    b'"usage"', b'"usage', b'"', b":", b"{", b"}", b",", b" ", b"\n", b"\x0b", b"12", b"0", b"-", b"9" * 16, b"x" * 999,
    b'"prompt_tokens"', b'"input_tokens"', b'"completion_tokens"', b'"output_tokens"', b'"cached_tokens"',
    b'"usage": {"prompt_tokens": 5, "completion_tokens": 6, "prompt_tokens_details": {"cached_tokens": 4}}',
]  # fmt: skip
_answers = st.lists(st.sampled_from(_WORDS), max_size=14).map(b"".join)

_CHUNKS = [
    b"1\r\na\r\n", b"a\r\n0123456789\r\n", b"0A\r\n0123456789\r\n", b"3\r\n\r\n\r\r\n", b"0\r\n\r\n",
    b"1;x\r\na\r\n", b"1\r\nab\r\n", b"f" * 15 + b"\r\n", b"f" * 16 + b"\r\n", b"1\n", b"1\r\na",
    b"0\r\nX: 1\r\n\r\n", b"\r\n",
]  # fmt: skip
_bodies = st.lists(st.sampled_from(_CHUNKS) | st.binary(max_size=4), max_size=6).map(b"".join)


@settings(max_examples=500)
@given(_heads, st.binary(max_size=8), st.integers(0, 2))
def test_heads_are_recalled_alike(block: bytes, after: bytes, missing: int) -> None:
    """Known or not, whole or not, as bytes and in a larger memory."""
    data = block + b"\r\n\r\n" + after
    size = max(0, len(data) - missing)
    known = {split_length(block)[0]: "head", b"": "empty", b"POST / HTTP/1.1\r\nHost: a": "plain"}
    expected = recall_head(data, size, known)

    assert native_core.native.recall_head(data, size, known) == expected
    assert native_core.native.recall_head(memoryview(bytearray(data + b"\r\n\r\n")), size, known) == expected
    assert native_core.native.recall_whole(data, size, known) == recall_whole(data, size, known)


@settings(max_examples=500)
@given(_answers)
def test_usage_is_found_alike(answer: bytes) -> None:
    """Nested, cut off, twice, with blanks of all kinds."""
    assert native_core.native.find_usage(answer) == search_usage(answer)


@settings(max_examples=500)
@given(_bodies, st.integers(0, 40))
def test_chunks_end_alike(data: bytes, cut: int) -> None:
    """The end of a body, or the refusal of it, is the same with the native steps and without."""
    pieces = [data[:cut], data[cut:]]

    def read() -> tuple[int, bool, bytes | None] | None:
        body = ChunkedBody()
        try:
            used = sum(0 if body.done else body.feed(piece) for piece in pieces)
        except WireError:
            return None
        return used, body.done, body.interruption(b"text")

    native = read()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked, "_skip", None)
        reference = read()

    assert native == reference


@given(st.lists(st.binary(max_size=8) | st.text(max_size=8) | st.integers(0, 2**64 - 1), max_size=24))
def test_parts_are_joined_alike(parts: list[bytes | str | int]) -> None:
    """Bytes, text and numbers, up to the most that is taken."""
    assert native_core.native.join_text(*parts) == join_parts(*parts)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda core: core.recall_head(b"", 0), TypeError),
        (lambda core: core.recall_head("text", 0, {}), TypeError),
        (lambda core: core.recall_head(b"", None, {}), TypeError),
        (lambda core: core.recall_head(b"\r\n\r\n", 4, []), SystemError),
        (lambda core: core.recall_whole(b"", 0), TypeError),
        (lambda core: core.recall_whole(b"\r\n\r\n", 4, []), SystemError),
        (lambda core: core.skip_chunks(b""), TypeError),
        (lambda core: core.skip_chunks("text", 0), TypeError),
        (lambda core: core.skip_chunks(b"", "0"), TypeError),
        (lambda core: core.skip_chunks(b"", 1), ValueError),
        (lambda core: core.skip_chunks(b"", -1), ValueError),
        (lambda core: core.find_usage("text"), TypeError),
        (lambda core: core.join_text(b"", None), TypeError),
        (lambda core: core.join_text(b"", -1), OverflowError),
        (lambda core: core.join_text("\ud800"), UnicodeEncodeError),
        (lambda core: core.join_text(*[b""] * 25), TypeError),
    ],
)
def test_wrong_calls_are_errors(call: Callable[[object], object], error: type[Exception]) -> None:
    """Of our own code; none of them may read what is not there."""
    with pytest.raises(error):
        call(native_core.native)


def test_sizes_beyond_the_memory_find_nothing() -> None:
    """Nothing outside of it is looked at."""
    known = {b"": "head"}

    assert native_core.native.recall_head(b"\r\n\r\n", 5, known) is None
    assert native_core.native.recall_head(b"\r\n\r\n", -1, known) is None
    assert native_core.native.recall_whole(b"\r\n\r\n", 5, known) is None
