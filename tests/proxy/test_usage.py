"""Usage is read from the end of an answer, whatever the rest of it contains."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvrouter.service.proxy.usage import Tail, find_usage

pytestmark = pytest.mark.usefixtures("http_core")

USAGE = {
    "prompt_tokens": 19,
    "completion_tokens": 4,
    "total_tokens": 23,
    "prompt_tokens_details": {"cached_tokens": 16},
}


def _found(tail: bytes) -> tuple[int | None, int | None, int | None] | None:
    usage = find_usage(tail)
    return None if usage is None else (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)


@pytest.mark.parametrize("indent", [None, 2])
def test_chat_and_completion_answers(indent: int | None) -> None:
    """The names of /v1/completions and /v1/chat/completions, compact or not."""
    assert _found(json.dumps({"choices": [], "usage": USAGE}, indent=indent).encode()) == (19, 4, 16)


def test_responses_answers() -> None:
    """The names of /v1/responses."""
    usage = {"input_tokens": 9, "input_tokens_details": {"cached_tokens": 8}, "output_tokens": 3}

    assert _found(json.dumps({"output": [], "usage": usage}).encode()) == (9, 3, 8)


def test_what_is_not_said_is_none() -> None:
    """Engines may leave out the details, embeddings have no completion."""
    assert _found(b'{"usage": {"prompt_tokens": 5, "prompt_tokens_details": null}}') == (5, None, None)
    assert _found(b'{"usage": null}') is None
    assert _found(b'{"usage": {}}') is None
    assert _found(b"") is None


def test_the_last_object_counts_and_null_is_skipped() -> None:
    """Streams may repeat usage in every event, or send null until the last."""
    first, last = json.dumps({"usage": USAGE | {"completion_tokens": 1}}), json.dumps({"usage": USAGE})

    assert _found(f'data: {first}\n\ndata: {last}\n\ndata: {{"usage":null}}\n\ndata: [DONE]\n\n'.encode()) == (
        19,
        4,
        16,
    )


def test_generated_text_is_not_mistaken_for_usage() -> None:
    """Quotes inside a JSON string are escaped, so text about usage is not usage."""
    fake = json.dumps({"usage": {"prompt_tokens": 1, "completion_tokens": 1}})
    answer = json.dumps({"usage": USAGE, "choices": [{"text": fake}]})

    assert _found(answer.encode()) == (19, 4, 16)


@given(st.integers(1, 300), st.integers(1, 30))
def test_chunk_boundaries_do_not_hide_it(before: int, size: int) -> None:
    """The object may be cut by chunk framing anywhere."""
    payload = b"data: " + b"x" * before + json.dumps({"usage": USAGE}).encode() + b"\n\ndata: [DONE]\n\n"
    pieces = [payload[i : i + size] for i in range(0, len(payload), size)]
    tail = Tail()
    for piece in pieces:
        tail.add(b"%x\r\n%b\r\n" % (len(piece), piece))
    tail.add(b"0\r\n\r\n")

    assert _found(tail.bytes(chunked=True)) == (19, 4, 16)


@given(st.lists(st.binary(max_size=3000), max_size=40))
def test_the_tail_is_bounded_and_ends_like_the_body(pieces: list[bytes]) -> None:
    """At most 8 KiB and one piece are kept, at least the last 4 KiB."""
    tail = Tail()
    for piece in pieces:
        tail.add(piece)

    whole, kept = b"".join(pieces), tail.bytes(chunked=False)
    assert whole.endswith(kept)
    assert len(kept) >= min(len(whole), 4096)
    assert len(kept) <= 8192
