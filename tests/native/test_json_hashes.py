"""Arrays of hashes, read from JSON text by the core: what it reads is right, what it cannot read it leaves alone."""

import json
from array import array
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvrouter import native_core
from kvrouter.errors import RequestError
from kvrouter.service.prompts import PrefixCache
from kvrouter.service.selection_tokens import SelectionReader

HASHES = st.one_of(st.integers(-(2**63), 2**64 - 1), st.sampled_from([0, 1, -1, 2**63, 2**64 - 1, -(2**63)]))


def expected(text: bytes) -> bytes | None:
    """What the text is by Python's own reader, where it is an array of nothing but 64-bit integers."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    if type(value) is not list or not all(type(each) is int and -(2**63) <= each < 2**64 for each in value):
        return None
    return array("Q", [each % 2**64 for each in value]).tobytes()


@given(st.lists(HASHES, max_size=20), st.sampled_from([",", ", ", " ,\n"]), st.sampled_from(["", " "]))
@settings(max_examples=300, deadline=None)
def test_arrays_of_hashes_are_read(hashes: list[int], comma: str, space: str) -> None:
    """Signed as some clients write them, or unsigned."""
    text = f"[{space}{comma.join(map(str, hashes))}{space}]".encode()
    body = b'{"x": 1, "k" : %b, "y": []}' % text

    found = native_core.native.find_hash_array(body, b'"k"')

    assert found == (expected(text), 15, 15 + len(text))


@given(st.text("[] ,0123456789-+.e\n", max_size=45).map(lambda inside: f"[{inside}]".encode()))
@example(b"[18446744073709551616]")
@example(b"[18446744073709551615]")
@example(b"[28446744073709551615]")
@example(b"[99999999999999999999]")
@example(b"[100000000000000000000]")
@example(b"[-9223372036854775809]")
@example(b"[-9223372036854775808,-0]")
@example(b"[00]")
@example(b"[-01]")
@example(b"[-]")
@example(b"[1,]")
@example(b"[,1]")
@example(b"[1 2]")
@example(b"[1,,2]")
@settings(max_examples=600, deadline=None)
def test_what_is_read_is_what_any_reader_would_read(text: bytes) -> None:
    """Of text made of the characters that matter, nothing is read wrong and nothing good is left."""
    found = native_core.native.find_hash_array(b'"k":' + text, b'"k"')

    first = text[: text.index(b"]") + 1]
    assert found == (None if expected(first) is None else (expected(first), 4, 4 + len(first)))
    for length in range(len(first)):
        assert native_core.native.find_hash_array(b'"k":' + first[:length], b'"k"') is None


FIELD = st.one_of(
    st.lists(HASHES, max_size=4).map(str),
    st.sampled_from(["null", "[1.5]", "[[1]]", '"[1]"', "[1, true]", "[01]", f"[{2**64}]"]),
)


@given(
    blocks=FIELD,
    sequences=FIELD,
    tokens=st.sampled_from(["64", "0", "null", "5"]),
    more=st.sampled_from(
        ["", ', "sequence_hashes": [7]', ', "block_hashes": [7]', ', "x": {"sequence_hashes": [1]}', "}"]
    ),
    swapped=st.booleans(),
)
@settings(max_examples=400, deadline=None)
def test_hashed_prompts_are_read_and_refused_as_without_the_core(
    blocks: str, sequences: str, tokens: str, more: str, swapped: bool
) -> None:
    """The same hashes, or the same error about the same field."""
    fields = [f'"block_hashes": {blocks}', f'"sequence_hashes": {sequences}', f'"isl_tokens": {tokens}']
    body = f"{{{', '.join(reversed(fields) if swapped else fields)}{more}}}".encode()
    outcomes = []
    for present in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native_core, "present", present)
            outcomes.append(outcome(body))

    assert outcomes[0] == outcomes[1]


def outcome(body: bytes) -> Any:
    """What becomes of a body."""
    try:
        prompt = SelectionReader(PrefixCache(1 << 20)).read(body).prompt(block_size=16)
    except RequestError as error:
        return error.status, error.message, error.code, error.param
    return prompt.hash_list(16), prompt.tokens, prompt.block_size


def test_wrong_arguments_are_refused() -> None:
    """As everywhere in the core."""
    with pytest.raises(TypeError, match="takes 2 arguments, not 1"):
        native_core.native.find_hash_array(b"[1]")  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        native_core.native.find_hash_array("[1]", b"")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        native_core.native.find_hash_array(b"[1]", 5)  # type: ignore[arg-type]
    assert native_core.native.find_hash_array(b'"k":[' + b"," * 100_000 + b"]", b'"k"') is None
