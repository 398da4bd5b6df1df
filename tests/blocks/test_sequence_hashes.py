"""Hashes are those that the field publishes, whatever form the tokens come in."""

import json
from array import array
from pathlib import Path
from struct import pack
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from kvrouter.blocks import (
    BLOCK_SIZE_MAX,
    TOKEN_ID_MAX,
    chain_hashes,
    extend_hashes,
    hash_seed,
    multimodal_key,
    sequence_hashes,
    token_bytes,
)

pytestmark = pytest.mark.usefixtures("implementation")

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "blocks" / "block_hashes.json").read_text())
tokens = st.lists(st.integers(0, TOKEN_ID_MAX), max_size=40)


@pytest.mark.parametrize("case", GOLDEN)
def test_block_hashes_are_the_public_ones(case: dict[str, Any]) -> None:
    """Hashing each block alone gives the values recorded from the peer's compiled core."""
    size, lookahead = case["block_size"], case["lookahead"]
    seed = hash_seed(case["salt"].encode(), case["lora"])
    keys = case["keys"] or [[]] * len(case["block_hashes"])

    alone = [
        extend_hashes(
            None,
            case["tokens"][number * size : (number + 1) * size + lookahead],
            size,
            seed=seed,
            block_keys=[keys[number]],
            lookahead=lookahead,
        ).tolist()
        for number in range(len(case["block_hashes"]))
    ]

    assert alone == [[block_hash] for block_hash in case["block_hashes"]]


@pytest.mark.parametrize("case", GOLDEN)
def test_sequence_hashes_chain_block_hashes(case: dict[str, Any]) -> None:
    """The first is the block hash itself; each next one hashes the last with the block's own."""
    seed = hash_seed(case["salt"].encode(), case["lora"])

    hashes = extend_hashes(
        None,
        case["tokens"],
        case["block_size"],
        seed=seed,
        block_keys=case["keys"],
        lookahead=case["lookahead"],
    ).tolist()

    expected = case["block_hashes"][:1]
    for block_hash in case["block_hashes"][1:]:
        expected.append(xxh3_64_intdigest(pack("<QQ", expected[-1], block_hash), 1337))
    assert hashes == expected


def test_the_plain_call_is_the_whole_chain() -> None:
    """`sequence_hashes` folds salt and adapter itself."""
    salted = next(case for case in GOLDEN if case["salt"])

    hashes = sequence_hashes(salted["tokens"], 16, salt=salted["salt"].encode())

    assert hashes.dtype == np.uint64
    assert hashes[0] == salted["block_hashes"][0]
    assert len(hashes) == 4


@given(tokens, st.integers(1, 9), st.data())
def test_extending_a_chain_continues_it(prompt: list[int], size: int, data: st.DataObject) -> None:
    """Hashing in two parts, cut at a block, is hashing at once."""
    whole = sequence_hashes(prompt, size).tolist()
    cut = data.draw(st.integers(0, len(whole)))

    parent = whole[cut - 1] if cut else None

    assert extend_hashes(parent, prompt[cut * size :], size).tolist() == whole[cut:]


@given(tokens, st.integers(1, 9))
def test_every_form_of_tokens_hashes_alike(prompt: list[int], size: int) -> None:
    """Lists, tuples, arrays of any integer type and raw bytes are one prompt."""
    expected = sequence_hashes(prompt, size).tolist()
    words = np.array(prompt, dtype="<u4")

    forms: list[Any] = [
        tuple(prompt),
        words,
        words.astype(np.int64),
        words[::1].astype(np.uint64),
        np.repeat(words, 2)[::2],
        array("I", prompt),
        array("q", prompt),
        words.tobytes(),
        bytearray(words.tobytes()),
        memoryview(words.tobytes()),
    ]

    assert [sequence_hashes(form, size).tolist() for form in forms] == [expected] * len(forms)


@given(tokens, st.integers(1, 9))
def test_a_partial_block_has_no_hash(prompt: list[int], size: int) -> None:
    """Only whole blocks are hashed, and a longer prompt keeps the hashes of a shorter one."""
    hashes = sequence_hashes(prompt, size).tolist()

    assert len(hashes) == len(prompt) // size
    assert sequence_hashes([*prompt, 1], size).tolist()[: len(hashes)] == hashes


def test_tenants_and_adapters_never_share() -> None:
    """Salt and LoRA change every hash, alone and together; empty ones change none."""
    prompt = list(range(32))
    plain = sequence_hashes(prompt, 16).tolist()
    seeds = {hash_seed(), hash_seed(b"a"), hash_seed(b"", "a"), hash_seed(b"a", "a"), hash_seed(b"b")}

    salted = sequence_hashes(prompt, 16, salt=b"tenant", lora="adapter").tolist()

    assert len(seeds) == 5
    assert not set(plain) & set(salted)
    assert sequence_hashes(prompt, 16, salt=b"", lora="").tolist() == plain


def test_multimodal_keys_belong_to_their_block() -> None:
    """Order of keys within a block is of no matter; their block and all after it change."""
    prompt = list(range(48))
    plain = sequence_hashes(prompt, 16).tolist()

    keyed = sequence_hashes(prompt, 16, block_keys=[None, [7, 3]]).tolist()

    assert keyed[0] == plain[0]
    assert keyed[1] != plain[1]
    assert keyed[2] != plain[2]
    assert sequence_hashes(prompt, 16, block_keys=[(), (3, 7), ()]).tolist() == keyed


def test_an_identifier_becomes_a_key() -> None:
    """Content digests keep their first sixteen digits; anything else is hashed."""
    digest = "00000000000000ff" + "0" * 48

    assert multimodal_key(digest) == 255
    assert multimodal_key("g" * 64) == xxh3_64_intdigest(b"g" * 64)
    assert multimodal_key("cat.png") == xxh3_64_intdigest(b"cat.png")


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ([1, -1], ValueError, r"token_ids\[1\] is -1; a token id is 0..4294967295"),
        ([2**32], ValueError, r"token_ids\[0\] is 4294967296"),
        ([1, 2, "x"], TypeError, r"token_ids\[2\] is a str"),
        ([1.5], TypeError, r"token_ids\[0\] is a float"),
        ([[1]], TypeError, r"token_ids\[0\] is a list"),
        ("words", TypeError, "not str"),
        (7, TypeError, "not int"),
        (None, TypeError, "not NoneType"),
        (b"12345", ValueError, "5 bytes"),
        (np.array([1, -5]), ValueError, "contains -5"),
        (np.array([2**33]), ValueError, "contains 8589934592"),
        (np.array([1.0]), TypeError, "float64"),
        (np.zeros((2, 2), dtype=np.uint32), TypeError, "2-dimensional"),
    ],
)
def test_a_wrong_token_is_named(wrong: Any, error: type[Exception], words: str) -> None:
    """The text says which token and what would have been right."""
    with pytest.raises(error, match=words):
        token_bytes(wrong)


@pytest.mark.parametrize("size", [0, -1, BLOCK_SIZE_MAX + 1])
def test_a_wrong_block_size_is_named(size: int) -> None:
    """Block sizes have bounds."""
    with pytest.raises(ValueError, match=f"block_size is {size}"):
        sequence_hashes([1, 2], size)


def test_other_wrong_arguments_are_named() -> None:
    """Salt, multimodal keys and lookahead are checked as well."""
    with pytest.raises(TypeError, match="salt must be bytes, not str"):
        sequence_hashes([1], 1, salt="tenant")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="multimodal key -1"):
        sequence_hashes([1], 1, block_keys=[[-1]])
    with pytest.raises(ValueError, match="lookahead is 2"):
        chain_hashes(None, token_bytes([1, 2]), 1, lookahead=2)
