"""Hashing in the core gives what hashing in Python gives, value for value and error for error."""

import random
from array import array
from collections.abc import Callable
from threading import Thread
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvrouter import native_core
from kvrouter.blocks import (
    BLOCK_SIZE_MAX,
    Prompt,
    chain_hashes,
    extend_hashes,
    packed_hashes,
    sequence_hashes,
    token_bytes,
)

U64 = st.integers(0, 2**64 - 1)
odd_tokens = st.one_of(
    st.integers(-5, 2**33), st.integers(-(2**70), 2**70), st.booleans(), st.none(), st.floats(), st.text(max_size=2)
)


def both(call: Callable[[], Any]) -> tuple[Any, Any]:
    """What a call gives, or raises, with the core and without."""
    outcomes: list[Any] = []
    for present in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native_core, "present", present)
            try:
                outcomes.append(call())
            except Exception as error:  # noqa: BLE001 - whatever it is, it has to be the same
                outcomes.append((type(error), str(error)))
    return outcomes[0], outcomes[1]


@given(
    words=st.binary(max_size=1200),
    parent=st.none() | U64,
    size=st.integers(1, 80),
    seed=U64,
    lookahead=st.integers(0, 3),
    keys=st.lists(st.none() | st.lists(U64, max_size=3), max_size=8),
)
@settings(max_examples=300, deadline=None)
def test_both_hash_alike(
    words: bytes, parent: int | None, size: int, seed: int, lookahead: int, keys: list[list[int] | None]
) -> None:
    """Any length, parent, block size, seed and lookahead, with and without multimodal keys."""
    arguments: dict[str, Any] = {"block_keys": keys, "lookahead": min(lookahead, size)}

    native, reference = both(lambda: chain_hashes(parent, words, size, seed, **arguments))
    packed, packed_reference = both(lambda: packed_hashes(parent, words, size, seed, **arguments))

    assert native == reference
    assert packed == packed_reference == array("Q", reference).tobytes()


@pytest.mark.parametrize("size", [1, 2, 4, 15, 16, 17, 32, 60, 61, 64, 256, 1024, BLOCK_SIZE_MAX])
def test_both_hash_alike_at_the_sizes_of_engines(size: int) -> None:
    """Through every way of mixing that XXH3 has, and the longest block there may be."""
    words = random.Random(size).randbytes(4 * (3 * size + size // 2))

    native, reference = both(lambda: chain_hashes(None, words, size))

    assert native == reference
    assert len(native) == 3


@pytest.mark.parametrize(
    ("parent", "size", "lookahead", "keys"),
    [
        (None, 0, 0, ()),
        (None, -1, 0, ()),
        (None, 2**70, 0, ()),
        (None, BLOCK_SIZE_MAX + 1, 0, ()),
        (None, 4, 5, ()),
        (None, 4, -1, ()),
        (-1, 4, 0, ()),
        (2**64, 4, 0, ()),
        (None, 4, 0, [[1], [2**64]]),
        (None, 4, 0, [[-1]]),
    ],
)
def test_both_refuse_alike(parent: int | None, size: int, lookahead: int, keys: Any) -> None:
    """With the same error, which names what is wrong."""
    native, reference = both(lambda: extend_hashes(parent, range(40), size, block_keys=keys, lookahead=lookahead))

    assert native == reference
    assert native[0] is ValueError


@given(st.lists(odd_tokens, max_size=12))
@settings(max_examples=300, deadline=None)
def test_both_judge_lists_of_anything_alike(tokens: list[Any]) -> None:
    """The words of a good list; of a bad one the first wrong item, by number and value."""
    native, reference = both(lambda: token_bytes(tokens))

    assert native == reference


@pytest.mark.parametrize(
    "tokens",
    [
        [2**32 - 1, 0],
        [True, False],
        [np.uint32(7), np.int64(8)],
        (1, 2, 3),
        range(5),
        array("I", [1, 2]),
        np.arange(4, dtype=np.int16),
        b"\1\0\0\0",
        memoryview(bytearray(8)),
        "text",
        {1, 2},
        None,
        [[1]],
        [2**32],
        [-1],
        [1.0],
        [np.float32(1)],
    ],
)
def test_both_take_the_same_forms_of_tokens(tokens: Any) -> None:
    """Whatever a caller may come with."""
    native, reference = both(lambda: Prompt(tokens).hash_list(1))

    assert native == reference


def test_an_item_that_changes_the_list_while_it_is_read_does_no_harm() -> None:
    """Its own code runs in the middle of ours."""
    tokens: list[Any] = []

    class Shrinking:
        def __index__(self) -> int:
            tokens.clear()
            return 1

    tokens += [Shrinking(), *range(1000)]

    with pytest.raises(IndexError):
        native_core.native.tokens_to_words(tokens)


def test_prompts_and_their_forms_of_hashes_agree() -> None:
    """Lists, bytes and arrays are the same hashes, whichever is asked for first."""
    for first in ("hash_list", "hash_bytes", "hashes"):
        native, reference = both(lambda first=first: _forms(first))  # type: ignore[misc]
        assert native == reference


def _forms(first: str) -> list[Any]:
    forms: list[Any] = []
    for prompt in (
        Prompt(list(range(100)), salt=b"s", lora="l"),
        Prompt.from_hashes([1, 2**64 - 1], block_size=16, tokens=40),
        Prompt.from_hashes(np.array([5], dtype=np.uint64), block_size=16, tokens=40),
    ):
        getattr(prompt, first)(16)
        forms += [prompt.hash_list(size) for size in (16, 32)]
        forms += [prompt.hash_bytes(size) for size in (16, 32)]
        forms += [prompt.hashes(size).tolist() for size in (16, 32)]
        assert prompt.hash_bytes(16) == array("Q", prompt.hash_list(16)).tobytes()
    return forms


def test_long_prompts_are_hashed_while_other_threads_run() -> None:
    """Above half a megabyte of words the interpreter is free meanwhile; the result is the same."""
    words = [random.Random(number).randbytes(4 << 20) for number in range(3)]
    expected = [sequence_hashes(each[: 4 * 1600], 16).tolist() for each in words]
    found: dict[int, bytes] = {}

    def work(number: int) -> None:
        found[number] = packed_hashes(None, words[number], 16)

    threads = [Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [np.frombuffer(found[number], np.uint64)[:100].tolist() for number in range(3)] == expected
    assert {len(each) for each in found.values()} == {8 * (4 << 20) // 64}


def test_wrong_arguments_are_refused_by_the_core_itself() -> None:
    """It relies on no caller's checks."""
    native: Any = native_core.native
    out_of_range: list[Callable[[], object]] = [
        lambda: native.chain_hashes(None, b"", 0, 0, 0),
        lambda: native.chain_hashes(None, b"", 65537, 0, 0),
        lambda: native.chain_hashes(None, b"", 4, 0, 5),
        lambda: native.chain_hashes(None, b"", 4, 0, -1),
        lambda: native.block_hashes(b"", -4, 0, 0),
        lambda: native.chain_block_hashes(None, b"seven b"),
    ]
    for call in out_of_range:
        with pytest.raises(ValueError, match=r"it must be|multiple of 8"):
            call()
    wrong_kinds: list[Callable[[], object]] = [
        lambda: native.chain_hashes(None, b"", 16, 0),
        lambda: native.chain_hashes("parent", b"", 16, 0, 0),
        lambda: native.chain_hashes(None, "text", 16, 0, 0),
        lambda: native.block_hashes(b"", 16),
        lambda: native.chain_block_hashes(b""),
        lambda: native.tokens_to_words((1, 2)),
    ]
    for call in wrong_kinds:
        with pytest.raises(TypeError):
            call()
