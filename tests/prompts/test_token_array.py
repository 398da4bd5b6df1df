"""Arrays of token ids: what is remembered of them gives the very tokens that reading them whole gives."""

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvrouter.blocks import token_bytes
from kvrouter.errors import RequestError
from kvrouter.service.prompts import PrefixCache, RequestReader
from kvrouter.service.prompts.prefix_cache import CachedPrompt

pytestmark = pytest.mark.usefixtures("implementation")

COMPLETIONS, EMBEDDINGS = "/v1/completions", "/v1/embeddings"
_SEPARATORS = [",", ", ", " ,\n  ", "\t,\r\n"]


def _ids(reader: RequestReader, body: bytes, path: str = COMPLETIONS) -> list[int]:
    read = reader.read(path, body)
    assert read.kind == "token_ids"
    words = bytes(CachedPrompt(PrefixCache(0), read.nodes, read.words).token_ids)
    return [int.from_bytes(words[at : at + 4], "little") for at in range(0, len(words), 4)]


def _body(ids: list[int], *, separator: str = ", ", before: str = '"model": "m", ', after: str = "") -> bytes:
    return f'{{{before}"prompt": [{separator.join(map(str, ids))}]{after}}}'.encode()


def _random_ids(count: int, seed: int = 1) -> list[int]:
    return random.Random(seed).choices(range(130_000), k=count)


@given(
    seed=st.integers(0, 3),
    counts=st.lists(st.integers(1, 2500), min_size=1, max_size=6),
    separator=st.sampled_from(_SEPARATORS),
    before=st.sampled_from(["", '"model": "m", ', '"x": {"prompt": [1, 2]}, ', '"user": "\\"prompt\\": [3, 4", ']),
    after=st.sampled_from(["", ', "max_tokens": 3', ', "stop": ["]"]', ', "y": {"prompt": [5]}']),
)
@settings(max_examples=60, deadline=None)
def test_remembered_and_whole_reading_agree(
    seed: int, counts: list[int], separator: str, before: str, after: str
) -> None:
    """In any order of lengths, any spacing, whatever stands before and after."""
    reader = RequestReader(PrefixCache(1 << 20))
    for count in counts:
        ids = _random_ids(count, seed)
        body = _body(ids, separator=separator, before=before, after=after)

        assert _ids(reader, body) == ids
        assert _ids(reader, body) == ids


@given(st.lists(st.one_of(st.integers(0, 9), st.integers(0, 2**32 - 1)), min_size=1, max_size=1500), st.data())
@settings(max_examples=40, deadline=None)
def test_prompts_that_part_anywhere_are_told_apart(ids: list[int], data: st.DataObject) -> None:
    """Two prompts with a common beginning, cut and continued at any place, even within a number."""
    reader = RequestReader(PrefixCache(1 << 20))
    text = json.dumps({"pad": "p" * 4000, "prompt": ids * 3})
    cut = data.draw(st.integers(text.index("[") + 2, len(text) - 3))
    other = text[:cut] + data.draw(st.sampled_from(["1", "2, 3", ", 4", "0, 7"])) + text[cut:]
    for each in (text, other, text):
        try:
            expected = json.loads(each)["prompt"]
            fits = max(expected) < 2**32
        except ValueError:
            fits = False
        if fits:
            assert _ids(reader, each.encode()) == expected
        else:
            with pytest.raises(RequestError):
                reader.read(COMPLETIONS, each.encode())


def test_a_prompt_within_something_else_is_not_the_prompt() -> None:
    """An array that only looks like the prompt is neither used nor remembered as one."""
    reader = RequestReader(PrefixCache(1 << 20))
    decoy, ids = _random_ids(2000, 1), _random_ids(2000, 2)
    trap = f'{{"metadata": {{"prompt": {json.dumps(decoy)}}}, "prompt": {json.dumps(ids)}}}'.encode()
    in_text = json.dumps({"user": '"prompt": ' + json.dumps(decoy), "prompt": ids}).encode()

    for body in (trap, in_text):
        assert _ids(reader, body) == ids
    assert _ids(reader, _body(decoy)) == decoy
    for body in (trap, in_text):
        assert _ids(reader, body) == ids
    assert _ids(reader, _body(decoy)) == decoy


def test_the_last_of_two_prompts_counts_also_when_the_first_is_known() -> None:
    """A second field of the same name replaces the first one, as in every JSON reader."""
    reader = RequestReader(PrefixCache(1 << 20))
    first, second = _random_ids(2000, 1), _random_ids(2000, 2)
    body = f'{{"prompt": {json.dumps(first)}, "prompt": {json.dumps(second)}}}'.encode()

    for _ in range(2):
        assert _ids(reader, body) == second
    assert _ids(reader, _body(first)) == first


def test_an_escaped_name_is_read_the_plain_way() -> None:
    """JSON has many spellings of a name; the rare ones are only slower."""
    reader = RequestReader(PrefixCache(1 << 20))
    ids = _random_ids(2000)

    assert _ids(reader, _body(ids).replace(b'"prompt"', b'"pr\\u006fmpt"')) == ids


@pytest.mark.parametrize("wrong", ["-1", "4294967296", '"a"', "1.5", "null", "[1]", "{}", "1e400"])
@pytest.mark.parametrize("known", [False, True])
def test_a_wrong_token_in_a_long_array_is_refused(wrong: str, *, known: bool) -> None:
    """Also after a beginning that is remembered, and with its own place in the text."""
    reader = RequestReader(PrefixCache(1 << 20))
    ids = _random_ids(4000)
    if known:
        reader.read(COMPLETIONS, _body(ids))
    text = _body(ids).decode().removesuffix("]}") + f", {wrong}]}}"

    with pytest.raises(RequestError) as caught:
        reader.read(COMPLETIONS, text.encode())

    assert caught.value.status == 400
    if wrong == "-1":
        assert "prompt[4000] is -1" in caught.value.message


@pytest.mark.parametrize("damage", [", ]}", "", "]", ", 5", "]}}", " 7]}", "]} x"])
@pytest.mark.parametrize("known", [False, True])
def test_a_damaged_long_array_is_refused(damage: str, *, known: bool) -> None:
    """What is remembered never makes bad JSON good."""
    reader = RequestReader(PrefixCache(1 << 20))
    ids = _random_ids(4000)
    if known:
        reader.read(COMPLETIONS, _body(ids))

    with pytest.raises(RequestError, match="not valid JSON"):
        reader.read(COMPLETIONS, _body(ids).decode().removesuffix("]}").encode() + damage.encode())


def test_long_arrays_of_other_things_are_read_too() -> None:
    """Lists of texts or of lists, and texts with commas and brackets in them."""
    reader = RequestReader(PrefixCache(1 << 20))
    texts = [f"text, number [{number}]" for number in range(500)]
    lists = [_random_ids(1000, seed) for seed in range(5)]

    assert reader.read(COMPLETIONS, json.dumps({"prompt": texts}).encode()).text == texts[0]
    assert _ids(reader, json.dumps({"prompt": lists}).encode()) == lists[0]
    assert reader.read(COMPLETIONS, json.dumps({"prompt": "[1, 2" * 2000}).encode()).kind == "text"
    assert reader.read(COMPLETIONS, b'{"prompt": [' + b" " * 9000 + b"]}").kind == "none"


def test_embeddings_remember_their_input() -> None:
    """The same, under another name, and apart from prompts."""
    reader = RequestReader(PrefixCache(1 << 20))
    ids = _random_ids(3000)
    body = json.dumps({"input": ids, "model": "m"}).encode()

    assert _ids(reader, body, EMBEDDINGS) == ids
    assert _ids(reader, body, EMBEDDINGS) == ids


def test_a_small_cache_stays_small_and_right() -> None:
    """Memory is bounded however many prompts come, and none of them is read wrong."""
    cache = PrefixCache(60_000)
    reader = RequestReader(cache)
    for seed in range(60):
        ids = _random_ids(2000, seed)
        assert _ids(reader, _body(ids)) == ids
        assert cache.bytes_used <= 60_000


@pytest.mark.parametrize("cached", [0, 1 << 20])
def test_the_other_fields_of_a_long_body_are_read(cached: int) -> None:
    """Leaving out what is known leaves out nothing else."""
    reader = RequestReader(PrefixCache(cached))
    fields: dict[str, Any] = {"stream": True, "max_tokens": 9, "cache_salt": "s", "user": "u"}
    body = json.dumps({"model": "m", "prompt": _random_ids(3000), **fields}).encode()

    for _ in range(2):
        read = reader.read(COMPLETIONS, body)
        assert (read.model, read.stream, read.max_tokens, read.cache_salt, read.session) == ("m", True, 9, "s", "u")


def test_words_are_little_endian_whatever_the_machine() -> None:
    """They are what block hashes are made of."""
    reader = RequestReader(PrefixCache(0))

    assert reader.read(COMPLETIONS, _body([1, 258])).words == token_bytes([1, 258]) == b"\1\0\0\0\2\1\0\0"


def test_arrays_that_the_native_core_reads_are_not_remembered(implementation: str) -> None:
    """It needs no memory to be fast; without it long arrays are remembered."""
    cache = PrefixCache(1 << 20)
    RequestReader(cache).read(COMPLETIONS, _body(_random_ids(3000)))

    assert bool(len(cache)) == (implementation == "reference")
