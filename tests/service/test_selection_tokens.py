"""Remembered beginnings of prompts: whatever was asked before, a prompt is read as if it were the first."""

import json
import random
import time
from typing import Any

import pytest

from kvrouter.blocks import sequence_hashes
from kvrouter.errors import RequestError
from kvrouter.service.prompts import PrefixCache
from kvrouter.service.selection_tokens import SelectionReader

pytestmark = pytest.mark.usefixtures("implementation")

SEPARATORS = [(",", ":"), (", ", ": "), (",", ": ")]


@pytest.fixture
def cache() -> PrefixCache:
    """Room for everything."""
    return PrefixCache(1 << 26)


def _body(token_ids: Any, separators: tuple[str, str] = (",", ":"), **fields: Any) -> bytes:
    return json.dumps({"model_name": "m", "token_ids": token_ids, **fields}, separators=separators).encode()


def _hashes(reader: SelectionReader, body: bytes) -> list[int]:
    prompt = reader.read(body).prompt(block_size=16)
    assert prompt.tokens // 16 == len(prompt.hash_list(16))
    return prompt.hash_list(16)


@pytest.mark.parametrize("seed", range(6))
def test_conversations_read_piece_by_piece_are_what_reading_them_whole_gives(
    cache: PrefixCache, seed: int, implementation: str
) -> None:
    """Growing, repeated, branching prompts, with tokens of every length and cuts within tokens."""
    draw = random.Random(seed)
    reader = SelectionReader(cache)
    talks = [[draw.randrange(10 ** draw.randint(1, 9)) for _ in range(900)] for _ in range(3)]

    for _ in range(60):
        talk = draw.choice(talks)
        if draw.random() < 0.3:
            talk += [draw.randrange(200_000) for _ in range(draw.randint(1, 600))]
        asked = talk[: draw.randint(len(talk) // 2, len(talk))] + [
            draw.randrange(9) for _ in range(draw.randint(0, 40))
        ]
        body = _body(asked, draw.choice(SEPARATORS))

        assert _hashes(reader, body) == sequence_hashes(asked, 16).tolist()

    assert (cache.hits > 100) == (implementation == "reference")


def test_remembering_a_prompt_costs_in_proportion_to_its_length() -> None:
    """A body at the size limit must not hold up everyone else for seconds."""

    def seconds(tokens: int) -> float:
        reader = SelectionReader(PrefixCache(1 << 30))
        body = b'{"token_ids":[' + b"100000," * tokens + b"1]}"
        reader.read(body)
        before = time.thread_time()
        reader.read(body)
        return time.thread_time() - before

    short = min(seconds(500_000) for _ in range(2))
    long = min(seconds(4_000_000) for _ in range(2))

    assert long < 24 * short  # 8 in proportion, 64 if every piece copied what is left


def test_what_is_asked_once_is_not_remembered(cache: PrefixCache) -> None:
    """Prompts that never come again cost no memory."""
    reader = SelectionReader(cache)
    for start in range(50):
        reader.read(_body(list(range(start * 1000, start * 1000 + 1000))))

    assert len(cache) == 0


def test_what_comes_again_is_remembered(cache: PrefixCache, implementation: str) -> None:
    """From the third time on it is found; the native core is fast without."""
    reader = SelectionReader(cache)
    body = _body(list(range(10_000, 12_000)))

    hits = []
    for _ in range(3):
        reader.read(body)
        hits.append(cache.hits)

    assert hits == [0, 0, 5 if implementation == "reference" else 0]


@pytest.mark.parametrize(
    "fields",
    [
        {"cache_salt": "tenant"},
        {"lora_name": "adapter"},
        {"note": '"token_ids": [1,2,3]'},
        {"block_mm_infos": [None, {"mm_objects": [{"mm_hash": 7}]}]},
        {"mm_routing_info": {"routing_token_ids": [5] * 64}},
    ],
)
def test_other_fields_mean_the_same_on_either_way(cache: PrefixCache, fields: dict[str, Any]) -> None:
    """A remembered beginning changes nothing about salt, adapter or items."""
    tokens = list(range(10_000, 12_000))
    reader = SelectionReader(cache)
    reader.read(_body(tokens))
    reader.read(_body(tokens))
    body = _body(tokens, **fields)

    assert _hashes(reader, body) == _hashes(SelectionReader(PrefixCache(1 << 20)), body)


@pytest.mark.parametrize("wrong", [-1, 2**32, "x", None, 1.5, [1]])
def test_a_mistake_after_a_remembered_beginning_is_still_found(cache: PrefixCache, wrong: Any) -> None:
    """Nothing is believed that was not read."""
    tokens: list[Any] = list(range(10_000, 12_000))
    reader = SelectionReader(cache)
    for _ in range(3):
        reader.read(_body(tokens))

    with pytest.raises(RequestError) as caught:
        reader.read(_body([*tokens, wrong])).prompt(block_size=16)

    assert caught.value.param == "token_ids"


@pytest.mark.parametrize("cut", [3000, 9000, 11_990])
def test_a_body_that_ends_early_is_not_json(cache: PrefixCache, cut: int) -> None:
    """Even where all that is there was seen before."""
    reader = SelectionReader(cache)
    body = _body(list(range(10_000, 12_000)))
    for _ in range(3):
        reader.read(body)

    with pytest.raises(RequestError) as caught:
        reader.read(body[:cut])

    assert caught.value.code == "invalid_json"


def test_the_last_of_two_equal_keys_counts_as_json_readers_have_it(cache: PrefixCache) -> None:
    """The first one was remembered, the second one is meant."""
    reader = SelectionReader(cache)
    first, second = list(range(10_000, 12_000)), list(range(500))
    for _ in range(3):
        reader.read(_body(first))

    body = _body(first)[:-1] + b',"token_ids":%b}' % json.dumps(second).encode()

    assert _hashes(reader, body) == sequence_hashes(second, 16).tolist()
